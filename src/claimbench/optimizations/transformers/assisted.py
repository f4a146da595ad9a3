"""Physics: saves passes over the large model's weights. A small draft model proposes several tokens, one cheap step
each; the large model checks them all in one pass, which reads its weights once, as a single decode step does. With a
share of accepted tokens, one pass gives several. It cannot help where the draft costs too much or is seldom right,
and where the large model is bound by operations instead of bytes (large batches, slow processors): checking then
costs as much as decoding.

Greedy, every kept token is the large model's own argmax. With sampling, accepted drafts are redistributed so that the
distribution is the large model's, though not the same draws.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import NO_DRAFTS, GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "draft"
EXACT = True
LIBRARIES: tuple[str, ...] = ()
SWITCH = "model.generate(..., assistant_model=draft, num_assistant_tokens={num_assistant_tokens})"
CLASHES = frozenset({"forward_loop", "no_cache", "static_cache"})
CHECKPOINT_SETTING = "draft"


class Settings(Frozen):
    draft: str = Field(description="name of the checkpoint that drafts; it shares the tokenizer")
    num_assistant_tokens: int = Field(default=20, ge=1, description="drafted per pass, at most")
    schedule: Literal["constant", "heuristic_transient"] = Field(
        default="constant", description="whether the number adapts to how many were accepted, within a generation"
    )
    confidence_threshold: float = Field(default=0.4, ge=0, lt=1, description="stop drafting below it; 0 never does")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None if cell.draft else "the cell has no draft checkpoint"


def apply(setup: GenerationSetup, settings: Settings) -> None:
    setup.drafts = setup.uses_draft = True
    setup.drafting |= {
        "num_assistant_tokens": settings.num_assistant_tokens,
        "num_assistant_tokens_schedule": settings.schedule,
        "assistant_confidence_threshold": settings.confidence_threshold,
    }
    setup.unsupported += NO_DRAFTS


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    seen = evidence.candidate_generators
    expect("assisted", seen == ["AssistedCandidateGenerator"], "a draft model's candidate generator", seen)
    return {"candidate_generators": seen, "step_tokens": evidence.step_tokens}
