"""Physics: saves launches. The plain mask is built in full for every pass: positions, comparisons, two fills and, with
ALiBi, distances, a dozen small operators before the first layer, and each layer then adds the result to its scores. In
a decode step over rows of one length nothing is hidden, so there is no mask to build nor to add. Where padding, excess
keys or ALiBi need one, it is a slice of a table that is made once; a prompt's is made once and kept for the next.

It cannot help where operators this small hide behind large ones: long prompts, large models. What is kept costs memory:
the prompt's mask, [batch if rows differ, heads if ALiBi, length, length], stays between generations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "mask"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.masks import KeptMask

    engine.mask = KeptMask()


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    built = [each.called("mask_in_full") for each in evidence.passes]
    expect("simple_mask", not any(built), "no mask built in full in any pass", built)
    made = evidence.calls("attention_bias")
    expect("simple_mask", made == 0, "no mask made in decode steps", made)
    return {"masks_built": sum(built), "masks_taken_per_step": [s.called("Tables.bias") for s in evidence.steps]}
