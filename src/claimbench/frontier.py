"""The largest batch that fits, to the row: between the last swept batch that fitted and the first that did not.

A plan is known before anything runs, and what a search tries is not. So a search is one job behind the sweep: it halves
the gap, each trial in a fresh supervised process like any block, with one timed generation. Trials are results beside
the search's own file, so one that was interrupted goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

from claimbench import result
from claimbench.cell import Cell
from claimbench.fitting import Frontier, Trial, search
from claimbench.measure import measure
from claimbench.result import Key, Result


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
    """Search between the `swept` results, whatever batch `cell` has, and write what was found to `output`."""

    def attempt(batch: int) -> Trial:
        path = output.parent / f"{batch}.json"
        return _trial(measure(at_batch(cell, batch), 0, key, path, checkpoint=checkpoint, draft=draft, python=python))

    found = search([_trial(result.read(path), swept=True) for path in swept], attempt)
    result.write_json(output, found.model_dump(mode="json"))
    return found


def at_batch(cell: Cell, batch: int) -> Cell:
    """`cell` with so many rows, generated twice: memory is at its height at the end of each."""
    protocol = cell.protocol.model_copy(update={"samples": 1, "warmup_min": 1, "warmup_max": 1})
    workload = cell.workload.model_copy(update={"batch": batch})
    return cell.model_copy(update={"workload": workload, "protocol": protocol})


def _trial(record: Result, swept: bool = False) -> Trial:
    batch = record.cell.workload.batch
    return Trial(batch=batch, outcome=record.outcome, reason=record.reason, swept=swept)
