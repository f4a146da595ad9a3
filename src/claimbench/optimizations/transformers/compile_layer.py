"""Physics: saves launches inside a layer, and compile time. The layers of a decoder are one piece of code with
different weights: compiled once, it serves all of them, so compiling costs one layer instead of all. Fusion stops at
the layer's edge, and the host still calls each layer: a little less is saved than by compiling the whole step. Like
any fusion, it cannot help where reading the weights already fills the time.

To be one piece of code, a layer must not depend on its own index. Each sees a cache of one layer: its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from claimbench.checkpoints.counting import layers_of
from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup, Phase
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Forward = Callable[..., object]
"""Of a layer, whatever arguments its family takes."""

SEAM = "compile"
EXACT = True
LIBRARIES = ("triton",)
SWITCH = "layer.forward = torch.compile(layer.forward)  # each layer, from the second pass on"
IMPORTS = ("torch._inductor.compile_fx",)
CLASHES = frozenset({"early_exit"})
INDEX_NAMES = frozenset({"layer_idx", "layer_id"})
"""What Transformers calls a layer's place in the model, and in its cache: GPT-Neo's has the second name."""


class Settings(Frozen):
    mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
    fullgraph: bool = False
    dynamic: bool | None = None


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.workload.new_tokens < 2:
        return "compiles decode steps, and a workload of one new token has none"
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    setup.transforms.append(lambda model: compile_layers(model, setup.phase, settings))


def compile_layers(model: PreTrainedModel, phase: Phase, settings: Settings) -> PreTrainedModel:
    """The same model, whose layers run compiled from the second pass of a generation on."""
    import torch

    whole = model.forward

    @functools.wraps(whole)
    def forward(*arguments: object, **named: object) -> object:
        output = whole(*arguments, **named)
        phase.prefill = False
        return output

    model.forward = forward
    layers = layers_of(model.get_decoder(), model.config.get_text_config(decoder=True))
    for index, layer in enumerate(layers):
        for module in layer.modules():
            for name in INDEX_NAMES.intersection(vars(module)):
                setattr(module, name, 0)
        compiled = torch.compile(
            layer.forward, mode=settings.mode, fullgraph=settings.fullgraph, dynamic=settings.dynamic
        )
        layer.forward = one_layer(layer.forward, compiled, index, phase)
    return model


def one_layer(eager: Forward, compiled: Forward, index: int, phase: Phase) -> Forward:
    """A layer's forward pass that hands on the whole cache as a cache of this layer alone."""
    from transformers import Cache

    def own(value: object) -> object:
        return Cache(layers=[value.layers[index]]) if isinstance(value, Cache) else value

    @functools.wraps(eager)
    def forward(*arguments: object, **named: object) -> object:
        run = eager if phase.prefill else compiled
        return run(*map(own, arguments), **{name: own(value) for name, value in named.items()})

    return forward


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    wanted = evidence.layers * evidence.decode_steps
    regions = evidence.compiled_regions
    expected = f"a compiled region in each of {evidence.layers} layers of {evidence.decode_steps} decode steps"
    expect("compile_layer", regions >= wanted > 0, expected, regions)
    return {"compiled_regions": regions, "decode_steps": evidence.decode_steps, "layers": evidence.layers}
