"""Physics: saves copies and allocations. A cache that is concatenated at every token reads and writes all of itself,
layers x 2 x kv_heads x head_dim x length x batch values, to add one column; this one is allocated once, at the full
length of a generation, writes the column in place, and is handed from one generation to the next. Attention still reads
as many keys as there are: no excess is masked. It costs the memory of the full length from the first token, and cannot
help where the weights outweigh the cache by far: a copy of little takes little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "kv"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from functools import partial

    from claimbench.engine.kv_cache import AllocatedCache, Reused

    engine.cache = Reused(partial(AllocatedCache, ahead=None))


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    room = evidence.cache_shape
    slots = -(-room.length // room.key_multiple) * room.key_multiple
    held = [seen.cache_bytes for seen in evidence.passes]
    expect(
        "cache_static",
        evidence.cache == "AllocatedCache" and set(held) == {slots * room.column_bytes},
        f"an AllocatedCache of {slots} slots of {room.column_bytes} bytes in every pass",
        f"{evidence.cache} of {held} bytes",
    )
    times = evidence.cache_allocations
    expect("cache_static", times == 1, "one allocation for all generations so far", f"{times}")
    return {"cache_bytes": held[0], "allocations": times}
