"""Physics: saves bytes. The linear layers' weights are 8-bit integers with one scale per row; activations stay as
they are. Each use widens the weights and multiplies: alone, that writes a wide copy, which cannot help. Compiled, the
widening happens inside the matrix-vector product, and a decode step reads half of the bytes of 16-bit weights: it is
`compile` that turns saved bytes into saved time.
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
LIBRARIES = ("torchao",)
SWITCH = "from_pretrained(..., quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))"
IMPORTS = ("torchao.quantization",)


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None if find_spec("torchao") else "the torchao package is not installed"


def apply(setup: GenerationSetup, settings: Settings) -> None:
    """Inductor's settings stay as they are: torchao would change them for all that is compiled, the baseline is not."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    setup.load["quantization_config"] = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    stored = {kind: count for kind, count in evidence.weights.items() if kind.endswith(" int8")}
    held = sum(stored.values()) > 0 and not any(kind.startswith(("Parameter", "Int8Params")) for kind in stored)
    expect("torchao_int8", held, "weights of a torchao type that hold int8", evidence.weights)
    return {"weights": stored}
