"""The physical limit of a cell on this machine, in milliseconds. A number above its ceiling is a measurement's bug.

A pass takes at least as long as its bytes at the machine's measured read bandwidth, and at least as long as its
operations at the measured rate of a large matrix product (the roofline of Williams, Waterman and Patterson, 2009).
Everything counted here is a lower bound, so that only a mistake can beat it: activations, cache writes and a draft
model's weights are left out, and a cache that holds fewer bytes than the dtype says counts with its own.

`ceilings` is what was measured here: {"read_bytes_per_s": 1.7e10, "matmul_flops_per_s": {"float32": 2e11}}.
"""

from __future__ import annotations

from typing import Any

from claimbench import optimizations
from claimbench.cell import DTYPE_BYTES, Cell
from claimbench.model import cost


def architecture_of(cell: Cell) -> cost.Architecture:
    arch = cost.architecture(cell.checkpoint.architecture)
    kept = cell.checkpoint.keep_layers
    return arch if kept is None else arch._replace(layers=min(kept, arch.layers))


def recomputes(cell: Cell) -> bool:
    """Whether every step processes the whole sequence again."""
    return any(getattr(optimizations.find(use.name), "RECOMPUTES", False) for use in cell.optimizations)


def step_ms(cell: Cell, ceilings: dict[str, Any], prompt_tokens: int, memory: dict[str, int]) -> float | None:
    """The limit of one decode step at the mean length of this cell's decode steps; None where a rate is not known."""
    arch, batch = architecture_of(cell), cell.workload.batch
    length = prompt_tokens + cell.workload.new_tokens // 2
    weights = _step_weight_bytes(cell, arch, memory)
    if weights is None:
        return None
    if recomputes(cell):
        return _limit_ms(ceilings, cell, weights, cost.pass_flops(arch, batch, new=length, past=0, heads_at=1))
    cached = cost.kv_bytes(arch, batch, length, DTYPE_BYTES[cell.dtype])
    if "kv_cache" in memory:
        cached = min(cached, memory["kv_cache"] * length / (prompt_tokens + cell.workload.new_tokens))
    return _limit_ms(ceilings, cell, weights + cached, cost.pass_flops(arch, batch, new=1, past=length))


def prefill_ms(cell: Cell, ceilings: dict[str, Any], prompt_tokens: int, memory: dict[str, int]) -> float | None:
    """The limit of the pass over the prompt, with the head at its last position alone."""
    arch = architecture_of(cell)
    weights = _step_weight_bytes(cell, arch, memory)
    if weights is None:
        return None
    flops = cost.pass_flops(arch, cell.workload.batch, new=prompt_tokens, past=0, heads_at=1)
    return _limit_ms(ceilings, cell, weights, flops)


def _step_weight_bytes(cell: Cell, arch: cost.Architecture, memory: dict[str, int]) -> float | None:
    """What the session counted; else the cost model's figure, but not for lossy cells, whose weights may be smaller.

    A backend that reads no weights at all (the null one) has no ceiling.
    """
    if "step_weights" in memory:
        return memory["step_weights"] or None
    return arch.step_weights * DTYPE_BYTES[cell.dtype] if optimizations.is_exact(cell) else None


def _limit_ms(ceilings: dict[str, Any], cell: Cell, read_bytes: float, flops: float) -> float | None:
    bandwidth = ceilings.get("read_bytes_per_s")
    rate = ceilings.get("matmul_flops_per_s", {}).get(cell.dtype)
    if not bandwidth or not rate:
        return None
    return float(max(read_bytes / bandwidth, flops / rate)) * 1e3
