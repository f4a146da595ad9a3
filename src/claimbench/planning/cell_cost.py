"""A cell in the numbers that its cost depends on: which model, spread how over how many devices, at which precision."""

from __future__ import annotations

from claimbench import backends, optimizations
from claimbench.cost_model import cost
from claimbench.schema.cell import DTYPE_BYTES, Cell
from claimbench.schema.load import InferenceLoad, Layout

LIBRARIES_BYTES = 0.45e9
"""A process that has loaded torch and Transformers and nothing else."""


def peak_bytes(cell: Cell) -> float:
    """What a plain run of the cell holds at its worst moment."""
    load = cell.workload
    length = (load.prompt_tokens or 64) + load.new_tokens
    model = cost.decoder_of(cell.checkpoint)
    needed = cost.peak_bytes(model, load.batch, length, DTYPE_BYTES[cell.dtype]) if model else 0.0
    return LIBRARIES_BYTES * cell.devices + needed


def spread_of(cell: Cell) -> tuple[Layout, int] | None:
    """How the cell's system spreads a model, and over how many devices; None where the cost model does not know."""
    backend = backends.find(cell.backend)
    spread_of = getattr(backend, "spread", None)
    if spread_of is not None:
        spread: tuple[Layout, int] | None = spread_of(backend.Options.model_validate(cell.options))
        return spread
    several = "devices" in backend.Options.model_fields
    return None if several or not backend.LIBRARIES else ("pipeline", 1)


def load_of(cell: Cell) -> InferenceLoad | None:
    """None where its system or one of its lossy optimizations is not known to the cost model.

    A prompt that no study cut to a length counts with its words: it has at least as many tokens.
    """
    spread = spread_of(cell)
    modules = [optimizations.find(use.name) for use in cell.optimizations]
    bits = [getattr(module, "LAYER_BITS", None) for module in modules if not module.EXACT]
    if spread is None or None in bits or len(bits) > 1 or cost.decoder_of(cell.checkpoint) is None:
        return None
    layout, devices = spread
    architecture = cell.checkpoint.architecture
    workload = cell.workload
    return InferenceLoad(
        architecture=architecture if architecture in cost.architecture_names() else None,
        layers=cell.checkpoint.keep_layers,
        card=cell.checkpoint.card,
        layout=layout,
        devices=devices,
        value_bytes=DTYPE_BYTES[cell.dtype],
        layer_bits=bits[0] if bits else None,
        batch=workload.batch,
        prompt_tokens=workload.prompt_tokens or max(1, len(workload.prompt.split())),
        new_tokens=workload.new_tokens,
    )


def recomputes(cell: Cell) -> bool:
    """Whether every step processes the whole sequence again."""
    return any(getattr(optimizations.find(use.name), "RECOMPUTES", False) for use in cell.optimizations)
