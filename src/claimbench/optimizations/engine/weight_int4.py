"""Physics: weights are kept as 4-bit integers, 5 bits with their groups' numbers, and widened where they are
multiplied: a decode step at batch 1 reads less than a sixth of float32's bytes, a third of 16 bits'.

It costs arithmetic to widen, and more error than 8 bits; a prompt or a large batch gains nothing and may lose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from claimbench.optimizations.engine import weight_int8
from claimbench.proof import Findings
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "linear"
EXACT = False
LIBRARIES: tuple[str, ...] = ()
BITS = 4


class Settings(Frozen):
    head_bits: Literal[4, 8] = Field(default=8, description="of the output head, which decides between near words")
    compiled: bool = Field(default=True, description="compile the product with one row; else widen, then multiply")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.kernels.quantized import GroupLinear

    engine.parts.linear = lambda affine: GroupLinear(affine, BITS, settings.compiled)
    engine.parts.head = lambda affine: GroupLinear(affine, settings.head_bits, settings.compiled)
    engine.weight_bits = BITS, settings.head_bits


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    layers = evidence.spec.matrices - 1
    wanted = {"int4": layers + 1} if settings.head_bits == 4 else {"int4": layers, "int8": 1}
    return weight_int8.proven_codes("weight_int4", evidence, wanted)
