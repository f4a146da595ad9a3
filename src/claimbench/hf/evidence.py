"""What is seen to run inside a Transformers generation: kernels, caches, compiled code, loops. Nothing asks the
settings.

Evidence comes from places that an optimization does not write to: the profiler's record of operators, live objects,
the types of modules and weights, the compiler's own counts, the call stack of the paused generation.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from claimbench.hf.weight_memory import _storage_type
from claimbench.proof import COMPILED_REGION, GRAPH_LAUNCH, Compiled, Findings, events_of, expect, recorded

if TYPE_CHECKING:
    from torch import nn
    from torch.autograd.profiler import profile
    from transformers import PreTrainedModel

    from claimbench.hf.setup import GenerationSetup
    from claimbench.hf.stepper import Stepper


SDPA = "aten::scaled_dot_product_attention"

KERNELS = {
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::_scaled_dot_product_attention_math_for_mps": "math",
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
}


@dataclass(frozen=True)
class TransformersEvidence:
    """What was seen in the first steps of one generation."""

    device: str
    operators: dict[str, int]
    """Times that each operator, compiled region or kernel launch was recorded, by the profiler's name for it."""
    caches: dict[str, list[str]]
    """Live key-value caches in mid-generation: class -> classes of its layers."""
    candidate_generators: list[str]
    """Classes of the live objects that draft tokens."""
    modules: dict[str, int]
    """How many modules of each class the model has."""
    quant_types: dict[str, int]
    """How many 4-bit layers hold each format."""
    weights: dict[str, int]
    """How many parameters are of each class and storage type, such as "Parameter float32"."""
    layers: int
    """Decoder layers of the model."""
    attention: str
    """The attention implementation that the model was built with."""
    wrapper: str
    """Class of the object that was driven: the model's own, or a wrapper's."""
    functions: list[str]
    """Functions that the paused generation was in, innermost first."""
    grad_around: bool
    """Whether gradients were on around the generation, before it changed that itself."""
    grad_enabled: bool
    inference_mode: bool
    step_tokens: list[int]
    """New tokens per row at each step."""
    compiled: Compiled
    whole: tuple[int, int]
    """Rows and new tokens of the generation, at its full length."""
    earlier: list[tuple[int, int]]
    """Rows and new tokens that came out of each other generation that the session made before its first whole one."""

    @property
    def decode_steps(self) -> int:
        return len(self.step_tokens) - 1

    @property
    def kernels(self) -> list[str]:
        """Kernels behind scaled dot product attention, such as ["flash"]."""
        return sorted({KERNELS[name] for name in self.operators if name in KERNELS})

    @property
    def compiled_regions(self) -> int:
        return sum(count for name, count in self.operators.items() if name.startswith(COMPILED_REGION))

    @property
    def graph_launches(self) -> int:
        return self.operators.get(GRAPH_LAUNCH, 0)


def watch(
    run: Stepper,
    steps: int,
    model: PreTrainedModel,
    driven: object,
    device: str,
    compiled: Compiled,
    whole: tuple[int, int],
    earlier: list[tuple[int, int]],
) -> TransformersEvidence:
    """Run the first `steps` steps of a generation under the profiler, and look around while it is paused.

    `device` is where it computes: the model's own weights may lie elsewhere.
    """
    generation = run.steps()
    widths: list[int] = []
    caches: dict[str, list[str]] = {}
    generators: list[str] = []
    functions: list[str] = []
    gc.collect()
    try:
        with recorded(device) as profiler:
            for columns in generation:
                widths.append(int(columns.shape[1]))
                if len(widths) == 1:
                    caches, generators = _live_objects()
                    if not caches:  # the collector lists no frozen objects, and one that outlives a generation may be
                        gc.unfreeze()
                        gc.collect()
                        caches, generators = _live_objects()
                    functions = run.functions()
                if len(widths) == steps:
                    break
    finally:
        generation.close()
    return TransformersEvidence(
        device=device,
        operators=_operators(profiler),
        caches=caches,
        candidate_generators=generators,
        modules=dict(Counter(type(module).__name__ for module in model.modules())),
        quant_types=dict(Counter(_quant_types(model))),
        weights=dict(Counter(_storage_type(parameter) for parameter in model.parameters())),
        layers=int(model.config.get_text_config(decoder=True).num_hidden_layers),
        attention=str(model.config.get_text_config(decoder=True)._attn_implementation),
        wrapper=type(driven).__name__,
        functions=functions,
        grad_around=run.grad_around,
        grad_enabled=run.grad_enabled,
        inference_mode=run.inference_mode,
        step_tokens=widths,
        compiled=compiled,
        whole=whole,
        earlier=list(earlier),
    )


def _operators(profiler: profile) -> dict[str, int]:
    """Times that each name was recorded; the numbers of compiled regions ("Torch-Compiled Region: 3/0") say nothing."""
    names = (event.name for event in events_of(profiler))
    return dict(Counter(COMPILED_REGION if name.startswith(COMPILED_REGION) else name for name in names))


def _name_of(cache: type) -> str:
    """`DynamicCache`, or `DynamicCache (MiniMaxCache)` where a model has one of its own that is such a cache."""
    from transformers import DynamicCache

    own = cache.__name__
    return f"DynamicCache ({own})" if issubclass(cache, DynamicCache) and cache is not DynamicCache else own


def _live_objects() -> tuple[dict[str, list[str]], list[str]]:
    from transformers import Cache
    from transformers.generation.candidate_generator import CandidateGenerator

    caches: dict[str, set[str]] = {}
    generators: set[str] = set()
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, Cache):
            caches.setdefault(_name_of(kind), set()).update(type(layer).__name__ for layer in thing.layers)
        elif issubclass(kind, CandidateGenerator):
            generators.add(kind.__name__)
    return {name: sorted(layers) for name, layers in sorted(caches.items())}, sorted(generators)


def _quant_types(model: nn.Module) -> Iterator[str]:
    for parameter in model.parameters():
        quant_type = getattr(getattr(parameter, "quant_state", None), "quant_type", None)
        if quant_type:
            yield str(quant_type)


def check_plain(seen: TransformersEvidence, setup: GenerationSetup) -> Findings:
    """What every run must satisfy, whatever is switched on: nothing runs that was not asked for.

    Raises:
        WrongOutput: another attention, a draft or compiled code ran unasked.
    """
    asked = setup.load["attn_implementation"]
    expect(f"{asked} attention", seen.attention == asked, asked, seen.attention)
    if asked == "eager":
        expect("eager attention", SDPA not in seen.operators, "no fused attention operator", seen.kernels or SDPA)
    if not setup.drafts:
        expect("plain decoding", max(seen.step_tokens) == 1, "one token a step", seen.step_tokens)
        expect("plain decoding", not seen.candidate_generators, "no drafts", seen.candidate_generators)
    if not setup.transforms:
        expect("uncompiled code", seen.compiled_regions == 0, "no compiled region", seen.compiled_regions)
    if setup.earlier is None:
        expect("a fresh process", not seen.earlier, "no generation of another shape before", seen.earlier)
    if setup.cache == "dynamic":
        held = [name.partition(" ")[0] for name in seen.caches]
        expect("the dynamic cache", held == ["DynamicCache"], "DynamicCache alone", seen.caches)
    return {
        "graphs": seen.compiled.graphs,
        "recompiles": seen.compiled.recompiles,
        "graph_breaks": seen.compiled.graph_breaks,
        "attention": seen.attention,
        "kernels": seen.kernels,
        "caches": seen.caches,
        "step_tokens": seen.step_tokens,
        "grad_enabled": seen.grad_enabled,
        "inference_mode": seen.inference_mode,
        "weights": seen.weights,
    }
