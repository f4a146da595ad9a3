"""What is known of each model before it is fetched: its size on disk, whether it fits, and the least time of a step."""

from __future__ import annotations

from claimbench.cost_model import cost
from claimbench.formatting import quantity
from claimbench.planning.cell_cost import peak_bytes
from claimbench.planning.forecast import device_memory, header_of
from claimbench.schema.card import Card
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.cell import DTYPE_BYTES, Cell
from claimbench.schema.plan import Plan


def model_lines(plan: Plan, ceilings: Ceilings) -> list[str]:
    """One for each model and type that a cell loads, and one for each that cannot be loaded."""
    found: dict[tuple[str, str], Cell] = {}
    for planned in plan.cells.values():
        found.setdefault((planned.cell.checkpoint.name, planned.cell.dtype), planned.cell)
    refused = {name: one.unavailable for name, one in plan.params.checkpoints.items() if one.unavailable}
    lines = [_line(plan, cell, ceilings) for cell in found.values()]
    return [*lines, *(f"{name}: unavailable: {why}" for name, why in refused.items())]


def _line(plan: Plan, cell: Cell, ceilings: Ceilings) -> str:
    """`mine: 8.19G parameters, 16.4 GB on disk (BF16), needs 33.1 GB in float32, fits in 80 GB; a step reads ...`."""
    name, (header, problem) = cell.checkpoint.name, header_of(cell.checkpoint)
    disk = _on_disk(header.bytes_by_dtype)
    if cost.decoder_of(cell.checkpoint) is None:
        checkpoint = cell.checkpoint.model_copy(update={"card": header.card})
        cell = cell.model_copy(update={"checkpoint": checkpoint})
    model = cost.decoder_of(cell.checkpoint)
    if model is None:
        return f"{name}: {disk or 'nothing'} is known of it before it is fetched{f' ({problem})' if problem else ''}"
    size, memory, needed = DTYPE_BYTES[cell.dtype], device_memory(plan, cell), peak_bytes(cell)
    fits = f", {'fits' if needed < memory else 'does not fit'} in {quantity(memory, 'B')}" if memory else ""
    read, rate = cost.step_bytes(model, 1, 1, size), ceilings.read_bytes_per_s
    parts = [f"{quantity(model.weights)} parameters", disk, f"needs {quantity(needed, 'B')} in {cell.dtype}{fits}"]
    line = f"{name}: {', '.join(filter(None, parts))}; a step reads {quantity(read, 'B')}"
    line += f": at least {quantity(read / rate * 1e3, 'ms')}" if rate else ""
    uncounted = isinstance(model, Card) and model.kept is None
    notes = [problem, "without its cache, which cannot be counted" if uncounted else None]
    said = "; ".join(filter(None, notes))
    return f"{line} ({said})" if said else line


def _on_disk(bytes_by_dtype: dict[str, int]) -> str:
    """`16.4 GB on disk (BF16)`, the types that hold most first; nothing where it is not known."""
    if not bytes_by_dtype:
        return ""
    types = sorted(bytes_by_dtype, key=lambda dtype: -bytes_by_dtype[dtype])
    return f"{quantity(sum(bytes_by_dtype.values()), 'B')} on disk ({', '.join(types)})"
