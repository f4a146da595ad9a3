"""Physics: saves bytes. The linear layers' weights are 4-bit codes with one scale per block of 64: about 4.5 bits a
weight, 4.13 where the scales are quantized as well. Embeddings, norms and the output head stay. Every use looks the
codes up and multiplies in `compute_dtype`; on a CPU that has bfloat16 products, always in those. A decode step reads a
quarter of the bytes, if the kernel that decodes them keeps up. It cannot help prefill, which is bound by operations and
only gets the extra work, unless 16-bit products are faster than the cell's own.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from pydantic import Field

from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell, Dtype
from claimbench.schema.frozen import Frozen

SEAM = "weights"
EXACT = False
LIBRARIES = ("bitsandbytes",)
SWITCH = (
    "from_pretrained(..., quantization_config="
    'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{quant_type}"))'
)
IMPORTS = ("bitsandbytes",)
COMPUTE_DTYPE = "bfloat16"


class Settings(Frozen):
    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = False
    compute_dtype: Dtype | None = Field(default=None, description="absent: the cell's dtype")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None if find_spec("bitsandbytes") else "the bitsandbytes package is not installed"


def apply(setup: GenerationSetup, settings: Settings) -> None:
    from transformers import BitsAndBytesConfig

    setup.load["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quant_type,
        bnb_4bit_use_double_quant=settings.double_quant,
        bnb_4bit_compute_dtype=settings.compute_dtype or setup.dtype,
    )


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    layers = evidence.modules.get("Linear4bit", 0)
    expected = f"4-bit layers whose weights are all {settings.quant_type}"
    held = layers > 0 and evidence.quant_types == {settings.quant_type: layers}
    expect("bitsandbytes_4bit", held, expected, f"{layers} layers of {evidence.quant_types}")
    operators = sorted(name for name in evidence.operators if name.startswith("bitsandbytes::"))
    compiled = evidence.compiled_regions > 0
    expect("bitsandbytes_4bit", bool(operators) or compiled, "its 4-bit operators", sorted(evidence.operators))
    return {"layers": layers, "quant_types": evidence.quant_types, "operators": operators}
