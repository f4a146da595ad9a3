"""When results were measured, read from their files without validating them: aggregating does that."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from claimbench.errors import ResultError
from claimbench.schema import plain_file, sealed
from claimbench.schema.plan import Plan
from claimbench.schema.rendering import Hours

STARTED = re.compile(r'"started_at":"([^"]+)"')


def hours_of(plan: Plan, rounds: Iterable[str]) -> Hours | None:
    """Of the blocks of `plan` and of the files of `rounds`; None where there are none."""
    paths = [path for planned in plan.cells.values() for path in planned.paths()]
    begun = sorted(_started(Path(path)) for path in [*paths, *rounds])
    return Hours(begun[0], begun[-1]) if begun else None


def _started(path: Path) -> str:
    """When the block or the round began; the first such word of a round is its own."""
    try:
        found = STARTED.search(plain_file.read_text(path, sealed.MOST_BYTES))
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror}") from error
    if found is None:
        raise ResultError(f"{path}: it does not say when it was measured")
    return found[1]
