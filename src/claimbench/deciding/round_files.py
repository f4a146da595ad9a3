"""The folder of a plan's rounds: their names, and those that count for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from claimbench.errors import ResultError
from claimbench.schema import durable
from claimbench.schema import round as round_file
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import RESULTS, Plan
from claimbench.schema.round import Round
from claimbench.schema.set_aside import set_aside

ROUNDS = RESULTS / "rounds"
STAMP = "%Y%m%dT%H%M%S.%fZ"
"""Of a round's file: when it began."""

Say = Callable[[str], None]


def next_path(folder: Path) -> Path:
    """Of a round that begins now. Names are the order of rounds, and of looks at them, whatever the clock says."""
    stems = sorted(path.stem for path in folder.glob("*.json"))
    begins = datetime.now(UTC)
    with suppress(ValueError, IndexError):  # the last was named by hand, or there is none
        begins = max(begins, datetime.strptime(stems[-1], STAMP).replace(tzinfo=UTC) + timedelta(microseconds=1))
    return folder / f"{begins.strftime(STAMP)}.json"


def sat_in(record: Round) -> set[tuple[str, str]]:
    """(cell, key) of every arm, its twin's among them; who lacked memory in company did not sit."""
    arms = [arm for arm in record.arms if not (record.in_company and arm.result.outcome == Outcome.OOM)]
    return {(arm.result.cell.id, arm.result.key.id) for arm in arms}


def is_readable(path: Path) -> bool:
    with suppress(ResultError):
        return bool(round_file.read(path))
    return False


def read_rounds(plan: Plan, folder: Path, say: Say) -> dict[str, Round]:
    """The rounds in `folder` that a cell of the plan sat in under its key, by path; a damaged file is set aside."""
    wanted = {(id, plan.cells[id].key.id) for group in plan.groups for id in group.everyone}
    found: dict[str, Round] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = round_file.read(path)
        except ResultError as error:
            say(f"left out: {error}")
            with durable.alone_in(folder):
                if path.exists() and not is_readable(path):
                    set_aside(path, "damaged")
            continue
        if wanted & sat_in(record):
            found[str(path)] = record
    return found
