"""Physics: saves nothing and cannot help under `generate`. `torch.compile(model)` returns a wrapper that compiles its
own call; every other attribute, `generate` among them, is the original model's, and that calls the original's forward
pass. So `torch.compile(model).generate(...)` runs uncompiled. It is here because it is what document A timed as
"compiled"; the proof says how many compiled regions ran. Driven by the hand-written loop, which calls the wrapper, it
does compile.
"""

from __future__ import annotations

from typing import Literal

from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "compile"
EXACT = True
LIBRARIES = ("triton",)
SWITCH = 'model = torch.compile(model, mode="{mode}")'
IMPORTS = ("torch._inductor.compile_fx",)


class Settings(Frozen):
    mode: Literal["default", "reduce-overhead", "max-autotune"] = "max-autotune"
    fullgraph: bool = False


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    import torch

    setup.transforms.append(lambda model: torch.compile(model, mode=settings.mode, fullgraph=settings.fullgraph))


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    held = evidence.wrapper == "OptimizedModule"
    expect("compile_wrapped", held, "the wrapper that torch.compile makes", evidence.wrapper)
    return {
        "wrapper": evidence.wrapper,
        "compiled_regions": evidence.compiled_regions,
        "graphs": evidence.compiled.graphs,
    }
