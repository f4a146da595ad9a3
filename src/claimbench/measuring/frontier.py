"""The largest batch that fits, to the row: between the last swept batch that fitted and the first that did not.

A plan is known before anything runs, and what a search tries is not. So a search is one job behind the sweep: it halves
the gap, each trial in a fresh supervised process like any block, with one timed generation. Trials are results beside
the search's own file, so one that was interrupted goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from claimbench.errors import ResultError
from claimbench.measuring.measure import measure
from claimbench.schema import frontier as frontier_file
from claimbench.schema import result
from claimbench.schema.cell import Cell
from claimbench.schema.frontier import Frontier, Trial
from claimbench.schema.outcome import FITS, OUT_OF_MEMORY
from claimbench.schema.result import Key, Result


def find(
    cell: Cell,
    key: Key,
    swept: list[Path],
    output: Path,
    *,
    checkpoint: Path | None,
    draft: Path | None = None,
    python: str = sys.executable,
) -> Frontier:
    """Search between the `swept` results, whatever batch `cell` has, and write what was found to `output`.

    What is there already, of another run or of one that was killed afterwards, is kept.
    """
    with suppress(ResultError):
        return frontier_file.read(output)

    def attempt(batch: int) -> Trial:
        path = output.parent / f"{batch}.json"
        return _trial(measure(at_batch(cell, batch), 0, key, path, checkpoint=checkpoint, draft=draft, python=python))

    found = search([_trial(result.read(path), swept=True) for path in swept], attempt)
    frontier_file.write(output, found)
    return found


def at_batch(cell: Cell, batch: int) -> Cell:
    """`cell` with so many rows, generated twice: memory is at its height at the end of each."""
    protocol = cell.protocol.model_copy(update={"samples": 1, "warmup_min": 1, "warmup_max": 1})
    workload = cell.workload.model_copy(update={"batch": batch})
    return cell.model_copy(update={"workload": workload, "protocol": protocol})


def _trial(record: Result, swept: bool = False) -> Trial:
    batch = record.cell.workload.batch
    return Trial(batch=batch, outcome=record.outcome, reason=record.reason, swept=swept)


def search(swept: list[Trial], attempt: Callable[[int], Trial]) -> Frontier:
    """Halve the gap until it is one row wide, or until a trial ends in something else than memory.

    What fits is taken to fit below as well.
    """
    trials = sorted(swept, key=lambda trial: trial.batch)
    fails = min((trial.batch for trial in trials if trial.outcome in OUT_OF_MEMORY), default=None)
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
        elif trial.outcome in OUT_OF_MEMORY:
            fails = trial.batch
        else:
            reason = f"batch {trial.batch} ended {trial.outcome}: {trial.reason}"
            return Frontier(fits=fits, fails=fails, trials=tuple(trials), reason=reason)
    return Frontier(fits=fits, fails=fails, trials=tuple(trials))
