"""Physics: DeepSpeed's own 8-bit weights. Each group of a weight is stored in int8 with one scale, so a step reads half
of what fp16 reads, and is turned back into fp16 inside the injected kernels before it is multiplied.

It cannot help where a step is not bound by reading weights (large batches), and the turning back costs more than is
saved where kernels do it badly: document C measured twice fp16's time at batch 1. Outputs of its int8 were reported to
be degenerate, so read the tokens and the divergence before the speed. DeepSpeed quantizes inside its injected kernels
alone: a model that AutoTP cuts would keep all weights in fp16 without a word, so `deepspeed_injection` alone takes it.
"""

from __future__ import annotations

from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "injected"
EXACT = False
LIBRARIES: tuple[str, ...] = ()
SWITCH = "deepspeed.init_inference(model, dtype=torch.int8)"
LAYER_BITS = 8


class Settings(Frozen):
    """None: DeepSpeed chooses its groups itself."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.device == "cpu":
        return "DeepSpeed's int8 runs on GPUs alone: on a CPU it says 'Data type torch.int8 is not supported'"
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    import torch

    setup.inference["dtype"] = torch.int8


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    quantized = sum(times for kind, times in evidence.weights.items() if kind.endswith(" int8"))
    # The four matrices of a layer: fused query, key and value, attention's output, and both of the feed-forward
    least = 4 * evidence.layers
    expect("deepspeed_int8", quantized >= least, f"at least {least} weights in int8", evidence.weights)
    return {"int8_weights": quantized}
