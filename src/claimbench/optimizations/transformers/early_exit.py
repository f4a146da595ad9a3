"""Physics: saves passes over the upper layers. The model drafts with its own first `layers` layers and output head,
and checks the drafts with all of them in one pass. No second model is held. It needs weights trained to be read at
that depth; it cannot help others, which accept almost no draft: every step pays for drafting and gets one token.
There it is a negative control.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import Field

from claimbench.cost_model import cost
from claimbench.errors import Unavailable
from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import NO_DRAFTS, GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "draft"
EXACT = True
LIBRARIES: tuple[str, ...] = ()
SWITCH = "model.generate(..., assistant_early_exit={layers})"
CLASHES = frozenset({"forward_loop", "no_cache", "static_cache"})


class Settings(Frozen):
    layers: int = Field(ge=1, description="the layers that draft, counted from the first")
    num_assistant_tokens: int = Field(default=4, ge=1, description="drafted per pass, at most")
    confidence_threshold: float = Field(default=0.4, ge=0, lt=1, description="stop drafting below it; 0 never does")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    model = cost.decoder_of(cell.checkpoint)
    if model is not None and settings.layers >= model.layers:
        return f"asks for an exit after {settings.layers} layers of a model of {model.layers}"
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    setup.drafts = True
    setup.generate["assistant_early_exit"] = settings.layers
    setup.drafting |= {
        "num_assistant_tokens": settings.num_assistant_tokens,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": settings.confidence_threshold,
    }
    setup.unsupported += [*NO_DRAFTS, "layer types producing a cache"]
    setup.around.append(lambda: said_in_words(settings.layers))


@contextmanager
def said_in_words(layers: int) -> Iterator[None]:
    """Where a family counts its layers in another place, the library runs on without keys and values for the rest."""
    try:
        yield
    except IndexError as error:
        raise Unavailable(f"Transformers cannot leave a model of this family after {layers} layers") from error


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    seen = evidence.candidate_generators
    expect("early_exit", seen == ["EarlyExitCandidateGenerator"], "the early exit's candidate generator", seen)
    return {"candidate_generators": seen, "step_tokens": evidence.step_tokens}
