"""Physics: saves passes over the last layers' weights, without a second model. The first `layers` layers, the last
norm and the head draft `tokens` tokens, and read layers / all of the weights for each; the whole model judges them in
one pass. It loses where the first layers are seldom right, as in models that were not trained to exit early, or where
the head is a large part of what a step reads, since every draft reads it too; and where a step is bound by operations
instead of bytes.

Drafts write to the first layers' own part of the cache, so no memory is added. All rows of a batch keep as many tokens
as the row that agrees with the fewest, so the gain shrinks with the batch. Greedy, every token is the model's own
argmax. With sampling, `drafts: sampled` draws from the drafts' distribution and keeps the model's by the rejection
rule, though not the same draws; `drafts: likeliest` gives the tokens that the same seeds give without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from claimbench.cost_model import cost
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
    layers: int | None = Field(default=None, ge=1, description="that draft; absent: half of them")
    tokens: int = Field(default=4, ge=1, description="drafted per pass, at most")
    drafts: Literal["sampled", "likeliest"] = Field(default="sampled", description="how they are chosen when sampling")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    model = cost.decoder_of(cell.checkpoint)
    if model is not None and (settings.layers or 1) >= model.layers:
        return f"the model has {model.layers} layers, and fewer must draft than judge"
    if cell.workload.new_tokens < 3:
        return f"a workload of {cell.workload.new_tokens} new tokens leaves nothing to draft: ask for 3 or more"
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.speculation import by_first_layers, speculate

    engine.loop = speculate(by_first_layers(settings.layers, settings.drafts == "sampled"), settings.tokens)


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    proposed, judged = evidence.calls("by_first_layers.<locals>.propose"), evidence.calls("verify")
    widths = [step.widest_lookup for step in evidence.steps]
    held = proposed > 0 and judged > 0 and max(widths) > 1
    seen = f"{proposed} proposals, {judged} passes that judge, of {widths} tokens"
    expect("self_speculation", held, "proposals of the first layers, and passes over several tokens that judge", seen)
    return {"proposed": proposed, "judged": judged, "step_tokens": [step.columns for step in evidence.steps]}
