"""Physics: saves passes over the large model's weights. A small draft model proposes `tokens` tokens, a cheap step
each; the model judges them in one pass, which reads its weights once, as a single step does. With a share a of drafts
agreed to, a pass gives (1 - a^(tokens + 1)) / (1 - a) tokens. It loses where the draft costs too much or is seldom
right, and where a step is bound by operations instead of bytes (large batches, slow processors), since judging then
costs as much as decoding.

All rows of a batch keep as many tokens as the row that agrees with the fewest, so the gain shrinks with the batch.
Greedy, every token is the model's own argmax. With sampling, `drafts: sampled` draws from the draft's distribution and
keeps the model's by the rejection rule, though not the same draws; `drafts: likeliest` proposes the likeliest tokens,
is right less often, and gives the tokens that the same seeds give without it.

The draft is served by all the other techniques of the cell as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

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
CHECKPOINT_SETTING = "draft"


class Settings(Frozen):
    draft: str = Field(description="name of the checkpoint that drafts; it shares the tokenizer")
    tokens: int = Field(default=4, ge=1, description="drafted per pass, at most")
    drafts: Literal["sampled", "likeliest"] = Field(default="sampled", description="how they are chosen when sampling")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.draft is None:
        return "the cell has no draft checkpoint"
    if cell.workload.new_tokens < 3:
        return f"a workload of {cell.workload.new_tokens} new tokens leaves nothing to draft: ask for 3 or more"
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.speculation import by_draft_model, speculate

    engine.loop = speculate(by_draft_model(draw=settings.drafts == "sampled"), settings.tokens)


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    proposed, judged = evidence.calls("by_draft_model.<locals>.propose"), evidence.calls("verify")
    widths = [step.widest_lookup for step in evidence.steps]
    held = proposed > 0 and judged > 0 and max(widths) > 1
    seen = f"{proposed} proposals, {judged} passes that judge, of {widths} tokens"
    expect("draft_decoding", held, "proposals of the draft model, and passes over several tokens that judge", seen)
    return {"proposed": proposed, "judged": judged, "step_tokens": [step.columns for step in evidence.steps]}
