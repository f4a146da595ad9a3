"""A study's experiments as tables, each in the shape of its document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from claimbench.formatting import interval, number, percent, rounded
from claimbench.reporting.report_data import ReportData, head, in_unit, shown
from claimbench.reporting.table import NOTHING, Entry, Notes, Table, outside
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS, PEAK
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Row
from claimbench.schema.study import Experiment, Study

OF_LOADING = ("load_gb_s", "checkpoint_cached_share", "first_call_s")
"""Weights that are mapped are read when they are first used: a short load may only have moved its time there."""
OF_REQUESTS = (
    "load_clients",
    "load_tok_s",
    "load_ttft_ms",
    "load_ttft_p95_ms",
    "load_itl_ms",
    "load_itl_p95_ms",
    "load_end_to_end_p95_ms",
    "load_goodput_per_s",
    "load_failed_share",
    "load_lateness_ms",
)
"""What the requests of a load saw, each by itself."""
TIMES_BETTER = "times better than the first row [95 % interval]"
LENGTHS = ("prompt_tokens", "new_tokens")


def tables(data: ReportData, study: Study, name: str, rows: dict[str, Row]) -> list[Table]:
    """The tables of experiment `name`."""
    experiment = study.experiments[name]
    metrics = metrics_of(study, name, rows)
    everywhere = shared_deviations(rows.values())
    if experiment.show == "grid":
        return [
            _grid(data, metrics[0], swept_key(experiment), group, part, everywhere)
            for group, part in groups(experiment, rows).items()
        ]
    if experiment.show == "curves" and swept_key(experiment):
        return [
            _grid(data, metric, swept_key(experiment), group, part, everywhere)
            for metric in metrics
            if metric in shown_metrics(data, metrics, rows)
            for group, part in groups(experiment, rows).items()
        ]
    return [_list(data, experiment, metrics, rows)]


def metrics_of(study: Study, name: str, rows: dict[str, Row]) -> list[str]:
    """What experiment `name` is about, the main metric first: what is published, then what claims judge, by shape."""
    published = [metric for row in rows.values() for metric in row.published if metric in METRICS]
    judged = Counter(
        check.metric
        for claim in study.claims
        for check in claim.checks
        if check.kind in ("ratio", "shape", "value", "absolute") and check.of.partition("/")[0] == name
    )
    ratios = Counter(
        check.metric
        for claim in study.claims
        for check in claim.checks
        if check.kind == "ratio" and check.of.partition("/")[0] == name
    )
    show = study.experiments[name].show
    if show == "bars":
        main = [metric for metric, _ in ratios.most_common(1)] or published[:1] or ["decode_tok_s"]
    elif show == "curves":
        phases = ["step_ms", "prefill_ms"]  # every cell times both, so one experiment draws both curves
        main = phases if not published and set(judged) <= set(phases) else []
    else:
        asked = [metric for metric in judged if metric in OF_REQUESTS]  # it is about a load, and so are its figures
        main = published[:1] or asked[:1] or [{"rates": "tok_s", "grid": "ms_per_token"}[show]]
    return [metric for metric in dict.fromkeys([*main, *published, *judged]) if metric in METRICS]


def shown_metrics(data: ReportData, metrics: list[str], rows: dict[str, Row]) -> list[str]:
    """Those of `metrics` that at least one row has; the first one where none has any."""
    measured = [metric for metric in metrics if any(data.interval(row, metric) for row in rows.values())]
    return measured or metrics[:1]


def swept_key(experiment: Experiment) -> str | None:
    """The key that is drawn along the table's width: a length in curves, the batch in grids, else the last."""
    preferred = (*LENGTHS, "batch") if experiment.show == "curves" else ("batch", *LENGTHS)
    return next((key for key in preferred if key in experiment.sweep), next(reversed(experiment.sweep), None))


def groups(experiment: Experiment, rows: dict[str, Row]) -> dict[str, dict[str, Row]]:
    """Rows by the values of the other swept keys, as `batch 8`; one group without a name where there are none."""
    key = swept_key(experiment)
    found: dict[str, dict[str, Row]] = {}
    for address, row in rows.items():
        others = ", ".join(f"{worded(name)} {value}" for name, value in row.sweep.items() if name != key)
        found.setdefault(others, {})[address] = row
    return found


def worded(key: str) -> str:
    return key.replace("_", " ")


def shared_deviations(rows: Iterable[Row]) -> list[str]:
    """How every cell that can be run departs from the document: said once, not beside each row."""
    planned = [texts(row) for row in rows if row.cell]
    return _shared(planned) if planned else []


def texts(row: Row) -> tuple[str, ...]:
    """How it departs from the document."""
    return tuple(deviation.text for deviation in row.deviations)


def row_title(row: Row, data: ReportData | None = None) -> str:
    """`Compiled · batch 8`; with `data`, whether anything was compiled."""
    point = ", ".join(f"{worded(key)} {value}" for key, value in row.sweep.items())
    title = data.title(row) if data else row.title
    return f"{title} · {point}" if point else title


def base_of(rows: dict[str, Row], row: Row) -> Row:
    """The first cell of the experiment at the same swept point: what a ratio is to."""
    return next(other for other in rows.values() if other.sweep == row.sweep)


def published_number(row: Row, metric: str) -> float | None:
    """The document's figure in the unit of `head(metric)`, where it is a number."""
    figure = row.published.get(metric)
    return in_unit(metric, Interval(float(figure))).estimate if isinstance(figure, int | float) else None


def published_better(row: Row, base: Row, metric: str) -> float | None:
    """How many times better the document found `row` than `base`."""
    of, to = published_number(row, metric), published_number(base, metric)
    if not of or not to:
        return None
    return to / of if METRICS[metric].better == "lower" else of / to


def _measured(data: ReportData, row: Row, metric: str, notes: Notes) -> Entry:
    if data.interval(row, metric) is None and data.outcome(row) != Outcome.OK:
        marks = notes.mark([data.reason(row)])
        return Entry(str(data.outcome(row)), style="strong", marks=marks, cell=row.cell, metric=metric)
    return _number(data, row, metric)


def _number(data: ReportData, row: Row, metric: str) -> Entry:
    found = data.interval(row, metric)
    if found is None:
        return NOTHING
    return Entry(shown(metric, found), found=in_unit(metric, found), cell=row.cell, metric=metric)


def _beside_ceiling(data: ReportData, row: Row, metric: str) -> tuple[Entry, Entry]:
    limit, share = data.ceiling(row, metric), data.ceiling_share(row, metric)
    return (
        Entry(number(limit), found=Interval(limit)) if limit else NOTHING,
        Entry(percent(share), found=Interval(share)) if share is not None else NOTHING,
    )


def _list(data: ReportData, experiment: Experiment, metrics: list[str], rows: dict[str, Row]) -> Table:
    """One row a cell: the main metric beside its ceiling and the published figure, then what else is judged."""
    notes = Notes()
    main, *others = metrics
    everywhere = shared_deviations(rows.values())
    if main == "load_s":
        others += [metric for metric in OF_LOADING if metric not in others]
    others += [metric for metric in OF_REQUESTS if metric not in metrics]
    extras = [metric for metric in others if any(data.interval(row, metric) for row in rows.values())]
    if PEAK not in metrics:
        extras.append(PEAK)
    bars = experiment.show == "bars"
    ceiling = any(data.ceiling(row, main) for row in rows.values())
    published = any(main in row.published for row in rows.values())
    heads = ["", f"{head(main)} [95 % interval]"]
    heads += ["ceiling here", "% of it"] if ceiling else []
    heads += [TIMES_BETTER] if bars and len(rows) > 1 else []
    heads += [f"published, {head(main)}"] if published else []
    heads += ["published, times better"] if published and bars else []
    heads += [head(metric) for metric in extras] + ["tokens"]
    lines = []
    for row in rows.values():
        marks = notes.mark([*_own(texts(row), everywhere), *data.doubts(row)])
        line = [
            Entry(row_title(row, data), is_outside=True, marks=marks, cell=row.cell),
            _measured(data, row, main, notes),
        ]
        base = base_of(rows, row)
        if ceiling:
            line += _beside_ceiling(data, row, main)
        if bars and len(rows) > 1:
            line.append(_times(data.times_better(row, base, main), row, base, main))
        if published:
            line.append(_as_published(row, main))
        if published and bars:
            better = published_better(row, base, main)
            line.append(Entry(f"{number(better)}x", found=Interval(better)) if better else NOTHING)
        line += [_number(data, row, metric) for metric in extras]
        lines.append((*line, Entry(data.tokens(row))))
    plotted = heads.index(TIMES_BETTER) if TIMES_BETTER in heads else None
    return Table("", tuple(map(Entry, heads)), tuple(lines), tuple(notes.texts), plotted)


def _times(ratio: Interval | None, row: Row, base: Row, metric: str) -> Entry:
    """How many times better `row` is than `base`."""
    if ratio is None:
        return NOTHING
    text = "1 (the base)" if row is base else interval(ratio, "x")
    return Entry(text, found=ratio, cell=row.cell, metric=metric)


def _as_published(row: Row, metric: str) -> Entry:
    value, figure = published_number(row, metric), row.published.get(metric)
    if value is not None:
        return Entry(f"{value:,.6g}", found=Interval(value))
    return outside(figure) if figure is not None else NOTHING


def _grid(
    data: ReportData, metric: str, key: str | None, group: str, rows: dict[str, Row], everywhere: list[str]
) -> Table:
    """One column a swept value, one row a label; the published figures in a row below, each number with its ceiling."""
    notes = Notes()
    values = list(dict.fromkeys(row.sweep[key] for row in rows.values())) if key else [""]
    lines: list[tuple[Entry, ...]] = []
    for label in dict.fromkeys(row.label for row in rows.values()):
        of_label = {row.sweep[key] if key else "": row for row in rows.values() if row.label == label}
        first = next(iter(of_label.values()))
        same = _shared([data.doubts(row) + texts(row) for row in of_label.values()])
        cells = [_grid_cell(data, of_label.get(value), metric, [*same, *everywhere], notes) for value in values]
        marks = notes.mark(_own(same, everywhere))
        lines.append((Entry(data.title(first), is_outside=True, marks=marks), *cells))
        if any(metric in row.published for row in of_label.values()):
            named = outside(f"{first.title}, published")
            figures = [_as_published(of_label[value], metric) if value in of_label else NOTHING for value in values]
            lines.append(tuple(entry._replace(style="emphasis") for entry in (named, *figures)))
    title = head(metric) + (f", by {worded(key)}" if key else "") + (f"; {group}" if group else "")
    corner = worded(key) if key else ""
    return Table(title, (Entry(corner), *map(outside, values)), tuple(lines), tuple(notes.texts))


def _own(texts: Iterable[str], everywhere: list[str]) -> list[str]:
    return [text for text in texts if text not in everywhere]


def _shared(lists: list[tuple[str, ...]]) -> list[str]:
    """What all of several lists say."""
    return [text for text in lists[0] if all(text in other for other in lists)]


def _grid_cell(data: ReportData, row: Row | None, metric: str, same: list[str], notes: Notes) -> Entry:
    if row is None:
        return NOTHING
    own = _own((*texts(row), *data.doubts(row)), same)
    entry = _measured(data, row, metric, notes)
    share = data.ceiling_share(row, metric)
    below = () if share is None else (f"{percent(share)} of {number(data.ceiling(row, metric) or 0)}",)
    return entry._replace(marks=entry.marks + notes.mark(own), below=below)


def memory_table(data: ReportData, rows: dict[str, Row]) -> Table | None:
    """Every memory figure that any row has, in GB (1e9 bytes)."""
    names = [name for name, metric in METRICS.items() if metric.unit == "B" and name != PEAK]
    measured = [metric for metric in names if any(data.interval(row, metric) for row in rows.values())]
    if not measured:
        return None
    lines = []
    for title, row in rows.items():
        found = [data.interval(row, metric) for metric in measured]
        if any(found):
            entries = [_rounded(row, metric, value) for metric, value in zip(measured, found, strict=True)]
            lines.append((Entry(title, is_outside=True, cell=row.cell), *entries))
    return Table("", (Entry(""), *(Entry(head(metric)) for metric in measured)), tuple(lines), ())


def _rounded(row: Row, metric: str, value: Interval | None) -> Entry:
    if value is None:
        return NOTHING
    found = in_unit(metric, value)
    return Entry(rounded(found), found=found, cell=row.cell, metric=metric)


def tokens_table(data: ReportData, rows: dict[str, Row]) -> Table | None:
    """For shapes whose cells hold a number alone: whether each label's outputs were the reference's."""
    lines = []
    for label in dict.fromkeys(row.label for row in rows.values()):
        of_label = [
            row for row in rows.values() if row.label == label and data.outcome(row) in (Outcome.OK, Outcome.WRONG)
        ]
        if of_label:
            said = Counter(data.tokens(row) for row in of_label)
            texts = [f"{text} ({times} of {len(of_label)} cells)" for text, times in said.items()]
            texts = texts if len(said) > 1 else list(said)
            lines.append((outside(of_label[0].title), Entry(texts[0], tuple(texts[1:]))))
    head_row = (Entry(""), Entry("tokens against the reference"))
    return Table("", head_row, tuple(lines), ()) if lines else None
