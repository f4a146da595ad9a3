"""Physics: saves arithmetic and memory in prefill. The head is the widest matrix, vocabulary x hidden, and only the
last position's logits choose a token: at every position it costs 2 x hidden x vocabulary operations more per prompt
token, and batch x length x vocabulary numbers that are written and thrown away. It cannot help decode steps, which
have one position anyway, and the log-probabilities of the prompt are gone where somebody wants them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "head"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.decoder import head_at_last

    engine.head = head_at_last


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    positions = evidence.prefill_positions
    expect("last_token_head", positions == 1, "logits of one position of each prompt", f"{positions} positions")
    return {"positions": positions}
