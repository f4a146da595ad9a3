"""Physics: weights are kept as 8-bit floating-point numbers (E4M3) with a scale for each row, and widened where they
are multiplied: a decode step at batch 1 reads a quarter of float32's bytes, half of 16 bits', and no groups' numbers.

It costs arithmetic to widen and more error than 8-bit integers in groups, which have finer steps: three bits behind the
point are a 16th of a weight's own size. A prompt or a large batch gains nothing and may lose.
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
LAYER_BITS = 8.0
CLASHES = frozenset({"cpp_block"})  # it has no such format


class Settings(Frozen):
    compiled: bool = Field(default=True, description="compile the product with one row; else widen, then multiply")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.kernels.float8 import Float8Linear

    engine.parts.linear = lambda affine: Float8Linear(affine, settings.compiled)


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    wanted, held = evidence.spec.matrices, evidence.weights.get("Tensor float8_e4m3fn", 0)
    expect("weight_fp8", held == wanted, f"{wanted} matrices of E4M3", f"{held} in modules of {evidence.modules}")
    regions = sum(step.compiled_regions for step in evidence.steps)
    return {"matrices": held, "compiled_regions": regions}
