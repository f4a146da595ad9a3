"""What this machine lacks for a cell, known before anything is started."""

from __future__ import annotations

from claimbench import backends, optimizations
from claimbench.schema.cell import Cell


def missing_requirement(cell: Cell) -> str | None:
    """Why the cell cannot run here, as its backend or one of its optimizations says; None where it may. Cheap."""
    backend = backends.find(cell.backend)
    reason = backend.unavailable(cell)
    if cell.workload.others and not getattr(backend, "SEVERAL_PROMPTS", False):
        reason = reason or f"{cell.backend} feeds one prompt to all rows of a batch here"
    for use in cell.optimizations:
        module = optimizations.find(use.name)
        reason = reason or module.unavailable(cell, optimizations.settings_of(use.name, use.settings))
    return reason
