"""Physics: saves copies. A cache that is concatenated at every token reads and writes all of itself, layers x 2 x
kv_heads x head_dim x length x batch values, to add one column. Allocated `ahead` tokens ahead, it is copied every
`ahead` tokens instead, and written in place in between: the copying falls to one part in `ahead`. Requests can still
join and leave, since nothing is tied to a full length. The steps that allocate cost as much as before. It cannot help
where the weights outweigh the cache by far, and a short cache is copied as fast as it is indexed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from claimbench.cell import Cell, Frozen
from claimbench.proof import expect

if TYPE_CHECKING:
    from claimbench.engine import Engine
    from claimbench.witness import Seen

SEAM = "kv"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    ahead: int = Field(default=8, ge=1, description="tokens that there is room for beyond those that are there")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from functools import partial

    from claimbench.model.kv_cache import AllocatedCache

    engine.cache = partial(AllocatedCache, ahead=settings.ahead)


def prove(evidence: Seen, settings: Settings) -> dict[str, Any]:
    room, capacity, expected, allocations = evidence.room, 0, [], 0
    length = 0
    for seen in (evidence.prefill, *evidence.steps):
        if seen.cache_length > capacity:  # full: as many slots as there are tokens, and `ahead` more
            capacity = -(-(seen.cache_length + settings.ahead) // room.key_multiple) * room.key_multiple
            allocations += 1
        expected.append(capacity)
        length = seen.cache_length
    held = [seen.cache_bytes / room.column_bytes for seen in (evidence.prefill, *evidence.steps)]
    expect(
        "cache_preallocated",
        evidence.cache == "AllocatedCache" and held == expected,
        f"an AllocatedCache with room for {expected} tokens after each pass",
        f"{evidence.cache} with room for {held}",
    )
    times = evidence.cache_allocations
    expect("cache_preallocated", times == allocations, f"{allocations} allocations up to {length} tokens", f"{times}")
    return {"slots": expected, "allocations": times}
