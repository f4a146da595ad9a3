"""Physics: saves launches. What comes after the logits (temperature, top-k, top-p, typical, penalties, argmax, looking
for the end) is a handful of small operations; request by request, a step has batch x handful of them, and waits for
the device once per request to look at its token. Over the whole batch they are one handful, and nothing is waited for.
It cannot help a batch of 1, but for the wait, and costs the same bytes: logits are read as often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "processing"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.sampling import choose_together

    engine.choose = choose_together


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    passes = evidence.passes
    single = sum(seen.called("choose_one_by_one") for seen in passes)
    together = sum(seen.called("choose_together") for seen in passes)
    held = single == 0 and together > 0
    expected = "tokens chosen for all requests at once, and for none by itself"
    expect("vectorised_processing", held, expected, f"{together} and {single} times")
    rows = {shapes[0][0] for seen in passes for shapes in seen.shapes.get("aten::isin", [])}
    expected = f"the end looked for in {evidence.batch} rows at least"
    expect("vectorised_processing", bool(rows) and min(rows) >= evidence.batch, expected, f"{sorted(rows)}")
    return {"chosen": together, "rows": sorted(rows)}
