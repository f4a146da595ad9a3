"""Physics: saves passes over the weights, without a draft model. The last tokens are looked up earlier in the
sequence, and what followed them there is the draft; the model checks `tokens` of them in one pass, which reads its
weights once. Where the output repeats the input (quoting, editing, summaries) many are accepted. It cannot help where
the output is new: there is nothing to look up, and the search and the wider passes only cost.
"""

from __future__ import annotations

from pydantic import Field

from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import NO_DRAFTS, GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "draft"
EXACT = True
LIBRARIES: tuple[str, ...] = ()
SWITCH = "model.generate(..., prompt_lookup_num_tokens={tokens})"
CLASHES = frozenset({"forward_loop", "no_cache", "static_cache"})


class Settings(Frozen):
    tokens: int = Field(default=3, ge=1, description="drafted per pass, at most")
    ngram: int = Field(default=2, ge=1, description="longest run of tokens that is looked up")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    setup.drafts = True
    setup.generate |= {"prompt_lookup_num_tokens": settings.tokens, "max_matching_ngram_size": settings.ngram}
    setup.unsupported += NO_DRAFTS


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    seen = evidence.candidate_generators
    expect("prompt_lookup", seen == ["PromptLookupCandidateGenerator"], "the lookup's candidate generator", seen)
    return {"candidate_generators": seen, "step_tokens": evidence.step_tokens}
