"""Before Snakemake looks at files: results that do not count are set aside, so that their jobs run again.

Snakemake runs no job whose output is there, whatever stands in it. So a result or a round that is damaged, edited or of
another cell, and a failure that may have been a passing one, is renamed beside itself (schema/set_aside.py) when a run
begins. All else stays: one bad file costs what it held, and no more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from claimbench.errors import ResultError
from claimbench.schema import durable, frontier, result, sealed
from claimbench.schema import round as round_file
from claimbench.schema.plan import Plan, PlannedCell
from claimbench.schema.result import TRIES
from claimbench.schema.round import Round
from claimbench.schema.set_aside import failures, set_aside
from claimbench.workflow.derived_files import remove_stale
from claimbench.workflow.tidy import tidy

Say = Callable[[str], object]
Model = TypeVar("Model")


def make_way(plan: Plan, decided: Path | None, say: Say) -> None:
    """Set aside what does not count of the plan's results, its searches, and of the rounds that `decided` lists."""
    tidy()
    for planned in plan.cells.values():
        for block, path in enumerate(planned.paths()):
            _result(planned, block, Path(path), say)
    for search in plan.frontiers.values():
        _search(Path(search.path), say)
    if decided is not None and decided.exists():
        _rounds(plan, decided, say)
    remove_stale(plan, decided, say)


def _result(planned: PlannedCell, block: int, path: Path, say: Say) -> None:
    if not path.exists():
        return
    with durable.alone_in(path.parent):
        _judged(planned, block, path, say)


def _judged(planned: PlannedCell, block: int, path: Path, say: Say) -> None:
    if not path.exists():
        return
    try:
        found = result.read(path)
    except ResultError as error:
        say(f"{_first(error)}: kept as {set_aside(path, 'damaged')}, and measured anew")
        return
    if (found.cell.id, found.block, found.key.id) != (planned.cell.id, block, planned.key.id):
        say(f"{path} is the result of another cell or block: kept as {set_aside(path, 'damaged')}, and measured anew")
    elif found.passing and len(failures(path)) + 1 < TRIES:
        tried = len(failures(path)) + 1
        say(f"{path}: {found.reason}: kept as {set_aside(path, 'failed')}, and tried again ({tried} of {TRIES} tries)")


def _search(path: Path, say: Say) -> None:
    if path.exists():
        _readable_or_aside(path, frontier.read, say, "searched anew")


def _readable_or_aside(path: Path, read: Callable[[Path], Model], say: Say, then: str) -> Model | None:
    """What `path` holds; what cannot be read is set aside."""
    with durable.alone_in(path.parent) if path.parent.is_dir() else nullcontext():
        try:
            return read(path)
        except ResultError as error:
            kept = f"kept as {set_aside(path, 'damaged')}, and " if path.exists() else ""
            say(f"{_first(error)}: {kept}{then}")
    return None


def _rounds(plan: Plan, decided: Path, say: Say) -> None:
    """The list of rounds goes with a round that does not count: the rounds that are there are found without it."""
    summary = _readable_or_aside(decided, round_file.read_summary, say, "made anew")
    if summary is None:
        return
    rounds, is_whole = list[Round](), True
    for name, seal in summary.seals.items():
        record = _readable_or_aside(Path(name), round_file.read, say, "measured anew")
        if record is None:
            is_whole = False
            continue
        rounds.append(record)
        is_whole = is_whole and sealed.seal(record) == seal
    again = failed_in_passing(plan, rounds)
    if again:
        say(f"failed once, and tried again in another round: {', '.join(again)}")
    if again or not is_whole:
        with durable.alone_in(decided.parent):
            if decided.exists():
                set_aside(decided, "older")


def failed_in_passing(plan: Plan, rounds: list[Round]) -> list[str]:
    """Cells that no round has well, and that failed in fewer than `TRIES` of them, in passing."""
    found = []
    for id in dict.fromkeys(id for group in plan.groups for id in group.everyone):
        arms = [arm for one in rounds for arm in one.arms if arm.result.cell.id == id]
        if round_file.is_another_try_due([arm for arm in arms if arm.result.key == plan.cells[id].key]):
            found.append(id)
    return found


def _first(error: ResultError) -> str:
    """The mistake without the advice, which is followed already, and with the file that closes the sentence."""
    text = str(error)
    return f"{text.partition('. ')[0]} ({text.rpartition(': ')[2]})" if ". " in text else text
