"""Physics: saves bytes. The linear layers' weights are 4-bit integers with a scale and a zero point per `group_size`:
about 4.25 bits a weight, and a decode step reads a quarter of the bytes of 16-bit weights. One kernel unpacks and
multiplies on the GPU's matrix units, which needs bfloat16 activations. It cannot help prefill, which is bound by
operations.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from claimbench.cost_model import cost
from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "weights"
EXACT = False
LIBRARIES = ("torchao",)
SWITCH = "from_pretrained(..., quantization_config=TorchAoConfig(Int4WeightOnlyConfig(group_size={group_size})))"
IMPORTS = ("torchao.quantization",)

KERNEL = "aten::_weight_int4pack_mm"


class Settings(Frozen):
    group_size: Literal[32, 64, 128, 256] = 128


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.device != "cuda":
        return "torchao's int4 weight-only kernel needs CUDA"
    if cell.dtype != "bfloat16":
        return f"torchao's int4 weight-only kernel takes bfloat16 activations, not {cell.dtype}"
    architecture = cost.architecture_of(cell.checkpoint)
    for width in (architecture.hidden, architecture.intermediate) if architecture else ():
        if width % settings.group_size:
            return f"groups of {settings.group_size} do not divide rows of {width}: torchao would skip those layers"
    return None if find_spec("torchao") else "the torchao package is not installed"


def apply(setup: GenerationSetup, settings: Settings) -> None:
    """Inductor's settings stay as they are: torchao would change them for all that is compiled, the baseline is not."""
    from torchao.quantization import Int4WeightOnlyConfig
    from transformers import TorchAoConfig

    config = Int4WeightOnlyConfig(
        group_size=settings.group_size, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
    )
    setup.load["quantization_config"] = TorchAoConfig(config)


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    packed = {kind: count for kind, count in evidence.weights.items() if kind.startswith("Int4")}
    expect("torchao_int4", bool(packed), "weights of torchao's int4 type", evidence.weights)
    expect("torchao_int4", KERNEL in evidence.operators, KERNEL, sorted(evidence.operators))
    return {"weights": packed}
