"""Physics: saves bytes held. The linear layers' weights are 8-bit integers with one scale per row; embeddings, norms
and the output head stay. Every use widens the weights, multiplies them by their scales and writes that wide copy
before the product reads it: a decode step moves more bytes than with wide weights, so alone it cannot help speed. On
a CPU in bfloat16 there is one kernel that reads the 8-bit weights as they are: there a step can gain from them.
"""

from __future__ import annotations

from importlib.util import find_spec

from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "weights"
EXACT = False
LIBRARIES = ("optimum-quanto",)
SWITCH = 'from_pretrained(..., quantization_config=QuantoConfig(weights="int8"))'
IMPORTS = ("optimum.quanto",)

OPERATOR = "quanto::qbytes_mm"


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    found = find_spec("optimum") and find_spec("optimum.quanto")  # the second asks for the first, and fails without it
    return None if found else "the optimum-quanto package is not installed: make extras"


def apply(setup: GenerationSetup, settings: Settings) -> None:
    from transformers import QuantoConfig

    setup.load["quantization_config"] = QuantoConfig(weights="int8")


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    layers = evidence.modules.get("QLinear", 0)
    stored = evidence.weights.get("WeightQBytesTensor int8", 0)
    expect("quanto_int8", layers == stored > 0, "quanto's layers, each with int8 weights", evidence.weights)
    products, compiled = evidence.operators.get(OPERATOR, 0), evidence.compiled_regions > 0
    expect("quanto_int8", products > 0 or compiled, OPERATOR, sorted(evidence.operators))
    return {"layers": layers, "products": products}
