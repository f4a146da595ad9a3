"""What is seen to run inside a Transformers generation: kernels, caches, compiled code, loops. Nothing asks the
settings.

Evidence comes from places that an optimization does not write to: the profiler's record of operators, live objects,
the types of modules and weights, the compiler's own counts, the call stack of the paused generation.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from claimbench.errors import WrongOutput
from claimbench.profiling import events_of, recorded

if TYPE_CHECKING:
    from claimbench.recipe import Recipe
    from claimbench.stepwise import Run

SDPA = "aten::scaled_dot_product_attention"

KERNELS = {
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::_scaled_dot_product_attention_math_for_mps": "math",
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
}

COMPILED_REGION = "Torch-Compiled Region"
GRAPH_LAUNCH = "cudaGraphLaunch"


@dataclass(frozen=True)
class Compiled:
    """The compiler's work so far."""

    graphs: int = 0
    recompiles: int = 0
    """Compilations of code that was compiled before, for other shapes or values."""
    graph_breaks: int = 0


@dataclass(frozen=True)
class Evidence:
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


def expect(technique: str, held: bool, expected: str, seen: Any) -> None:
    """
    Raises:
        WrongOutput: the proof of `technique` did not hold.
    """
    if not held:
        raise WrongOutput(f"{technique} did not run: expected {expected}, saw {seen}")


class Compilations:
    """Counts what the compiler does from now on."""

    def __init__(self) -> None:
        from torch._dynamo.utils import clear_compilation_metrics, set_compilation_metrics_limit

        set_compilation_metrics_limit(4096)
        clear_compilation_metrics()
        self.before = self._totals()

    @staticmethod
    def _totals() -> Compiled:
        from torch._dynamo.utils import counters, get_compilation_metrics

        frames = [metrics for metrics in get_compilation_metrics() if metrics.co_name]
        return Compiled(
            graphs=counters["stats"]["unique_graphs"],
            recompiles=sum(1 for frame in frames if frame.recompile_reason),
            graph_breaks=sum(counters["graph_break"].values()),
        )

    def so_far(self) -> Compiled:
        now = self._totals()
        return Compiled(
            graphs=now.graphs - self.before.graphs,
            recompiles=now.recompiles - self.before.recompiles,
            graph_breaks=now.graph_breaks - self.before.graph_breaks,
        )


def watch(
    run: Run,
    steps: int,
    model: Any,
    driven: Any,
    device: str,
    compiled: Compiled,
    whole: tuple[int, int],
    earlier: list[tuple[int, int]],
) -> Evidence:
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
                    functions = run.functions()
                if len(widths) == steps:
                    break
    finally:
        generation.close()  # type: ignore[attr-defined]
    return Evidence(
        device=device,
        operators=_operators(profiler),
        caches=caches,
        candidate_generators=generators,
        modules=dict(Counter(type(module).__name__ for module in model.modules())),
        quant_types=dict(Counter(_quant_types(model))),
        weights=dict(Counter(_storage_type(parameter) for parameter in model.parameters())),
        layers=int(model.config.num_hidden_layers),
        attention=str(model.config._attn_implementation),
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


def _operators(profiler: Any) -> dict[str, int]:
    """Times that each name was recorded; the numbers of compiled regions ("Torch-Compiled Region: 3/0") say nothing."""
    names = (event.name for event in events_of(profiler))
    return dict(Counter(COMPILED_REGION if name.startswith(COMPILED_REGION) else name for name in names))


def _live_objects() -> tuple[dict[str, list[str]], list[str]]:
    from transformers import Cache
    from transformers.generation.candidate_generator import CandidateGenerator

    caches: dict[str, set[str]] = {}
    generators: set[str] = set()
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, Cache):
            caches.setdefault(kind.__name__, set()).update(type(layer).__name__ for layer in thing.layers)
        elif issubclass(kind, CandidateGenerator):
            generators.add(kind.__name__)
    return {name: sorted(layers) for name, layers in sorted(caches.items())}, sorted(generators)


def _quant_types(model: Any) -> Iterator[str]:
    for parameter in model.parameters():
        quant_type = getattr(getattr(parameter, "quant_state", None), "quant_type", None)
        if quant_type:
            yield str(quant_type)


def _storage_type(parameter: Any) -> str:
    """Class and type of what is stored: a torchao weight calls itself float32 and holds int8."""
    inner = list(inner_tensors(parameter))
    return f"{type(parameter).__name__} {str(max(inner, key=lambda part: part.nbytes).dtype).removeprefix('torch.')}"


def inner_tensors(tensor: Any) -> Iterator[Any]:
    """The plain tensors that a weight is stored in: packed values, scales, zero points."""
    import torch

    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None and type(tensor) is not torch.nn.Parameter:
        for part in (getattr(tensor, name) for name in flatten()[0]):
            if isinstance(part, torch.Tensor):  # a distributed one names its mesh of devices as well
                yield from inner_tensors(part)
        return
    yield tensor.data
    for extra in vars(tensor).values():
        yield from _tensors_in(extra)


def _tensors_in(thing: Any, depth: int = 2) -> Iterator[Any]:
    """Tensors that a quantization state holds, such as the scales of a bitsandbytes weight."""
    import torch

    if isinstance(thing, torch.Tensor):
        yield thing
    elif depth and type(thing).__name__ in ("QuantState", "MatmulLtState"):
        for value in vars(thing).values():
            yield from _tensors_in(value, depth - 1)


def _storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Address -> bytes of each storage, shared ones once; a meta tensor has none."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type != "meta"]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def weight_bytes(model: Any) -> tuple[int, int]:
    """Bytes that the model holds, buffers included, and bytes of weights that one decode step reads.

    A step looks up one row of an embedding and reads all of everything else; an embedding that is also the output head
    is read.
    """
    import torch

    held: dict[int, int] = {}
    read: dict[int, int] = {}
    for module in model.modules():
        weights = _storages(part for weight in module.parameters(recurse=False) for part in inner_tensors(weight))
        held |= weights | _storages(module.buffers(recurse=False))
        if not isinstance(module, torch.nn.Embedding):
            read |= weights | _storages(_tensors_in(getattr(module, "state", None)))
    return sum((held | read).values()), sum(read.values())


def check_finite(logits: Any) -> None:
    """
    Raises:
        WrongOutput: the model emits NaN or infinity.
    """
    expect_finite(logits.numel(), int((~logits.isfinite()).sum()))


def expect_finite(numbers: int, bad: int) -> None:
    """Judge `numbers` logits of which `bad` are not finite; raises as `check_finite` does."""
    if bad or not numbers:
        raise WrongOutput(f"expected finite logits, but {bad} of {numbers} are NaN or infinite")


def check_plain(seen: Evidence, recipe: Recipe) -> dict[str, Any]:
    """What every run must satisfy, whatever is switched on: nothing runs that was not asked for.

    Raises:
        WrongOutput: another attention, a draft or compiled code ran unasked.
    """
    asked = recipe.load["attn_implementation"]
    expect(f"{asked} attention", seen.attention == asked, asked, seen.attention)
    if asked == "eager":
        expect("eager attention", SDPA not in seen.operators, "no fused attention operator", seen.kernels or SDPA)
    if not recipe.drafts:
        expect("plain decoding", max(seen.step_tokens) == 1, "one token a step", seen.step_tokens)
        expect("plain decoding", not seen.candidate_generators, "no drafts", seen.candidate_generators)
    if not recipe.transforms:
        expect("uncompiled code", seen.compiled_regions == 0, "no compiled region", seen.compiled_regions)
    if recipe.earlier is None:
        expect("a fresh process", not seen.earlier, "no generation of another shape before", seen.earlier)
    if recipe.cache == "dynamic":
        expect("the dynamic cache", list(seen.caches) == ["DynamicCache"], "DynamicCache alone", seen.caches)
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
