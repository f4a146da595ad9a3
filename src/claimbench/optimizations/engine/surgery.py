"""Physics: only costs. In a server requests come and go while others decode, so the batch must be mended between two
steps. By `copy`, the key-value cache of all rows is read and written to take rows out, and once more to put rows in:
2 x 2 x layers x 2 x kv_heads x head_dim x length x batch values an event, which is what text-generation-inference did.
By `slots`, every request has its place in a cache that is allocated ahead, and the rows that join are all that is
written: `leave` rows instead of all of them. It cannot help a batch that stays as it is; it is here so that what the
others save can be seen beside what a server pays.

Every `every` steps `leave` requests leave the batch and join again: the tokens stay the same, and the copying is real.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "surgery"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    how: Literal["copy", "slots"] = Field(default="copy", description="copy all rows, or write those that join")
    every: int = Field(default=8, ge=1, description="steps from one event to the next; the first is before step 1")
    leave: int = Field(default=1, ge=1, description="requests that leave and join at each event")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.workload.batch <= settings.leave:
        return f"in a batch of {cell.workload.batch}, {settings.leave} cannot leave while others stay: raise the batch"
    if settings.how == "copy" and cell.uses("cache_static"):
        return "a static cache stays where it is, and copying makes another one: use how: slots, or cache_preallocated"
    if settings.how == "slots" and not (cell.uses("cache_static") or cell.uses("cache_preallocated")):
        return "only a cache that is allocated ahead has slots: add cache_static or cache_preallocated"
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.continuous_batching import by_copying, by_slots, exchange_every

    exchange = by_copying if settings.how == "copy" else by_slots
    engine.between_steps = exchange_every(settings.every, settings.leave, exchange)


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    events = len(range(0, len(evidence.steps), settings.every))
    tensors = 2 * evidence.layers * events
    taken, written = (
        sum(len(shapes[0]) == 4 for step in evidence.steps for shapes in step.shapes.get(name, []))
        for name in ("aten::index_select", "aten::index_copy_")
    )
    joined = evidence.calls(f"{evidence.cache}.concatenate")
    found = f"{taken} reads and {written} writes of some rows, {joined} joined caches"
    if settings.how == "copy":
        held = taken >= 2 * tensors and joined >= events and written == 0
        expected = f"{2 * tensors} reads of some rows and {events} joined caches in {events} events"
    else:
        held = taken >= tensors and written >= tensors and joined == 0
        expected = f"{tensors} reads and {tensors} writes of some rows, and no joined caches, in {events} events"
    expect("surgery", held, expected, found)
    return {"events": events, "reads": taken, "writes": written, "joined": joined}
