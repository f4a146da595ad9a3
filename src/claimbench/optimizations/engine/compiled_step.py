"""Physics: saves launches, round trips through memory and Python. A whole decode step, token ids in and logits out, is
one graph of fused kernels: chains of small operations stay in registers, and the host makes one call instead of
hundreds; with `reduce-overhead` or `max-autotune` on a GPU, one captured graph. Weights are still read once a step:
where that fills the time, as in large models, it cannot help much. Compiling costs seconds to minutes before the first
token.

One graph serves the whole generation, since no length is a number in Python: the cache is static, and attention goes
over all of its slots, which costs most at short lengths. The prompt is not compiled. Other widths, as speculation asks
for, are compiled when they come up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen
from claimbench.system.compilers import no_compiled_step

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence
    from claimbench.engine.model.spec import Spec

SEAM = "step"
EXACT = True
LIBRARIES: tuple[str, ...] = ("triton",)
IMPORTS = ("torch._inductor.compile_fx",)
NEEDS = frozenset({"cache_static"})


GRAPHED = ("reduce-overhead", "max-autotune")
"""Modes that capture a CUDA graph, or silently do not: then it is not what was asked for."""


class Settings(Frozen):
    mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    code: Literal["fused", "traced"] = Field(
        default="fused", description="fused kernels, or the traced operators one by one: what losing the Python saves"
    )


def compiles(settings: Settings) -> bool:
    return True


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return no_compiled_step(cell, machine_code=settings.code == "fused")


def lacks(spec: Spec, settings: Settings) -> str | None:
    return spec.unlike_a_graph


def apply(engine: Engine, settings: Settings) -> None:
    from functools import partial

    from claimbench.engine.steps.static import how_to_compile, step_compiled

    engine.step = partial(step_compiled, how=how_to_compile(settings.mode, settings.code))


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    steps = len(evidence.steps)
    regions = [step.compiled_regions for step in evidence.steps]
    layers = sum(
        count for step in evidence.steps for name, count in step.timed_calls.items() if "Layer.forward" in name
    )
    held = steps > 0 and min(regions) >= 1 and layers == 0
    expected = f"compiled regions and no layer called in each of {steps} decode steps"
    expect("compiled_step", held, expected, f"{regions} regions, {layers} layers")
    if settings.mode in GRAPHED and evidence.device == "cuda":
        launches = [step.graph_launches for step in evidence.steps]
        expect("compiled_step", min(launches) >= 1, "a CUDA graph launched in each step", launches)
    return {"compiled_regions": regions, "graphs": evidence.compiled.graphs, "recompiles": evidence.compiled.recompiles}
