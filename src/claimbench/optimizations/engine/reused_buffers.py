"""Physics: saves allocations. Every operator of a step asks for memory and gives it back, dozens of times a layer, for
kilobytes each. What a matrix gives, the residual stream, the tokens so far and their positions are allocated once here
and written over, and the sequence is not copied to add a token: six allocations a layer less, and five a step. It
gains little where the allocator keeps what it was given back. On a CPU, large tensors come as fresh pages from the
system, with a fault for each page, so prefill gains more than a step. In exchange, what the largest pass needs is held
all the time. It cannot help what plans its own memory: compiled steps, graphs, native code.

Norms, softmax and products of attention still allocate: they are other techniques' seams, and many have no `out`
argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "buffers"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.buffers import Reused, add_in_place

    engine.buffers = Reused
    engine.parts.add = add_in_place


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    passes = evidence.passes
    fresh, reused = (
        sum(seen.called(f"{kind}.{method}") for seen in passes for method in ("extend", "positions"))
        for kind in ("Fresh", "Reused")
    )
    tokens = sum(seen.columns for seen in passes)
    held = fresh == 0 and reused >= tokens
    expected = f"{tokens} tokens written behind the sequence, and nothing made anew for it"
    expect("reused_buffers", held, expected, f"{reused} uses of kept tensors and {fresh} of new ones")
    return {"kept": reused, "matrices": evidence.modules.get("BufferedLinear", 0)}
