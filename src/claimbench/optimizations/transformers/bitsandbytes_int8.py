"""Physics: saves bytes. The linear layers' weights are 8-bit integers, half of 16-bit ones; embeddings, norms and the
output head stay. Activations are quantized at every call, outlier columns (above `threshold`) are multiplied apart in
16 bits, and results are scaled back: several small kernels where there was one. It cannot help where these launches
cost more than the saved bytes give back, as they usually do at batch 1.
"""

from __future__ import annotations

from importlib.util import find_spec

from pydantic import Field

from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "weights"
EXACT = False
LIBRARIES = ("bitsandbytes",)
SWITCH = "from_pretrained(..., quantization_config=BitsAndBytesConfig(load_in_8bit=True))"
IMPORTS = ("bitsandbytes",)
COMPUTE_DTYPE = "int8"
LAYER_BITS = 8


class Settings(Frozen):
    threshold: float = Field(default=6.0, ge=0, description="activations above it are outliers; 0 treats none apart")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None if find_spec("bitsandbytes") else "the bitsandbytes package is not installed"


def apply(setup: GenerationSetup, settings: Settings) -> None:
    from transformers import BitsAndBytesConfig

    setup.load["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=settings.threshold)


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    layers = evidence.modules.get("Linear8bitLt", 0)
    stored = evidence.weights.get("Int8Params int8", 0)
    expect("bitsandbytes_int8", layers == stored > 0, "8-bit layers that hold int8 weights", evidence.weights)
    operators = sorted(name for name in evidence.operators if name.startswith("bitsandbytes::int8"))
    compiled = evidence.compiled_regions > 0
    expect("bitsandbytes_int8", bool(operators) or compiled, "its int8 operators", sorted(evidence.operators))
    return {"layers": layers, "operators": operators}
