"""Physics: saves work that nobody asked for. Log-probabilities of every token are a pass over batch x vocabulary
numbers in float32 at each step, and over batch x length x vocabulary in prefill; here they are computed when asked
for, and nobody asks. It cannot help where somebody does, and gains nothing to speak of where the model's own step is
long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "details"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    engine.details = None


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    passes = evidence.passes
    # the warping of typical sampling takes logarithms too, of one position's logits: [batch, vocabulary]
    logs = [shapes[0] for seen in passes for shapes in seen.shapes.get("aten::_log_softmax", []) if len(shapes[0]) == 3]
    expect("details_on_demand", evidence.details == 0, "no log-probabilities kept", f"{evidence.details} a row")
    expect("details_on_demand", not logs, "no log-softmax over positions", f"{logs}")
    return {"kept": evidence.details}
