"""What this machine lacks for a cell, known before anything is started."""

from __future__ import annotations

from claimbench import backends, optimizations
from claimbench.schema.cell import Cell


def missing_requirement(cell: Cell) -> str | None:
    """Why the cell cannot run here, as its backend or one of its optimizations says; None where it may. Cheap."""
    reason = backends.find(cell.backend).unavailable(cell)
    for use in cell.optimizations:
        module = optimizations.find(use.name)
        reason = reason or module.unavailable(cell, optimizations.settings_of(use.name, use.settings))
    return reason
