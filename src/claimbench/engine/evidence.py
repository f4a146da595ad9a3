"""What is seen to run inside the engine: Python functions, operators and their shapes, caches, weights, launches.

Evidence comes from places that an optimization does not write to: the interpreter's call events, the profiler's record
of operators, the tensors that are held. One short generation is watched by all of them, since a prefill may take
seconds; they slow it, and nothing in it is timed.

Code that is compiled, or captured in a graph, hides what it consists of. Where some ran, one more generation is
watched in the open, with the same code run as Python and nothing replayed: a technique inside a compiled step is seen
there.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType

import torch
from torch import Tensor

from claimbench.engine.decoder import Decoder
from claimbench.engine.kv_cache import CacheShape
from claimbench.engine.model.spec import Spec
from claimbench.engine.steps.static import in_the_open
from claimbench.proof import COMPILED_REGION, GRAPH_LAUNCH, Compiled, Event, events_of, recorded

Shapes = tuple[tuple[int, ...], ...]
Generate = Callable[[], Generator[Tensor, None, None]]
"""Begins a generation: columns of new tokens, [batch, n], as they appear."""

BATCHED_PRODUCTS = ("aten::bmm", "aten::baddbmm")
FUSED_ATTENTION = ("aten::scaled_dot_product_attention", "aten::_scaled_dot_product_flash_attention_for_cpu")
READS_TOKENS = {"claimbench.engine.native.decoder:NativeDecoder.step": "tokens"}
"""Functions that look tokens up without an operator, and their argument that holds them, [batch, new]."""
KEEPS_LOGITS = "claimbench.engine.decoder:Decoder.record_token"
"""Gets the logits of every token that is chosen, [batch, positions, vocabulary]."""


@dataclass(frozen=True)
class Pass:
    """What was recorded while one column of tokens came to be."""

    calls: dict[str, int]
    """Python functions of PyTorch and of this package, as "module:qualified name", and how often each was called: in
    the open, as are the next two."""
    operators: dict[str, int]
    """Operators by the profiler's names."""
    shapes: dict[str, list[Shapes]]
    """Operator -> the shapes of its tensor arguments at each call, in order."""
    timed_calls: dict[str, int]
    """Python functions as they are called when timed; the same as `calls` where nothing is compiled or captured."""
    launched: dict[str, int]
    """Operators, compiled regions and launches as they run when timed."""
    cache_bytes: int
    cache_length: int
    """Slots that are filled afterwards."""
    cache_filled: int
    """Slots that were filled at most: those of refused drafts count too."""
    columns: int
    """Tokens a row that the pass gave."""
    widest_lookup: int
    """Tokens a row of the widest look-up in an embedding: several where a pass verifies drafts."""

    def called(self, name: str) -> int:
        """Calls of the functions whose qualified name is `name`, whatever their module."""
        return sum(count for known, count in self.calls.items() if known.partition(":")[2] == name)

    @property
    def compiled_regions(self) -> int:
        return sum(count for name, count in self.launched.items() if name.startswith(COMPILED_REGION))

    @property
    def graph_launches(self) -> int:
        return self.launched.get(GRAPH_LAUNCH, 0)


@dataclass(frozen=True)
class EngineEvidence:
    """The first passes of one generation."""

    device: str
    spec: Spec
    """Of the model."""
    layers: int
    batch: int
    prefill_positions: int
    """Positions of a row that the prefill gave logits of."""
    prompt_tokens: int
    """Of all rows together, without padding."""
    prefill: Pass
    steps: tuple[Pass, ...]
    """Decode passes, in order."""
    cache_shape: CacheShape
    """What the key-value cache was to have room for."""
    cache: str
    """Class of the live key-value cache."""
    cache_allocations: int | None
    """Times that the live cache was allocated in its life, where it is allocated ahead."""
    modules: dict[str, int]
    """How many modules of each class the model has."""
    weights: dict[str, int]
    """How many tensors of weights are of each class and storage type."""
    matrices: dict[str, int]
    """How many matrices of its own the step has in each format; none where it reads the modules'."""
    instructions: str | None
    """Of the CPU, that it multiplies with them by."""
    coded: bool
    """Whether some technique asked for matrices of codes."""
    details: int
    """Log-probabilities that were kept of the prompt and of the new tokens, per row."""
    logits: tuple[int, int]
    """Numbers from which tokens were chosen, and how many of them are NaN or infinite."""
    compiled: Compiled

    @property
    def passes(self) -> tuple[Pass, ...]:
        return (self.prefill, *self.steps)

    def calls(self, name: str) -> int:
        """Calls of `name` in all decode passes."""
        return sum(step.called(name) for step in self.steps)

    def draws(self, maker: str) -> tuple[int, int]:
        """How often what `maker` of sampling.py made drew tokens, and how often PyTorch's generators did."""
        made = sum(seen.called(f"{maker}.<locals>.draw") for seen in self.passes)
        return made, sum(seen.operators.get("aten::multinomial", 0) for seen in self.passes)

    def keys_attended(self, seen: Pass) -> set[int]:
        """Lengths of the keys that attention multiplied with."""
        head_dim, found = self.cache_shape.arch.head_dim, set()
        for name in BATCHED_PRODUCTS:
            for *_, first, second in seen.shapes.get(name, []):
                if first[-1] == head_dim:  # queries by keys
                    found.add(second[-1])
                elif second[-1] == head_dim:  # weights by values
                    found.add(second[-2])
        for name in FUSED_ATTENTION:
            found |= {shapes[1][-2] for shapes in seen.shapes.get(name, [])}
        return found

    def operators(self, name: str) -> int:
        """Times that operator `name` ran in all decode passes."""
        return sum(step.operators.get(name, 0) for step in self.steps)


@dataclass
class _Found:
    """What the instruments saw of one pass."""

    calls: Counter[str] = field(default_factory=Counter)
    read: list[int] = field(default_factory=list)
    """Widths of the tokens that were looked up without an operator."""
    logits: list[Tensor] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def note(self, frame: FrameType, event: str, _: object) -> None:
        """A call of the interpreter's: Python functions of this package and of PyTorch count."""
        if event == "call":
            module = frame.f_globals.get("__name__", "")
            if module.startswith(("claimbench.", "torch.")):
                name = f"{module}:{frame.f_code.co_qualname}"
                self.calls[name] += 1
                if name in READS_TOKENS:
                    self.read.append(int(frame.f_locals[READS_TOKENS[name]].shape[1]))
                elif name == KEEPS_LOGITS:
                    self.logits.append(frame.f_locals["logits"])

    def finite(self) -> tuple[int, int]:
        """How many logits tokens were chosen from, and how many of them are not finite; they are let go of."""
        last = [logits[:, -1] for logits in self.logits]
        self.logits = []
        return sum(part.numel() for part in last), sum(int((~part.isfinite()).sum()) for part in last)


@contextmanager
def _instruments(found: _Found) -> Iterator[None]:
    with recorded("cuda" if torch.cuda.is_available() else "cpu", shapes=True) as profiler:
        before = sys.getprofile()
        sys.setprofile(found.note)
        try:
            yield
        finally:
            sys.setprofile(before)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    found.events = events_of(profiler)


def watch(decoder: Decoder, generate: Generate, steps: int, compiled: Compiled) -> EngineEvidence:
    """Evidence from the prefill and up to `steps` decode passes of one more generation."""
    passes, numbers, bad = _passes(decoder, generate, steps)
    if any(step.compiled_regions or step.graph_launches for step in passes):
        with in_the_open():
            opened, _, _ = _passes(decoder, generate, steps)
        passes = [
            replace(open_step, timed_calls=step.timed_calls, launched=step.launched)
            for step, open_step in zip(passes, opened, strict=True)
        ]
    details, batch, setup = decoder.details, decoder.batch, decoder.setup
    return EngineEvidence(
        device=batch.device.type,
        spec=decoder.spec,
        layers=decoder.spec.arch.layers,
        batch=len(batch.prompt),
        prefill_positions=decoder.prefill_positions,
        prompt_tokens=sum(batch.lengths),
        prefill=passes[0],
        steps=tuple(passes[1:]),
        cache_shape=batch.cache_shape,
        cache=type(decoder.cache).__name__,
        cache_allocations=getattr(decoder.cache, "allocations", None),
        modules=dict(Counter(type(module).__name__ for module in setup.model.modules())),
        weights=dict(Counter(map(_storage_type, [*setup.model.parameters(), *setup.model.buffers()]))),
        matrices={} if setup.matrices is None else setup.matrices.held,
        instructions=None if setup.matrices is None else setup.matrices.instructions,
        coded=decoder.engine.weight_bits is not None,
        details=len(details.tokens) + (0 if details.prompt is None else details.prompt.shape[1]),
        logits=(numbers, bad),
        compiled=compiled,
    )


def _passes(decoder: Decoder, generate: Generate, steps: int) -> tuple[list[Pass], int, int]:
    """What was seen of each pass, how many logits tokens were chosen from, and how many of those are not finite."""
    passes: list[Pass] = []
    numbers = bad = 0
    generation = generate()
    try:
        while len(passes) < 1 + steps:
            found = _Found()
            with _instruments(found):
                columns = next(generation, None)
            if columns is None:
                break
            passes.append(_pass(found, decoder, int(columns.shape[1]), passes[-1].cache_length if passes else 0))
            counted, not_finite = found.finite()
            numbers, bad = numbers + counted, bad + not_finite
    finally:
        generation.close()
    return passes, numbers, bad


def _pass(found: _Found, decoder: Decoder, columns: int, length_before: int) -> Pass:
    shapes: dict[str, list[Shapes]] = {}
    for event in found.events:
        shapes.setdefault(event.name, []).append(event.shapes)
    operators = dict(Counter(event.name for event in found.events))
    looked_up = (own[1][-1] for own in shapes.get("aten::embedding", ()) if len(own) > 1)
    widest = max([*found.read, *looked_up], default=0)
    calls = dict(found.calls)
    return Pass(
        calls=calls,
        operators=operators,
        shapes=shapes,
        timed_calls=calls,
        launched=operators,
        cache_bytes=sum(tensor.nbytes for tensor in decoder.cache.tensors()),
        cache_length=decoder.cache.length,
        cache_filled=max(decoder.cache.length, length_before + widest if length_before else 0),
        columns=columns,
        widest_lookup=widest,
    )


def _storage_type(tensor: Tensor) -> str:
    return f"{type(tensor).__name__} {str(tensor.dtype).removeprefix('torch.')}"
