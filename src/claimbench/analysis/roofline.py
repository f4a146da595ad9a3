"""The physical limit of a cell on this machine, in milliseconds. A number above its ceiling is a measurement's bug.

A pass takes at least as long as its bytes at the machine's measured read bandwidth, and at least as long as its
operations at the measured rate of a large matrix product (the roofline of Williams, Waterman and Patterson, 2009).
Everything counted here is a lower bound, so that only a mistake can beat it: activations and cache writes are left out,
padding is not counted, a cache that holds fewer bytes than the dtype says counts with its own, and a technique that
multiplies in another type is held to the faster of both rates, since some of its products stay in the cell's.

A draft model reads the whole prompt before the first token, so prefill counts its weights and operations. Decode steps
do not: a step drafts only where at least two tokens are still to come, a generation may end after one step, and how
many passes a draft takes follows from how many tokens were accepted. That is known after the run, not from the cell.

Several GPUs share what their layout lets them share: see `_sharing`. Processes on a CPU share one memory, whose
rate was measured with all cores.
"""

from __future__ import annotations

from claimbench import optimizations
from claimbench.cost_model import cost
from claimbench.cost_model.cost import decoder_of
from claimbench.cost_model.decoder import Decoder
from claimbench.cost_model.weight_bytes import least_step_bytes
from claimbench.planning.cell_cost import recomputes, spread_of
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.cell import DTYPE_BYTES, Cell, row_lengths

WEIGHTS_ALONE = frozenset({"aqlm", "awq", "gptq", "hqq"})
"""Quantized checkpoints whose products are in the cell's type; those of others may be in a faster one."""


def step_ms(cell: Cell, ceilings: Ceilings, prompt_tokens: int, memory: dict[str, int]) -> float | None:
    """The limit of one decode step at the mean length of this cell's decode steps; None where a rate is not known.

    The mean of the first step and the last, each with what was cached before it: what a window keeps stops to grow, so
    that the step in between has more.
    """
    model = decoder_of(cell.checkpoint)
    weights = _step_weight_bytes(cell, model, memory) if model else None
    if model is None or weights is None:
        return None
    new_tokens = cell.workload.new_tokens
    lengths = [row + new_tokens // 2 for row in row_lengths(cell.workload, prompt_tokens)]
    if recomputes(cell):
        flops = sum(cost.pass_flops(model, 1, new=length, past=0, heads_at=1) for length in lengths)
        return _limit_ms(ceilings, cell, weights, 0.0, flops)
    ends = [(row, row + max(0, new_tokens - 2)) for row in row_lengths(cell.workload, prompt_tokens)]
    cached = sum(cost.kv_bytes(model, 1, length, DTYPE_BYTES[cell.dtype]) for row in ends for length in row) / 2
    if "kv_cache" in memory:
        whole = cost.kv_bytes(model, len(lengths), prompt_tokens + new_tokens, DTYPE_BYTES[cell.dtype])
        cached *= min(1.0, memory["kv_cache"] / whole) if whole else 0.0
    flops = sum(cost.pass_flops(model, 1, new=1, past=length) for row in ends for length in row) / 2
    return _limit_ms(ceilings, cell, weights, cached, flops)


def prefill_ms(cell: Cell, ceilings: Ceilings, prompt_tokens: int, memory: dict[str, int]) -> float | None:
    """The limit of the pass over the prompt, with the head at its last position alone."""
    model = decoder_of(cell.checkpoint)
    weights = _step_weight_bytes(cell, model, memory) if model else None
    if model is None or weights is None:
        return None
    rows = row_lengths(cell.workload, prompt_tokens)
    read, models = weights, [model]
    draft = decoder_of(cell.draft) if cell.draft is not None else None
    if draft is not None and cell.workload.new_tokens > 1:
        models.append(draft)
        read += least_step_bytes(draft, DTYPE_BYTES[cell.dtype])
    flops = sum(cost.pass_flops(model, 1, new=row, past=0, heads_at=1) for model in models for row in rows)
    return _limit_ms(ceilings, cell, read, 0.0, flops)


def _step_weight_bytes(cell: Cell, model: Decoder, memory: dict[str, int]) -> float | None:
    """What the session counted; else the cost model's figure, but not for lossy cells, whose weights may be smaller.

    A backend that reads no weights at all (the null one) has no ceiling.
    """
    if "step_weights" in memory:
        return memory["step_weights"] or None
    return least_step_bytes(model, DTYPE_BYTES[cell.dtype]) if optimizations.is_exact(cell) else None


def _sharing(cell: Cell) -> tuple[int, int]:
    """How many devices share the reading of weights, and how many share rows: their cache and their operations.

    The layers of a pipeline work one after the other. ZeRO gathers all weights on every device; its streams are rows of
    one device each. A layout that is not known may share everything.
    """
    if cell.device == "cpu":
        return 1, 1
    layout, devices = spread_of(cell) or ("tensor_parallel", cell.devices)
    return {"pipeline": (1, 1), "tensor_parallel": (devices, devices), "zero": (1, devices)}[layout]


def _limit_ms(ceilings: Ceilings, cell: Cell, weight_bytes: float, kv_bytes: float, flops: float) -> float | None:
    bandwidth, rates = ceilings.read_bytes_per_s, ceilings.matmul_flops_per_s
    if not bandwidth or not rates.get(cell.dtype):
        return None
    named = {getattr(optimizations.find(use.name), "COMPUTE_DTYPE", cell.dtype) for use in cell.optimizations}
    used = [rates.get(dtype, 0.0) for dtype in named | {cell.dtype}]
    card = cell.checkpoint.card
    unknown = card is not None and card.quantized is not None and card.quantized not in WEIGHTS_ALONE
    computing = flops / max(used) if all(used) and not unknown else 0.0  # a rate that was not measured limits nothing
    of_weights, of_rows = _sharing(cell)
    reading = (weight_bytes / of_weights + kv_bytes / of_rows) / bandwidth
    return float(max(reading, computing / of_rows)) * 1e3
