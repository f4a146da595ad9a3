"""A decode step whose shapes never change: for code that is compiled once, and for graphs that are captured once.

Where the new tokens stand is a number on the device instead of one in Python, so that nothing is specialised to it.
Keys and values are written by index into tensors that stay where they are, and attention goes over all of the slots
that it is given, with those that hold nothing yet masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import TypedDict, TypeVar, cast

import torch
from torch import Tensor

from claimbench.engine.kv_cache import AllocatedCache, Cache
from claimbench.engine.masks import attention_bias, mask_in_full, within
from claimbench.engine.model.parts import LayerCache, PassContext
from claimbench.engine.model.transformer import Layer, Transformer
from claimbench.engine.pass_setup import PassSetup, Step

Run = TypeVar("Run", bound=Callable[..., Tensor])


class CompileArguments(TypedDict, total=False):
    """Those of `torch.compile` that a technique sets."""

    mode: str
    backend: str


@dataclass
class StaticPassContext(PassContext):
    """A pass behind a past whose length the device alone knows: `past` says that there is one, and no more."""

    index: Tensor | None = None
    """Slots that the new tokens fill, int64 [new]."""


class StaticLayerCache:
    """One layer's keys and values, which stay where they are: [batch, kv_heads, slots, head_dim].

    Attention goes over the first `seen` slots. What is written to is the whole tensor: compiled code would copy a view.
    """

    def __init__(self, keys: Tensor, values: Tensor, seen: int | None = None) -> None:
        self.keys, self.values, self.seen = keys, values, seen

    def write(self, keys: Tensor, values: Tensor, context: PassContext) -> tuple[Tensor, Tensor]:
        assert isinstance(context, StaticPassContext)
        assert context.index is not None
        self.keys.index_copy_(2, context.index, keys)
        self.values.index_copy_(2, context.index, values)
        if self.seen is None:
            return self.keys, self.values
        return self.keys.narrow(2, 0, self.seen), self.values.narrow(2, 0, self.seen)


def static_context(
    past: Tensor, new: int, padding: Tensor, bias: Tensor, window: int | None = None
) -> StaticPassContext:
    """The pass over `new` tokens behind `past` others, int64 []; rows begin after their `padding`, int64 [batch]."""
    index, keys = past + torch.arange(new, device=past.device), bias.shape[3]
    positions = (index - padding[:, None]).clamp(min=0)
    windowed = None
    if window is not None and keys > window:
        hidden = within(window, bias, bias.dtype, bias.device, past, new, keys)
        windowed = StaticPassContext(1, positions, hidden, index=index)
    return StaticPassContext(1, positions, bias, windowed=windowed, index=index)


def static_layer(layer: Layer, x: Tensor, context: StaticPassContext, keys: Tensor, values: Tensor) -> Tensor:
    """One layer of a step, [batch, new, hidden]; the same code for every layer and every length."""
    out: Tensor = layer(x, context, StaticLayerCache(keys, values))
    return out


def static_step(
    model: Transformer,
    tokens: Tensor,
    past: Tensor,
    padding: Tensor,
    bias: Tensor | None,
    keys: list[Tensor],
    values: list[Tensor],
    seen: int | None = None,
) -> Tensor:
    """Token ids [batch, new] -> logits [batch, new, vocabulary]; without a bias, what is hidden is worked out here.

    Attention goes over the first `seen` slots, or over all of them.
    """
    new = tokens.shape[1]
    if bias is None:
        bias = attention_bias(padding, model.slopes, model.embedding.dtype, past, new, seen or keys[0].shape[2])
    slots: list[LayerCache] = [StaticLayerCache(*pair, seen) for pair in zip(keys, values, strict=True)]
    context = static_context(past, new, padding, bias, model.spec.window)
    logits: Tensor = model.head(model(tokens, context, slots))
    return logits


class Place:
    """Where a step stands in a cache that was allocated once, as tensors on the device."""

    def __init__(self, setup: PassSetup) -> None:
        self.setup = setup
        self.past = torch.zeros((), dtype=torch.int64, device=setup.batch.device)
        self.biases: dict[tuple[int, int], Tensor] = {}

    def slots(self, cache: Cache, new: int, slots: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of each of the model's layers, all slots of them or so many, with room for `new` tokens."""
        assert isinstance(cache, AllocatedCache)
        cache.keys_after(new)
        self.past.fill_(cache.length)
        layers = cache.allocated[: len(self.setup.model.layers)]
        if slots is None:
            return [_in_place(slot.keys) for slot in layers], [_in_place(slot.values) for slot in layers]
        return [slot.keys[:, :, :slots] for slot in layers], [slot.values[:, :, :slots] for slot in layers]

    def bias(self, cache: Cache, new: int, keys: int) -> Tensor | None:
        """What the mask that is plugged in makes, always in the same place; None for the plain one.

        The plain mask is worked out inside of a static step.
        """
        mask, batch = self.setup.mask, self.setup.batch
        if mask is mask_in_full:
            return None
        bias = mask(batch, cache.length, new, keys)
        if bias is None:  # nothing is hidden any more
            bias = torch.zeros((1, 1, new, keys), dtype=batch.dtype, device=batch.device)
        kept = self.biases.get((new, keys))
        if kept is None or kept.shape[:2] != bias.shape[:2]:
            kept = self.biases[new, keys] = torch.empty_like(bias, memory_format=torch.contiguous_format)
        kept.copy_(bias)
        return kept[:]  # a new object for each pass: what a softmax derived from the last one's values is stale


def _in_place(tensor: Tensor) -> Tensor:
    """The tensor itself, which compiled code is told stays where it is: a graph may write into it, and copies nothing.

    Inductor gives up its CUDA graph where an input that it would have to copy is written to.
    """
    torch._dynamo.mark_static_address(tensor)
    return tensor


def own_code(function: Run) -> Run:
    """`function` again, with code of its own.

    Compiled graphs are kept by code and are limited in number: models in one process, such as a draft beside its model,
    would look through each other's graphs and use up the limit together.
    """
    assert isinstance(function, FunctionType)
    return cast(
        Run, FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__)
    )


def step_compiled(setup: PassSetup, how: CompileArguments) -> Step:
    """The whole step in one graph, token ids in and logits out."""
    model, padding = setup.model, setup.batch.padding
    place, compiled = Place(setup), torch.compile(own_code(static_step), fullgraph=True, **how)

    def step(tokens: Tensor, cache: Cache) -> Tensor:
        new = tokens.shape[1]
        keys, values = place.slots(cache, new)
        bias = place.bias(cache, new, keys[0].shape[2])
        logits = compiled(model, tokens, place.past, padding, bias, keys, values)
        cache.length += new
        return logits

    return step


def step_of_compiled_layers(setup: PassSetup, how: CompileArguments) -> Step:
    """One graph, which is run for each layer; positions and mask are made once a step, outside."""
    model, batch = setup.model, setup.batch
    place, compiled = Place(setup), torch.compile(own_code(static_layer), fullgraph=True, **how)

    def step(tokens: Tensor, cache: Cache) -> Tensor:
        new = tokens.shape[1]
        keys, values = place.slots(cache, new)
        bias = place.bias(cache, new, keys[0].shape[2])
        if bias is None:
            bias = attention_bias(batch.padding, batch.slopes, batch.dtype, place.past, new, keys[0].shape[2])
        context = static_context(place.past, new, batch.padding, bias, model.spec.window)
        x = model.embed(tokens, context.positions)
        for layer, *slot in zip(model.layers, keys, values, strict=True):
            x = compiled(layer, x, context, *slot)  # type: ignore[arg-type] # a ModuleList holds no type
        cache.length += new
        logits: Tensor = model.head(model.norm(x))
        return logits

    return step


_open = False


def is_open() -> bool:
    """Whether what is captured must run as Python now, to be watched."""
    return _open


@contextmanager
def in_the_open() -> Iterator[None]:
    """While it lasts, compiled code runs as the Python that it was made from, and no graph is replayed."""
    global _open
    before, _open = _open, True
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _open = before


def how_to_compile(mode: str, code: str) -> CompileArguments:
    """Arguments of `torch.compile` for the settings of a technique that compiles."""
    return {"mode": mode} if code == "fused" else {"backend": "eager"}
