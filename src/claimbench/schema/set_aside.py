"""Files that do not count any more are renamed beside themselves: nothing that was measured is ever deleted.

`0.json` becomes `0.json.damaged.1`, or `0.json.failed.1` where another try is due; nobody reads such a file but people.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from claimbench.schema import durable

Why = Literal["damaged", "failed", "older"]


def set_aside(path: Path, why: Why) -> Path:
    """Rename the file at `path`; its new name.

    Who calls holds the folder since before the file was read (`durable.alone_in`): another run may have put a good one
    in its place.
    """
    number = 1
    while (to := path.with_name(f"{path.name}.{why}.{number}")).exists() or to.is_symlink():
        number += 1
    durable.rename(path, to)
    return to


def failures(path: Path) -> list[Path]:
    """What failed before at `path` and was set aside, oldest first."""
    found = [one for one in path.parent.glob(f"{path.name}.failed.*") if one.suffix[1:].isdecimal()]
    return sorted(found, key=lambda one: int(one.suffix[1:]))
