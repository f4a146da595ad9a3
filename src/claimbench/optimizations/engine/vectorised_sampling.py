"""Physics: saves launches. PyTorch draws from one generator at a time, so a seed per request makes the draw a loop:
batch x (a generator, a draw). One generator serves all rows in one draw. It cannot help where tokens are not drawn,
nor at batch 1; and it gains nothing to speak of on a CPU, where a generator gives its numbers one by one in any case,
and a launch is nothing beside a number for every token of the vocabulary.

In exchange a row's tokens depend on its company: no seed promises equal tokens in another batch. So EXACT is about
greedy tokens here, and about a batch of 1, whose seed is the request's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "draw"
EXACT = True
REDRAWS = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.sampling import draw_together

    engine.sampler = draw_together


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    draws, drawn = evidence.draws("draw_together")
    expect("vectorised_sampling", drawn == draws, f"one multinomial for each of {draws} draws", f"{drawn}")
    return {"draws": draws}
