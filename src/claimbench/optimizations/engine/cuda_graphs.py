"""Physics: saves launches. A decode step of a small model is hundreds of kernels of a few microseconds each, and the
host takes longer to launch one than the GPU to run it. Captured once, all of them are launched by one call, with
nothing for Python to do. It gains nothing where the GPU is busy anyway: large models, large batches, long sequences.

A graph fixes shapes and addresses. So there is one for each bucket: batches are padded to a power of two, keys to a
multiple of `key_multiple`, which costs the excess; the cache stays in one place, so that requests which join or leave
cost a copy into it. The first step in a bucket captures it.
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
    from claimbench.engine.model.spec import Spec
    from claimbench.engine.pass_setup import PassSetup
    from claimbench.engine.steps.cuda_graphs import GraphedStep

SEAM = "step"
EXACT = True
LIBRARIES: tuple[str, ...] = ()
NEEDS = frozenset({"cache_static"})
CLASHES = frozenset({"reused_buffers"})  # a graph has addresses of its own, and would not follow a buffer that grows


class Settings(Frozen):
    key_multiple: int = Field(default=128, ge=1, description="attention goes over a multiple of this many keys")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.device != "cuda":
        return "captures CUDA graphs, and a CPU has none"
    if cell.workload.new_tokens < 2:
        return "captures decode steps, and a workload of one new token has none"
    if cell.uses("flash_everywhere"):
        return "a static cache is masked, and the flash kernel on a GPU takes no mask"
    return None


def lacks(spec: Spec, settings: Settings) -> str | None:
    return spec.unlike_a_graph


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.steps.cuda_graphs import GraphedStep, Home, capture_on_gpu

    home = Home()

    def step_graphed(setup: PassSetup) -> GraphedStep:
        return GraphedStep(setup, home, settings.key_multiple, capture_on_gpu(engine.device))

    engine.step = step_graphed


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    passes = [step.called("GraphedStep.__call__") for step in evidence.steps]
    launches = [step.graph_launches for step in evidence.steps]
    held = bool(passes) and min(passes) >= 1 and launches == passes
    expect("cuda_graphs", held, "one CUDA graph launched for each pass of every step", f"{launches} for {passes}")
    return {"graph_launches": launches}
