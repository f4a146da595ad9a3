"""Before Snakemake looks at files: what is made of results and does not follow from them is made again.

Snakemake goes by the times of files, and a clock that is set back, or a file that came from elsewhere, makes an old
table look new. So verdicts say what they were made of, down to the results. Where that is not what is there, they go
with their table: both take seconds, and nothing in them was measured. A plan that cannot be read goes likewise;
ceilings were measured, and are renamed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from claimbench.errors import ResultError
from claimbench.planning.paths import ceilings_path
from claimbench.schema import ceilings, durable, plain_file, sealed, verdicts
from claimbench.schema import plan as plan_file
from claimbench.schema import round as round_file
from claimbench.schema.plan import RESULTS, Plan
from claimbench.schema.set_aside import set_aside

Say = Callable[[str], object]

TABLE: Final = RESULTS / "table.parquet"
VERDICTS: Final = RESULTS / "verdicts.json"


def made_of_results(paths: Iterable[str]) -> str:
    """The seal of all results at `paths` together.

    Raises:
        ResultError: one is missing, or has no seal.
    """
    return sealed.seal_of({path: sealed.seal_in(Path(path)) for path in paths})


def digest_of_table(path: Path) -> str:
    """The sha256 of the file of a table."""
    return hashlib.sha256(plain_file.read_bytes(path, sealed.MOST_BYTES)).hexdigest()


def remove_stale(plan: Plan, decided: Path | None, say: Say) -> None:
    """Remove what does not follow from the plan's results as they are now."""
    own = RESULTS / "plan" / f"{plan.seal[:12]}.json"
    if own.exists() and not _is_readable(lambda: plan_file.read(own)):
        say(f"{own} cannot be read: made anew")
        durable.remove(own)
    limits = ceilings_path(plan)
    if limits.exists() and not _is_readable(lambda: ceilings.read(limits, plan.machine["key"], plan.device)):
        with durable.alone_in(limits.parent):
            say(f"{limits} cannot be used: kept as {set_aside(limits, 'damaged')}, and measured anew")
    if (TABLE.exists() or VERDICTS.exists()) and not _follow(plan, decided, limits):
        for path in (VERDICTS, TABLE):
            durable.remove(path)


def _follow(plan: Plan, decided: Path | None, limits: Path) -> bool:
    """Whether verdicts and table are of the plan, the results, the rounds and the ceilings that are there."""
    try:
        given = {
            "plan": plan.seal,
            "ceilings": sealed.seal(ceilings.read(limits, plan.machine["key"], plan.device)),
            "results": made_of_results(path for planned in plan.cells.values() for path in planned.paths()),
            "table_file": digest_of_table(TABLE),
        }
        if decided is not None:
            given["rounds"] = sealed.seal(round_file.read_summary(decided))
        sealed.require_made_of(VERDICTS, verdicts.read(VERDICTS).made_of, given, "judge")
    except (ResultError, OSError):
        return False
    return True


def _is_readable(read: Callable[[], object]) -> bool:
    try:
        read()
    except ResultError:
        return False
    return True
