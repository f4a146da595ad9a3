"""Physics: saves Python and small operators, no bytes and no multiplications. PyTorch's `linear` transposes its matrix
at every call and folds three dimensions into two; here the matrix is held as [in, out], as flash_santacoder's
FastLinear holds it, and a product with a bias is one `addmm` on flat views. That is a microsecond or so per matrix,
which counts only where a step waits for the host. Where the product itself fills the time it cannot help.

Held so, the matrix is the same memory seen the other way round. `copied: true` lays it out anew: other kernels read it
then, which at a few rows can be slower, and a head that was the embedding becomes memory of its own.
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
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    copied: bool = Field(default=False, description="lay each matrix out as [in, out], instead of seeing it so")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.kernels.fused import FastLinear

    engine.parts.linear = lambda affine: FastLinear(affine, settings.copied)


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    matrices = evidence.spec.matrices
    held = evidence.modules.get("FastLinear", 0)
    expect("fast_linear", held == matrices, f"{matrices} matrices held as [in, out]", evidence.modules)
    folded = [each.operators.get("aten::linear", 0) for each in evidence.passes]
    expect("fast_linear", not any(folded), "no product that transposes its matrix", folded)
    return {"matrices": held}
