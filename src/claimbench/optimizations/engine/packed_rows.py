"""Physics: saves operations in prefill. A padded batch computes every row at the length of the longest: batch x longest
tokens go through every matrix, and batch x longest^2 scores through every softmax. Packed, the rows follow each other
without padding in one row of real tokens, and attention goes over each request by itself. On average a batch of evenly
spread lengths loses up to half of its prefill to padding; where all rows are equal there is nothing to save.

Keys, values and hidden states are spread over the padded batch as they are kept, which costs a copy of each, and
attention is launched once per request where no kernel takes all of them at once (FlashAttention on CUDA does): many
short rows on a fast device can be slower than padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "rows"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.workload.shortest is None:
        return "all rows are of one length, and there is no padding to leave out: set `shortest`"
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.steps.packed_prefill import PackedPrefill

    engine.prefill = PackedPrefill()


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    computed = [row * new for row, new in _token_shapes(evidence)]
    expected = f"only passes over {evidence.prompt_tokens} real tokens, in one row"
    held = bool(computed) and set(computed) == {evidence.prompt_tokens}
    expect("packed_rows", held, expected, _token_shapes(evidence))
    return {"prefill_tokens": computed[0], "padded_tokens": evidence.batch * evidence.prefill.cache_length}


def _token_shapes(evidence: EngineEvidence) -> list[tuple[int, int]]:
    """Shapes of what was looked up in embeddings of tokens or positions during prefill."""
    lookups = evidence.prefill.shapes.get("aten::embedding", [])
    return [(indices[0], indices[1]) for _, indices, *_ in lookups]
