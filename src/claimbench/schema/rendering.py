"""What a rendered report is of, `provenance.json` beside it: its plan, its inputs, its code, and each file's sha256."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, Literal, NamedTuple

from claimbench.schema import sealed
from claimbench.schema.frozen import Frozen

NAME: Final = "provenance.json"
FILES: Final = ("report.md", "report.html", "metrics.json")
FOLDERS: Final = ("figures", "plots")


class Hours(NamedTuple):
    """When the first and the last block or round began, UTC, ISO 8601."""

    first: str
    last: str


class Origin(Frozen):
    """What the numbers of a report come from."""

    plan: str
    """The first digits of its digest, which name its file."""
    commit: str | None
    """Of the code that made the plan."""
    version: str
    """Of Claimbench, when the report was rendered."""
    measured: Hours | None


class Rendering(Frozen):
    """A report that was rendered, so that another one in its place is told from it."""

    schema_version: Literal[1] = 1
    origin: Origin
    made_of: dict[str, str]
    """Seals of the inputs, by name."""
    code: str
    """A hash of the code that renders."""
    files: dict[str, str]
    """The sha256 of every file of it, by path."""


def files_in(folder: Path) -> dict[str, str]:
    """The sha256 of every file of the report in `folder`, by path; hidden ones are Snakemake's."""
    within = [path for name in FOLDERS for path in sorted((folder / name).glob("*")) if not path.name.startswith(".")]
    found = [*(path for name in FILES if (path := folder / name).is_file()), *within]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def write(folder: Path, rendering: Rendering) -> None:
    sealed.write(folder / NAME, "rendering", rendering)


def read(folder: Path) -> Rendering:
    """
    Raises:
        ResultError: it is missing, cut short, edited by hand, or of another schema.
    """
    return sealed.read(folder / NAME, "rendering", Rendering, "Render the report anew")
