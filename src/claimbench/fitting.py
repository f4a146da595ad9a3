"""What a search for the largest batch that fits saw and found. Pure; what it runs is frontier.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from claimbench.cell import Frozen
from claimbench.errors import ResultError

FITS = ("ok", "wrong")
FAILS = ("oom", "implied-oom")


class Trial(Frozen):
    batch: int
    outcome: str
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


def search(swept: list[Trial], attempt: Callable[[int], Trial]) -> Frontier:
    """Halve the gap until it is one row wide, or until a trial ends in something else than memory.

    What fits is taken to fit below as well.
    """
    trials = sorted(swept, key=lambda trial: trial.batch)
    fails = min((trial.batch for trial in trials if trial.outcome in FAILS), default=None)
    below = [trial.batch for trial in trials if trial.outcome in FITS and (fails is None or trial.batch < fails)]
    fits = max(below, default=None)
    if fails is None and fits is None:
        return Frontier(fits=None, fails=None, trials=tuple(trials), reason="no batch of the sweep could be tried")
    if fails is None:
        return Frontier(fits=fits, fails=None, trials=tuple(trials), reason="no batch of the sweep was out of memory")
    if fits is None:
        return Frontier(fits=None, fails=fails, trials=tuple(trials), reason="no batch of the sweep fitted")
    while fails - fits > 1:
        trial = attempt((fits + fails) // 2)
        trials.append(trial)
        if trial.outcome in FITS:
            fits = trial.batch
        elif trial.outcome in FAILS:
            fails = trial.batch
        else:
            reason = f"batch {trial.batch} ended {trial.outcome}: {trial.reason}"
            return Frontier(fits=fits, fails=fails, trials=tuple(trials), reason=reason)
    return Frontier(fits=fits, fails=fails, trials=tuple(trials))


def told(found: Frontier) -> str:
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
