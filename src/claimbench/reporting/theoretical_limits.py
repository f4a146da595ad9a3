"""The document's own table beside physics: what each published cell must take on its hardware, and what must fit.

Nothing here was measured; ours stands in the tables of the experiments.
"""

from __future__ import annotations

from collections.abc import Iterator

from claimbench.cost_model import parallelism
from claimbench.cost_model.hardware import HARDWARE, Hardware
from claimbench.formatting import number, percent
from claimbench.reporting.report_data import ReportData, shown
from claimbench.reporting.table import NOTHING, Entry, Notes, Table, outside
from claimbench.schema.interval import Interval
from claimbench.schema.load import InferenceLoad
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import PlannedStudy, Row

METRIC = "ms_per_token"
FRONTIER_HEAD = (
    *("", "devices", "weights of the fullest device, GB", "each row adds, GB", "rows that could fit, at most"),
    *("rows that fitted, published", "first out of memory, published", "of the memory, this accounts there for"),
)
BEYOND = (
    "Beyond the limit: no device of this data sheet can be that fast. The figure was counted otherwise (over several "
    "streams, say), or the system does not move what the model says."
)


def theoretical_limit_tables(data: ReportData, planned: PlannedStudy) -> list[Table]:
    """The floors of each published time per token, then the published frontiers; none without the hardware's name."""
    named = planned.study.document.hardware
    if named is None:
        return []
    hardware = HARDWARE[named]
    found = []
    for experiment, rows in planned.rows.items():
        lines = [line for line in _lines(rows) if any(METRIC in row.published for row in line)]
        if lines:
            question = planned.study.experiments[experiment].question
            found += [_floors(data, question, lines, hardware), _frontiers(question, lines, hardware)]
    return [table for table in found if table.rows]


def _lines(rows: dict[str, Row]) -> Iterator[list[Row]]:
    """The rows of each label that sweep over the batch alone, smallest first, where the cost model knows them."""
    for label in dict.fromkeys(row.label for row in rows.values()):
        line = [row for row in rows.values() if row.label == label and row.asked and set(row.sweep) == {"batch"}]
        if line:
            yield sorted(line, key=_batch)


def _batch(row: Row) -> int:
    assert row.asked is not None
    return row.asked.batch


def _floors(data: ReportData, question: str, lines: list[list[Row]], hardware: Hardware) -> Table:
    """Published, floor and share of the limit for each batch; ours below, where it was measured."""
    notes = Notes()
    batches = sorted({_batch(row) for line in lines for row in line})
    listed: list[tuple[Entry, ...]] = []
    for line in lines:
        by_batch = {_batch(row): row for row in line}
        cells = [_floor(by_batch.get(batch), hardware, notes) for batch in batches]
        listed.append((outside(f"{line[0].title}, {_load(line[0]).devices} devices"), *cells))
        ours = [_ours(data, by_batch.get(batch)) for batch in batches]
        if any(entry != NOTHING for entry in ours):
            here = Entry(f"{line[0].title}, here (see above for what was changed)", is_outside=True, style="emphasis")
            listed.append((here, *ours))
    title = f"{question}: published ms per token, the floor on its hardware, and how near to that limit it is"
    return Table(title, tuple(Entry(str(text)) for text in ("batch", *batches)), tuple(listed), tuple(notes.texts))


def _load(row: Row) -> InferenceLoad:
    assert row.asked is not None
    return row.asked


def _floor(row: Row | None, hardware: Hardware, notes: Notes) -> Entry:
    if row is None:
        return NOTHING
    figure, floor = row.published.get(METRIC), parallelism.ms_per_token(_load(row), hardware)
    if not isinstance(figure, int | float):
        return Entry(str(figure or "–"), below=(f"floor {number(floor)}",), is_outside=True)
    share = floor / figure
    return Entry(
        f"{figure:,.6g}",
        below=(f"floor {number(floor)}, {percent(share)}",),
        marks=notes.mark([BEYOND]) if share > 1 else (),
        found=Interval(figure),
    )


def _ours(data: ReportData, row: Row | None) -> Entry:
    found = data.interval(row, METRIC) if row else None
    if row is None or found is None:
        return NOTHING
    return Entry(shown(METRIC, found), found=found, cell=row.cell, metric=METRIC)


def _frontiers(question: str, lines: list[list[Row]], hardware: Hardware) -> Table:
    """The largest batch that could fit by weights and cache, beside the published ones.

    What the first batch out of memory needs by this account says how much of the memory was taken by what is not in
    it: the libraries, buffers that a system reserves ahead, copies of the cache.
    """
    listed = []
    for line in lines:
        load = _load(line[0])
        one, two = (parallelism.device_bytes(load.model_copy(update={"batch": batch})) for batch in (1, 2))
        fitted = [_batch(row) for row in line if isinstance(row.published.get(METRIC), int | float)]
        failed = [row for row in line if row.published.get(METRIC) == Outcome.OOM]
        needed = parallelism.device_bytes(_load(failed[0])).total / hardware.memory_bytes if failed else None
        texts = (
            str(load.devices),
            number((one.weights + one.gathered) / 1e9),
            number((two.total - one.total) / 1e9),
            str(parallelism.largest_batch(load, hardware.memory_bytes)),
            str(max(fitted, default="–")),
            str(_batch(failed[0])) if failed else "–",
            percent(needed) if needed is not None else "–",
        )
        listed.append((outside(line[0].title), *map(Entry, texts)))
    title = (
        f"{question}: memory by weights, keys and values alone, of {number(hardware.memory_bytes / 1e9)} GB a device"
    )
    return Table(title, tuple(map(Entry, FRONTIER_HEAD)), tuple(listed), ())
