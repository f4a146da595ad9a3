"""Physics: saves launches and keeps the promise. PyTorch draws from one generator at a time, so a seed per request
makes the draw a loop. Noise that is a hash of (the request's seed, the token's number, the place in the vocabulary)
needs no generator: all rows are drawn at once, and a request says the same in any company, in any batch and on any
device, as far as its logits are the same. The hash costs some 20 passes over batch x vocabulary / 2 integers a step,
and cannot help where tokens are not drawn. On a CPU, where a generator gives its numbers one by one, that was a third
of the time of PyTorch's draw at every batch (one core, 49,152 tokens).

The token that is drawn is the largest of logits with Gumbel noise, so the odds are those of the softmax. The numbers
are not those of PyTorch's generators: EXACT is about greedy tokens here.
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
    from claimbench.engine.sampling import draw_by_counter

    engine.sampler = draw_by_counter


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    draws, drawn = evidence.draws("draw_by_counter")
    expect("counter_sampling", drawn == 0, "no multinomial", f"{drawn}")
    hashed = sum(seen.called("keys_of") for seen in evidence.passes)
    expect("counter_sampling", hashed == draws, f"noise hashed for each of {draws} draws", f"{hashed}")
    return {"draws": draws}
