"""Physics: saves copies. A cache that is concatenated at every token reads and writes all of itself, layers x 2 x
kv_heads x head_dim x length x batch values, to add one column. Allocated `ahead` tokens ahead, it is copied every
`ahead` tokens instead, and written in place in between: the copying falls to one part in `ahead`. Requests can still
join and leave, since nothing is tied to a full length. The steps that allocate cost as much as before. It cannot help
where the weights outweigh the cache by far, and a short cache is copied as fast as it is indexed.
"""

from __future__ import annotations

from operator import ge
from typing import TYPE_CHECKING

from pydantic import Field

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
    ahead: int = Field(default=8, ge=1, description="tokens that there is room for beyond those that are there")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from functools import partial

    from claimbench.engine.kv_cache import AllocatedCache

    engine.cache = partial(AllocatedCache, ahead=settings.ahead)


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    room, passes = evidence.cache_shape, evidence.passes
    capacity, expected = 0, []
    for seen in passes:
        if seen.cache_length > capacity:  # full: as many slots as there are tokens, and `ahead` more
            capacity = -(-(seen.cache_length + settings.ahead) // room.key_multiple) * room.key_multiple
        expected.append(capacity)
    slots = [seen.cache_bytes // room.column_bytes for seen in passes]
    # drafts that are not kept need room as well, so that it may be full sooner
    drafted = any(step.widest_lookup > 1 for step in evidence.steps)
    held = slots == expected or (drafted and slots[0] == expected[0] and all(map(ge, slots, expected)))
    wanted = f"an AllocatedCache with room for {expected} tokens after each pass"
    found = f"{evidence.cache} with room for {slots}"
    expect("cache_preallocated", evidence.cache == "AllocatedCache" and held, wanted, found)
    times, least = evidence.cache_allocations, len(set(slots))
    held = times is not None and (times == least or (drafted and times > least))
    expect("cache_preallocated", held, f"{least} allocations so far", f"{times}")
    return {"slots": slots, "allocations": times}
