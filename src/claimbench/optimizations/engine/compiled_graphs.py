"""Physics: saves launches and round trips through memory at once, and the excess of keys. The step is compiled, so that
chains of small operations are one kernel and each matrix of a single row is a sum that Inductor tunes; its kernels are
then captured in a graph of our own, one for each bucket of keys, so that attention goes over the keys that there are
and not over all slots of the cache. `compiled_step` with a mode that captures goes over all of them.

It cannot read less than the weights. Compiling costs minutes before the first token; batches are padded to a power of
two, keys to a multiple of `key_multiple`, and the first step in a bucket captures it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from claimbench.optimizations.engine import cuda_graphs
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen
from claimbench.system.compilers import no_compiled_step

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence
    from claimbench.engine.model.spec import Spec
    from claimbench.engine.pass_setup import PassSetup
    from claimbench.engine.steps.cuda_graphs import GraphedStep

SEAM = "step"
EXACT = True
LIBRARIES: tuple[str, ...] = ("triton",)
IMPORTS = ("torch._inductor.compile_fx",)
NEEDS = frozenset({"cache_static"})
CLASHES = frozenset({"reused_buffers"})  # a graph has addresses of its own, and would not follow a buffer that grows


class Settings(Frozen):
    key_multiple: int = Field(default=256, ge=1, description="attention goes over a multiple of this many keys")
    mode: Literal["default", "max-autotune-no-cudagraphs"] = Field(
        default="max-autotune-no-cudagraphs", description="of torch.compile; the graphs are captured around it"
    )
    code: Literal["fused", "traced"] = Field(
        default="fused", description="fused kernels, or the traced operators one by one: what losing the Python saves"
    )


def compiles(settings: Settings) -> bool:
    return True


def unavailable(cell: Cell, settings: Settings) -> str | None:
    plain = cuda_graphs.Settings(key_multiple=settings.key_multiple)
    return cuda_graphs.unavailable(cell, plain) or no_compiled_step(cell, machine_code=settings.code == "fused")


def lacks(spec: Spec, settings: Settings) -> str | None:
    return spec.unlike_a_graph


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.steps import cuda_graphs as steps
    from claimbench.engine.steps.static import how_to_compile

    home = steps.Home()

    def step_graphed(setup: PassSetup) -> GraphedStep:
        body = steps.compiled_body(how_to_compile(settings.mode, settings.code))
        return steps.GraphedStep(setup, home, settings.key_multiple, steps.capture_on_gpu(engine.device), body)

    engine.step = step_graphed


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    """Compiled code shows in no replay: that the graphs are of it, the compiler's own count says."""
    passes = [step.called("GraphedStep.__call__") for step in evidence.steps]
    launches = [step.graph_launches for step in evidence.steps]
    held = bool(passes) and min(passes) >= 1 and launches == passes
    expect("compiled_graphs", held, "one CUDA graph launched for each pass of every step", f"{launches} for {passes}")
    made = evidence.compiled.graphs
    expect("compiled_graphs", made >= 1, "a step that was compiled before it was captured", f"{made} compiled graphs")
    return {"graph_launches": launches, "graphs": made, "recompiles": evidence.compiled.recompiles}
