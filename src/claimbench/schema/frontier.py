"""What a search for the largest batch that fits saw and found. Pure; what it runs is measuring/frontier.py."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from claimbench.schema import sealed
from claimbench.schema.frozen import Frozen
from claimbench.schema.outcome import Outcome


class Trial(Frozen):
    batch: int
    outcome: Outcome
    reason: str | None
    swept: bool
    """Part of the experiment's sweep, and not of the search."""


class Frontier(Frozen):
    schema_version: Literal[1] = 1
    fits: int | None
    """The largest batch that was seen to fit."""
    fails: int | None
    """The smallest that was seen to be out of memory."""
    trials: tuple[Trial, ...]
    reason: str | None = None
    """Why there is still a gap between the two; None where there is none."""

    @property
    def searched(self) -> int:
        return sum(not trial.swept for trial in self.trials)


def describe(found: Frontier) -> str:
    """What was found, as a sentence."""
    if found.reason:
        return f"Between the swept batches: not found, {found.reason}."
    if not found.searched:
        return f"Batch {found.fits} fits and {found.fails} does not."
    return f"Between the swept batches, {found.fits} fits and {found.fails} does not ({found.searched} trials)."


def write(path: Path, found: Frontier) -> None:
    sealed.write(path, "search", found)


def read(path: Path) -> Frontier:
    """
    Raises:
        ResultError: there is no such file, it was edited by hand, or it is of another version.
    """
    return sealed.read(path, "search", Frontier, "Delete it and run again: its trials are kept")
