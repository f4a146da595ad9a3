"""Physics: saves bytes in prefill. The kernel of the flash-attn package keeps scores on the chip, in tiles, and
splits the work over the sequence: memory grows linearly with length, and prefill is faster as length grows. A decode
step at batch 1 and short context reads the weights and little else, so attention is not what bounds it: there it
cannot help, and its own launch overhead may cost.
"""

from __future__ import annotations

from importlib.util import find_spec

from claimbench.cost_model import cost
from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "attention"
EXACT = True
LIBRARIES = ("flash-attn",)


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.device != "cuda":
        return "FlashAttention-2 has CUDA kernels only"
    if find_spec("flash_attn") is None:
        return "the flash-attn package is not installed"
    if cell.dtype == "float32":
        return "FlashAttention-2 takes float16 and bfloat16 only"
    architecture = cost.architecture_of(cell.checkpoint)
    if architecture is not None and architecture.family == "bloom":
        return "Transformers has eager attention only for BLOOM"
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    setup.load["attn_implementation"] = "flash_attention_2"


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    """The package's own operators; PyTorch ships kernels of similar names, which do not count."""
    seen = sorted(name for name in evidence.operators if name.startswith(("flash_attn::", "FlashAttn")))
    seen += sorted(name for name in evidence.operators if "flash_fwd" in name and "pytorch_flash" not in name)
    expect("flash_attention_2", bool(seen), "an operator of the flash-attn package", evidence.kernels or "none")
    return {"operators": seen}
