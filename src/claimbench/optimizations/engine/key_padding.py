"""Physics: saves misaligned reads. Attention multiplies with matrices as long as the keys; kernels that work in tiles,
tensor cores above all, take the fast path only where a length is a multiple of 8 or so, and rows of the scores begin at
aligned addresses only then. Attention sees a multiple of `multiple` keys, the excess masked. It needs no copy where the
cache has room ahead. The excess is computed all the same: it costs up to `multiple` - 1 keys a step, and gains nothing
in kernels that do not care for the length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "keys"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    multiple: int = Field(default=8, ge=2, description="attention sees a multiple of this many keys")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if not (cell.uses("cache_preallocated") or cell.uses("cache_static")):
        return "only a cache that is allocated ahead has slots to pad with: add cache_preallocated or cache_static"
    return None


def apply(engine: Engine, settings: Settings) -> None:
    engine.key_multiple = settings.multiple


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    """The widest attention of a step sees all slots that were filled; drafts, with fewer, are padded as well."""
    attended = [sorted(evidence.keys_attended(step)) for step in evidence.steps]
    held = all(
        keys and keys[-1] >= step.cache_filled and all(key % settings.multiple == 0 for key in keys)
        for keys, step in zip(attended, evidence.steps, strict=True)
    )
    filled = [step.cache_filled for step in evidence.steps]
    expected = f"attention over multiples of {settings.multiple} keys where there are {filled}"
    expect("key_padding", held, expected, f"{attended}")
    return {"keys": [keys[-1] for keys in attended], "tokens": filled}
