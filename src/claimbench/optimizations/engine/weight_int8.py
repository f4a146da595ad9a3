"""Physics: weights are kept as 8-bit integers, 8.5 bits with their groups' scales, and widened where they are
multiplied: a decode step at batch 1 reads about a quarter of float32's bytes, half of 16 bits'.

It costs arithmetic to widen, so a prompt or a large batch, which is bound by arithmetic, gains nothing and may lose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "linear"
EXACT = False
LIBRARIES: tuple[str, ...] = ()
BITS = 8


class Settings(Frozen):
    compiled: bool = Field(default=True, description="compile the product with one row; else widen, then multiply")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.kernels.quantized import GroupLinear

    engine.parts.linear = lambda affine: GroupLinear(affine, BITS, settings.compiled)
    engine.weight_bits = BITS, BITS


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    return proven_codes("weight_int8", evidence, {"int8": evidence.spec.matrices})


def proven_codes(name: str, evidence: EngineEvidence, wanted: dict[str, int]) -> Findings:
    """Every matrix of the model is stored as codes: the step's own where it has some, or else the modules'.

    `wanted` is how many of each format; two codes of 4 bits are a byte of the modules'.
    """
    stored = {"int8": "Tensor int8", "int4": "Tensor uint8"}
    modules = {form: evidence.weights.get(kind, 0) for form, kind in stored.items() if kind in evidence.weights}
    held = evidence.matrices or modules
    expect(name, held == wanted, f"matrices of {wanted}", f"{held}, and modules of {evidence.modules}")
    regions = sum(step.compiled_regions for step in evidence.steps)
    return {"matrices": sum(held.values()), "compiled_regions": regions}
