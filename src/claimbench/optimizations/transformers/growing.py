"""Physics: saves nothing, costs the first call. Before the workload's own generation come `calls` smaller ones in the
same process, each larger than the one before: in new tokens, or in rows of the batch. Compiled code is made for the
shapes that it has seen: another maximum length or batch may have to be compiled anew, and a cache of fixed size has to
be allocated anew. The bytes and operations of the later, timed generations are the same, but code that was made to
suit several shapes may be slower than code for one: it cannot help speed. Uncompiled, it changes nothing.

It is here for claims about recompilation: `recompiles` counts them, and the time of the first call has them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell, Workload
from claimbench.schema.frozen import Frozen

SEAM = "history"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    of: Literal["new_tokens", "batch"] = Field(default="new_tokens", description="what grows from call to call")
    calls: int = Field(default=3, ge=1, description="smaller generations before the first whole one, each once")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    full = getattr(cell.workload, settings.of)
    least = (settings.calls + 1) * (2 if settings.of == "new_tokens" else 1)  # one token alone has no decode step
    if full < least:
        return f"{settings.calls} smaller calls before one of {settings.of} {full} need at least {least}"
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    setup.earlier = lambda workload: smaller(workload, settings)


def smaller(workload: Workload, settings: Settings) -> list[Workload]:
    """The workloads before `workload`, evenly spaced up to it, smallest first."""
    full = getattr(workload, settings.of)
    sizes = [full * call // (settings.calls + 1) for call in range(1, settings.calls + 1)]
    return [workload.model_copy(update={settings.of: size}) for size in sizes]


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    """What was seen to come out of each generation: as many as asked for, growing in what was asked for alone."""
    shapes = [*evidence.earlier, evidence.whole]
    grew, stayed = (0, 1) if settings.of == "batch" else (1, 0)
    sizes = [shape[grew] for shape in shapes]
    held = sizes == sorted(set(sizes)) and len({shape[stayed] for shape in shapes}) == 1
    expected = f"{settings.calls} generations before, each with a larger {settings.of}, as (rows, new tokens)"
    expect("growing", held and len(evidence.earlier) == settings.calls, expected, evidence.earlier)
    return {"earlier": evidence.earlier, "recompiles": evidence.compiled.recompiles}
