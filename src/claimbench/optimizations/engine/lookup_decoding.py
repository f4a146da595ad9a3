"""Physics: saves passes over the weights, for nothing. Text that repeats itself (code, extraction, summaries) is
drafted by looking up what followed the last time; the model judges `tokens` drafts in one pass, which reads its
weights once, as a single step does. It gains nothing on text that repeats nothing, and loses where a step is bound by
operations instead of bytes (large batches, slow processors), since judging then costs as much as decoding.

All rows of a batch keep as many tokens as the row that agrees with the fewest, so the gain shrinks with the batch. With
sampling, equal seeds give the tokens that they give without it.
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

SEAM = "speculation"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    tokens: int = Field(default=10, ge=1, description="drafted per pass, at most")
    ngram: int = Field(default=2, ge=1, description="longest end of the sequence that is looked for in it")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.workload.new_tokens < 3:
        return f"a workload of {cell.workload.new_tokens} new tokens leaves nothing to draft: ask for 3 or more"
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.speculation import by_lookup, speculate

    engine.loop = speculate(by_lookup(settings.ngram), settings.tokens)


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    """Text that never repeats itself gives no draft: then the look-ups alone are seen."""
    looked, judged = evidence.calls("latest_repeat"), evidence.calls("verify")
    widths = [step.widest_lookup for step in evidence.steps]
    held = looked > 0 and (judged == 0 or max(widths) > 1)
    seen = f"{looked} look-ups, {judged} passes that judge, of {widths} tokens"
    expect(
        "lookup_decoding", held, "look-ups in the sequence, and passes over several tokens for what they found", seen
    )
    return {"looked_up": looked, "judged": judged, "step_tokens": [step.columns for step in evidence.steps]}
