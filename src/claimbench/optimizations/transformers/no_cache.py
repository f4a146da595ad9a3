"""Physics: saves memory, costs operations. Without a key-value cache every step processes the whole sequence again: a
step of length n costs n times the operations, and generating n tokens grows from linear to quadratic. What it saves
is the cache's bytes. It cannot help speed; it is here to show what a cache is worth.
"""

from __future__ import annotations

from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "cache"
EXACT = True
LIBRARIES: tuple[str, ...] = ()
SWITCH = "model.generate(..., use_cache=False)"
RECOMPUTES = True


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    setup.cache = "none"


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    expect("no_cache", not evidence.caches, "no key-value cache alive in mid-generation", evidence.caches)
    return {"caches": evidence.caches}
