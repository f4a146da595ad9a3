"""From a cell back to where its number comes from: the files that hold its samples, and each sample."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from claimbench.analysis import validity
from claimbench.errors import ConfigError, ResultError
from claimbench.exchange.folder import ResultsFolder
from claimbench.planning.nearest import nearest
from claimbench.schema import result
from claimbench.schema import round as round_file
from claimbench.schema.plan import Plan
from claimbench.schema.result import Result, Sample


class Named(NamedTuple):
    """A row of a study."""

    study: str
    address: str
    """`experiment/label@...`"""
    cell: str | None


class Record(NamedTuple):
    """What one file says of a cell."""

    path: str
    what: str
    result: Result
    doubts: tuple[str, ...]
    counts: bool
    """Whether it is of the plan's key, and no rule of validity voids it."""


def rows(plan: Plan) -> list[Named]:
    return [
        Named(study, f"{experiment}/{address}", row.cell)
        for study, planned in plan.studies.items()
        for experiment, shown in planned.rows.items()
        for address, row in shown.items()
    ]


def find(plan: Plan, asked: str) -> Named:
    """The row at `experiment/label@...`, `study: experiment/label@...`, or of the cell whose id begins like that.

    Raises:
        ConfigError: there is none, or more than one.
    """
    known = {f"{row.study}: {row.address}": row for row in rows(plan)}
    wanted = asked.replace(": ", ":")
    exact = [row for row in known.values() if wanted in (row.address, f"{row.study}:{row.address}")]
    by_id = [row for row in known.values() if row.cell and len(asked) > 3 and row.cell.startswith(asked)]
    found = exact or by_id[:1] or [row for row in known.values() if row.address.partition("/")[2] == asked]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"'{asked}' is several: {', '.join(f'{row.study}:{row.address}' for row in found)}")
    names = [f"{row.study}:{row.address}" for row in known.values()] + [row.address for row in known.values()]
    all_of_them = f"There are {', '.join(names[: len(known)])}."
    raise ConfigError(f"no cell '{asked}'.{nearest(asked, names, all_of_them)}")


def records(folder: ResultsFolder, cell: str) -> Iterator[Record | ResultError]:
    """What each file says of `cell`, blocks first; in place of a file that cannot be trusted, why not."""
    planned = folder.plan.cells[cell]
    for number, path in enumerate(planned.paths()):
        file = folder.path / Path(path).relative_to("results")
        if not file.exists():
            continue
        try:
            found = result.read(file)
        except ResultError as error:
            yield error
            continue
        doubts = (*found.flags, *validity.sentences(validity.of_block(found)))
        yield Record(str(file), f"block {number}", found, doubts, found.key == planned.key)
    for path in folder.decided.seals if folder.decided else ():
        file = folder.path / Path(path).relative_to("results")
        try:
            one = round_file.read(file)
        except ResultError as error:
            yield error
            continue
        shared = validity.of_round(one)
        for arm in one.arms:
            if arm.result.cell.id == cell:
                own = validity.sentences(validity.of_arm(arm.result))
                counts = arm.result.key == planned.key and validity.weight(shared) > 0
                doubts = (*arm.result.flags, *own, *validity.sentences(shared))
                yield Record(str(file), f"arm {arm.name}", arm.result, doubts, counts)


class SampleText(NamedTuple):
    number: str
    total_ms: str
    first_ms: str
    step_ms: str
    tokens: str


def sample_text(number: int, sample: Sample) -> SampleText:
    steps = sample.step_ns[1:]
    return SampleText(
        str(number),
        f"{sample.wall_ns / 1e6:.3f}",
        f"{sample.step_ns[0] / 1e6:.3f}" if sample.step_ns else "",
        f"{median(steps) / 1e6:.3f}" if steps else "",
        sample.tokens_sha256[:12],
    )
