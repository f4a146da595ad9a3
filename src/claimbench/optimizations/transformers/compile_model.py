"""Physics: saves launches and round trips. A compiled step is a few fused kernels instead of hundreds: chains of
small operations stay in registers, and the host launches less (with `reduce-overhead` on a GPU, one captured graph).
The weights are still read once a step: where that already fills the time, as for large models, it cannot help much.
It needs constant shapes: with a dynamic cache the length changes every step, and code is compiled anew or made slower
to suit any length.

The forward pass of decode steps is compiled, prefill is not, as `generate` does it on accelerators.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup, Phase
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEAM = "compile"
EXACT = True
LIBRARIES = ("triton",)
SWITCH = 'model.forward = torch.compile(model.forward, mode="{mode}")  # from the second pass on'
IMPORTS = ("torch._inductor.compile_fx",)
CLASHES = frozenset({"early_exit"})

Mode = Literal["default", "reduce-overhead", "max-autotune"]


class Settings(Frozen):
    mode: Mode = "default"
    fullgraph: bool = False
    dynamic: bool | None = None


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.workload.new_tokens < 2:
        return "compiles decode steps, and a workload of one new token has none"
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    setup.transforms.append(lambda model: compile_decode(model, setup.phase, settings))


def compile_decode(model: PreTrainedModel, phase: Phase, settings: Settings) -> PreTrainedModel:
    """The same model, whose forward pass is compiled from the second pass of a generation on."""
    import torch

    eager = model.forward
    compiled: Callable[..., object] = torch.compile(
        eager, mode=settings.mode, fullgraph=settings.fullgraph, dynamic=settings.dynamic
    )

    @functools.wraps(eager)
    def forward(*arguments: object, **named: object) -> object:
        if phase.prefill:
            phase.prefill = False
            return eager(*arguments, **named)
        return compiled(*arguments, **named)

    model.forward = forward
    return model


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    steps = evidence.decode_steps
    regions = evidence.compiled_regions
    expect("compile_model", regions >= steps > 0, f"a compiled region in each of {steps} decode steps", regions)
    if settings.mode == "reduce-overhead" and evidence.device == "cuda":
        launches = evidence.graph_launches
        expect("reduce-overhead", launches > 0, f"CUDA graph launches in {steps} decode steps", launches)
    return {"compiled_regions": regions, "decode_steps": steps, "graph_launches": evidence.graph_launches}
