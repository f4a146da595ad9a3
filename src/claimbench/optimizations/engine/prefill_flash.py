"""Physics: saves bytes in prefill. Plain attention writes a matrix of scores, batch x heads x length x length, to
memory and goes over it five times: scale, mask, softmax, narrow, multiply. A flash kernel keeps it on the chip, in
tiles, and hides the future without a mask: traffic and memory grow linearly with the length. Decode steps stay as they
are, since a single query leaves such a kernel little to do in parallel. At a short prompt, where the weights are most
of the traffic, it gains nothing.

The kernel is PyTorch's own, forced: where it cannot run, nothing stands in for it. On CUDA it is FlashAttention-2, in
16 bits, without masks: rows of several lengths must be packed (`packed_rows`), and BLOOM's ALiBi is out of reach. The
CPU's takes masks and float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.cost_model import cost
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence
    from claimbench.engine.model.spec import Spec

SEAM = "flash"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return no_kernel(cell)


def no_kernel(cell: Cell) -> str | None:
    """Why FlashAttention has no kernel for the prompts of the cell."""
    if cell.device != "cuda":
        return None
    arch = cost.architecture_of(cell.checkpoint)
    if arch is not None and arch.family == "bloom":
        return "FlashAttention takes no ALiBi on CUDA"
    if cell.dtype == "float32":
        return "FlashAttention computes in 16 bits on CUDA, and the cell is in float32"
    if arch is not None and (arch.head_dim % 8 or arch.head_dim > 256):
        return f"FlashAttention needs a head of a multiple of 8, up to 256, on CUDA, and this one has {arch.head_dim}"
    if cell.workload.shortest is not None and not cell.uses("packed_rows"):
        return "FlashAttention takes no mask on CUDA, which padded rows need: add packed_rows"
    return None


def lacks(spec: Spec, settings: Frozen) -> str | None:
    if spec.score_cap is not None:
        return "PyTorch's flash kernels have no soft cap on scores, and this model has one"
    return "PyTorch's flash kernels have no sinks, and this model's heads have" if spec.sinks else None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.kernels import flash

    flash.check_device(engine.device)
    engine.parts.attend_prompt = flash.attention_on(engine.device)
    engine.parts.causal = lambda past, *_: past == 0
    if engine.device.type == "cuda":
        engine.parts.attend_packed = flash.attend_packed_on_cuda


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    from claimbench.engine.kernels import flash

    kernels = flash.kernels_in(evidence.prefill)
    expect("prefill_flash", kernels >= evidence.layers, f"a flash kernel in each of {evidence.layers} layers", kernels)
    stepped = sum(map(flash.kernels_in, evidence.steps))
    expect("prefill_flash", stepped == 0, "no flash kernel in decode steps", stepped)
    return {"prefill_kernels": kernels}
