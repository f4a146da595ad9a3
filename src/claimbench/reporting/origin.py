"""What a report is of: its plan, the commit and the hours that its results come from."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from claimbench import __version__
from claimbench.errors import ResultError
from claimbench.schema import plain_file, sealed
from claimbench.schema.plan import Plan
from claimbench.schema.rendering import Origin
from claimbench.schema.round import Rounds

STARTED = re.compile(r'"started_at":"([^"]+)"')


def origin_of(plan: Plan, digest: str, rounds: Rounds | None) -> Origin:
    """That of the results of `plan`, whose file is named by `digest`, and of the `rounds` of it."""
    paths = [path for planned in plan.cells.values() for path in planned.paths()]
    begun = sorted(_started(Path(path)) for path in [*paths, *(rounds.seals if rounds else ())])
    measured = (begun[0], begun[-1]) if begun else None
    return Origin(plan=digest, commit=plan.commit, version=__version__, measured=measured)


def _started(path: Path) -> str:
    """When the block or the first arm of the round at `path` began, without validating it."""
    try:
        found = STARTED.search(plain_file.read_text(path, sealed.MOST_BYTES))
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror}") from error
    if found is None:
        raise ResultError(f"{path}: it does not say when it was measured")
    return found[1]


def described(origin: Origin) -> str:
    """One line for the foot of a report's first paragraph."""
    return "; ".join([f"plan `{origin.plan}`", *_hours(origin.measured), _code(origin)])


def _hours(measured: tuple[str, str] | None) -> list[str]:
    if measured is None:
        return []
    first, last = (datetime.fromisoformat(moment) for moment in measured)
    end = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M}"
    return [f"measured {first:%Y-%m-%d %H:%M} to {end} UTC"]


def _code(origin: Origin) -> str:
    number, _, dirty = (origin.commit or "").partition("-")
    where = f"commit `{number}`" if number else "commit not recorded"
    changed = " and uncommitted changes" if dirty else ""
    return f"Claimbench {origin.version}, {where}{changed}"
