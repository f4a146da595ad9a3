"""Physics: saves bytes in prefill. FlashAttention-2 keeps scores on the chip, in tiles, and splits the work over the
sequence: memory grows linearly with length, and prefill is faster as length grows. A decode step at batch 1 and short
context reads the weights and little else, so attention is not what bounds it: there it cannot help, and its own launch
overhead may cost.

The kernel is that of the flash-attn package where somebody compiled one, else the same compiled by Hugging Face, which
the `kernels` package fetches for this torch from their hub. The proof says which of the two ran, and at which commit.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from claimbench.cost_model import cost
from claimbench.errors import Unavailable
from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "attention"
EXACT = True
LIBRARIES = ("flash-attn", "kernels")
SWITCH = 'from_pretrained(..., attn_implementation="flash_attention_2")'
COMPILED = "kernels-community/flash-attn2"
"""On the hub, in the version that Transformers was tested with: of an organization whose kernels it loads unasked."""
PREFIXES = ("flash_attn::", "_flash_attn", "FlashAttn")
"""Of the package's operators, and of those of the compiled one, whose namespace ends in its commit."""


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.device != "cuda":
        return "FlashAttention-2 has CUDA kernels only"
    if find_spec("flash_attn") is None and (lacking := kernels_lacking()):
        return lacking
    if cell.dtype == "float32":
        return "FlashAttention-2 takes float16 and bfloat16 only"
    architecture = cost.architecture_of(cell.checkpoint)
    if architecture is not None and architecture.family == "bloom":
        return "Transformers has eager attention only for BLOOM"
    return None


def kernels_lacking() -> str | None:
    """Why Transformers cannot take compiled kernels here: it works with certain releases of `kernels` alone."""
    if find_spec("kernels") is None:
        return "flash-attn is not installed, nor is kernels, which needs no compiler (make reproduce DEVICE=cuda)"
    named = [Requirement(text) for text in metadata.requires("transformers") or []]
    wanted = [one.specifier for one in named if one.name == "kernels"]
    found = metadata.version("kernels")
    if any(found not in each for each in wanted):
        return f"Transformers {metadata.version('transformers')} takes kernels {wanted[0]}, and {found} is installed"
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    compiled = find_spec("flash_attn") is None and find_spec("kernels") is not None
    if compiled:
        fetch()
    setup.load["attn_implementation"] = COMPILED if compiled else "flash_attention_2"


def fetch() -> None:
    """From the hub, or from its cache where it is there already.

    Raises:
        Unavailable: the hub does not answer, or has none for this torch and this GPU.
    """
    from transformers.integrations.hub_kernels import load_and_register_attn_kernel

    try:
        load_and_register_attn_kernel(COMPILED)
    except (ImportError, OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unavailable(f"{COMPILED} cannot be had: {first}") from None


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    """The package's own operators; PyTorch ships kernels of similar names, which do not count."""
    seen = sorted(name for name in evidence.operators if name.startswith(PREFIXES))
    seen += sorted(name for name in evidence.operators if "flash_fwd" in name and "pytorch_flash" not in name)
    expect("flash_attention_2", bool(seen), "an operator of FlashAttention-2", evidence.kernels or "none")
    return {"operators": seen, "kernel": origin()}


def origin() -> str:
    """Whose code was loaded into this process: the package, or a commit of the compiled one."""
    if "flash_attn" in sys.modules:
        return f"flash-attn {metadata.version('flash-attn')}"
    cached = f"models--{COMPILED.replace('/', '--')}", f"kernels--{COMPILED.replace('/', '--')}"
    files = [Path(str(getattr(module, "__file__", None) or "")) for module in list(sys.modules.values())]
    for parts in (file.parts for file in files):
        if any(name in parts for name in cached) and "snapshots" in parts:
            return f"{COMPILED} at {parts[parts.index('snapshots') + 1]}, {parts[parts.index('build') + 1]}"
    return "a folder that LOCAL_KERNELS names" if os.environ.get("LOCAL_KERNELS") else "unknown"
