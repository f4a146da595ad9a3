"""What a search for the largest batch that fits saw and found. Pure; what it runs is measuring/frontier.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from claimbench.errors import ResultError
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


def read(path: Path) -> Frontier:
    """
    Raises:
        ResultError: there is no such file, or it is of another version.
    """
    try:
        return Frontier.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise ResultError(
            f"{path}: no search for a frontier can be read ({first}). Delete it and run again."
        ) from error
