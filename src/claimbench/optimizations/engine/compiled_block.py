"""Physics: saves launches and round trips through memory inside a layer, and most of the time to compile. The layers of
a decoder are one piece of code with different weights: compiled once, it serves all of them, so compiling costs one
layer instead of all. Fusion stops at the layer's edge, and the host still calls each layer: less is saved than by one
graph for the whole step. It cannot help where reading the weights already fills the time.

One graph serves every layer at every length, since no length is a number in Python: the cache is static, and attention
goes over all of its slots, which costs most at short lengths. The prompt is not compiled.
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


class Settings(Frozen):
    mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
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

    from claimbench.engine.steps.static import how_to_compile, step_of_compiled_layers

    engine.step = partial(step_of_compiled_layers, how=how_to_compile(settings.mode, settings.code))


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    steps, wanted = len(evidence.steps), evidence.layers
    regions = [step.compiled_regions for step in evidence.steps]
    held = steps > 0 and min(regions) >= wanted
    expect("compiled_block", held, f"{wanted} compiled regions in each of {steps} decode steps", regions)
    return {"compiled_regions": regions, "graphs": evidence.compiled.graphs, "recompiles": evidence.compiled.recompiles}
