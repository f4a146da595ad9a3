"""Physics: saves copies and allocations. A dynamic cache concatenates one column a step, which copies the whole
cache: layers x 2 x kv_heads x head_dim x length x batch values read and written per token. A static cache is
allocated once at full length and written in place. In exchange, attention reads the whole allocation, masked, at
every step, however much longer than the sequence `length` makes it. Its constant shapes are what lets the forward
pass be compiled and captured in a graph: alone, it cannot help at short lengths.

`generate` would compile the forward pass by itself on an accelerator; that is switched off here, since compiling is a
technique of its own.
"""

from __future__ import annotations

from pydantic import Field

from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "cache"
EXACT = True
LIBRARIES: tuple[str, ...] = ()
SWITCH = 'model.generate(..., cache_implementation="static")'


class Settings(Frozen):
    length: int | None = Field(
        default=None, ge=1, description="tokens to allocate for, by the hand-written loop; absent: as many as there are"
    )


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    setup.cache, setup.cache_length = "static", settings.length


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    layers = evidence.caches.get("StaticCache", [])
    growing = [name for name in layers if name.startswith("Dynamic") or name.endswith("AndFullAttentionLayer")]
    held = list(evidence.caches) == ["StaticCache"] and bool(layers) and not growing
    expect("static_cache", held, "a StaticCache whose layers do not grow, and no other cache", evidence.caches)
    return {"caches": evidence.caches}
