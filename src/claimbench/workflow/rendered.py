"""Whether the report that lies in a folder is the one of this plan, of these results and of this code.

Snakemake and DVC take a file for what it should be by its age and its name. A `git pull`, a checkout of another
revision or a copy from another machine puts someone else's report there, newer than every result of this one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from claimbench.errors import ResultError
from claimbench.schema import rendering, sealed
from claimbench.schema.json_file import write_json
from claimbench.schema.plan import RESULTS

FOREIGN = Path(".claimbench/foreign.json")


def foreign(folder: Path, plan: str, code: str, verdicts: Path = RESULTS / "verdicts.json") -> list[str]:
    """An input for the rule that renders: none where the report is missing or the right one, else a file newer than it.

    `plan` is the digest of the plan, `code` the hash of the code that renders.
    """
    why = why_foreign(folder, plan, code, sealed.seal_at(verdicts))
    if why is None:
        return []
    write_json(FOREIGN, {"why": why, "seen_ns": time.time_ns()})  # Snakemake runs nothing for a content that it knows
    seen = FOREIGN.stat().st_mtime
    for path in map(folder.joinpath, rendering.files_in(folder)):
        if path.stat().st_mtime >= seen:  # dated tomorrow, by another clock
            os.utime(path, (seen - 1, seen - 1))
    return [str(FOREIGN)]


def why_foreign(folder: Path, plan: str, code: str, verdicts: str | None) -> str | None:
    """What is wrong with the report in `folder`, None where nothing is, or where there is none.

    `verdicts` is the seal of those that it should show; None where they are still to come.
    """
    files = rendering.files_in(folder)
    if not files:
        return None
    try:
        found = rendering.read(folder)
    except ResultError as error:
        return str(error)
    if not plan.startswith(found.origin.plan):
        return f"it is of plan {found.origin.plan}"
    if files != found.files:
        changed = sorted(name for name in {*files, *found.files} if files.get(name) != found.files.get(name))
        return f"not as they were rendered: {', '.join(changed)}"
    if verdicts is not None and found.made_of.get("verdicts") != verdicts:
        return "it shows other verdicts"
    return None if found.code == code else "it was rendered by other code"
