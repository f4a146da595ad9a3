"""Decode steps captured as graphs, one for each bucket of sizes, and replayed.

A graph fixes shapes and addresses. So a batch is padded with rows that nobody reads up to a power of two, attention
goes over a multiple of some number of keys, and keys and values live in one place: a cache that comes from elsewhere
is copied there once, and from then on is a view of it. What changes from step to step (tokens, the length, where rows
begin) is written into buffers that the graph reads.

How a graph is captured is handed in, so that everything but the capture can be tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from claimbench.engine.kv_cache import AllocatedCache, Cache
from claimbench.engine.masks import mask_in_full
from claimbench.engine.model.transformer import Transformer
from claimbench.engine.pass_setup import PassSetup
from claimbench.engine.steps.static import CompileArguments, is_open, own_code, static_step

WARM_UPS = 3
ALL_SLOTS = 1 << 30
"""A multiple of keys by which one graph serves every length: for steps that find out how many there are."""

Capture = Callable[[Callable[[], Tensor]], "tuple[Callable[[], None], Tensor]"]
"""A function -> what replays it, and the tensor that each replay writes."""
Body = Callable[[Transformer, Tensor, Tensor, Tensor, Tensor | None, list[Tensor], list[Tensor], int], Tensor]
"""What a graph is of: a step with the arguments of `static_step`."""


def batch_bucket(rows: int) -> int:
    """The power of two that `rows` are padded to."""
    return 1 << (rows - 1).bit_length()


def key_bucket(keys: int, multiple: int, slots: int) -> int:
    """How many of `slots` keys attention goes over where there are `keys`."""
    return min(-(-keys // multiple) * multiple, slots)


@dataclass(frozen=True)
class Shape:
    """What a graph is captured for."""

    rows: int
    new: int
    keys: int
    slots: int


class Home:
    """Where keys and values live for good, by rows and slots: [rows, kv_heads, slots, head_dim] for each layer."""

    def __init__(self) -> None:
        self.places: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}

    def take_in(self, cache: AllocatedCache, batch: int) -> list[tuple[Tensor, Tensor]]:
        """The place of all layers for a bucket of `batch` rows; `cache` is a view of it afterwards."""
        rows, slots = batch_bucket(batch), cache.capacity
        place = self.places.get((rows, slots))
        if place is None:
            shape = cache.shape.of_rows(rows)
            place = [(shape.empty(slots), shape.empty(slots)) for _ in cache.allocated]
            self.places[rows, slots] = place
        first = cache.allocated[0].keys
        if first.data_ptr() == place[0][0].data_ptr() and len(first) == batch:
            return place
        for slot, (keys, values) in zip(cache.allocated, place, strict=True):
            keys[:batch].copy_(slot.keys)
            values[:batch].copy_(slot.values)
            slot.keys, slot.values = keys[:batch], values[:batch]
        return place


class Captured:
    """One graph with the buffers that it reads."""

    def __init__(
        self,
        setup: PassSetup,
        shape: Shape,
        place: list[tuple[Tensor, Tensor]],
        bias: Tensor | None,
        capture: Capture,
        body: Body = static_step,
    ) -> None:
        device, padding = setup.batch.device, setup.batch.padding
        self.tokens = torch.zeros((shape.rows, shape.new), dtype=torch.int64, device=device)
        self.past = torch.zeros((), dtype=torch.int64, device=device)
        self.padding = torch.zeros(shape.rows, dtype=torch.int64, device=device)
        self.padding[: len(padding)].copy_(padding)
        self.bias: Tensor | None = None
        if bias is not None:
            rows = 1 if len(bias) == 1 else shape.rows
            self.bias = torch.zeros((rows, *bias.shape[1:]), dtype=bias.dtype, device=device)
        keys, values = [pair[0] for pair in place], [pair[1] for pair in place]

        def run() -> Tensor:
            bias = (
                None if self.bias is None else self.bias[:]
            )  # a new object: what was derived from its values is stale
            return body(setup.model, self.tokens, self.past, self.padding, bias, keys, values, shape.keys)

        self.run, self.capture = run, capture
        self.replay: Callable[[], None] | None = None

    def __call__(self, tokens: Tensor, past: int, bias: Tensor | None) -> Tensor:
        """Logits [batch, new, vocabulary], which the next replay overwrites."""
        batch = len(tokens)
        self.tokens[:batch].copy_(tokens)
        self.past.fill_(past)
        if bias is not None and self.bias is not None:
            self.bias[: len(bias)].copy_(bias)
        if is_open():
            return self.run()[:batch]
        if self.replay is None:
            self.replay, self.logits = self.capture(self.run)
        self.replay()
        return self.logits[:batch]


class GraphedStep:
    """The decode step of one decoder; decoders that share a cache share its home."""

    def __init__(
        self, setup: PassSetup, home: Home, key_multiple: int, capture: Capture, body: Body = static_step
    ) -> None:
        self.setup, self.home, self.key_multiple, self.capture, self.body = setup, home, key_multiple, capture, body
        self.captured: dict[Shape, Captured] = {}

    def __call__(self, tokens: Tensor, cache: Cache) -> Tensor:
        assert isinstance(cache, AllocatedCache)
        batch, new = tokens.shape
        past = cache.length
        cache.keys_after(new)
        place = self.home.take_in(cache, batch)[: len(self.setup.model.layers)]
        keys = key_bucket(past + new, self.key_multiple, cache.capacity)
        shape = Shape(batch_bucket(batch), new, keys, cache.capacity)
        bias = self._bias(past, new, keys)
        captured = self.captured.get(shape)
        if captured is None:
            captured = self.captured[shape] = Captured(self.setup, shape, place, bias, self.capture, self.body)
        cache.length += new
        return captured(tokens, past, bias)

    def _bias(self, past: int, new: int, keys: int) -> Tensor | None:
        """What the mask that is plugged in makes; None for the plain one, which the graph works out by itself."""
        mask, batch = self.setup.mask, self.setup.batch
        if mask is mask_in_full:
            return None
        bias = mask(batch, past, new, keys)
        return torch.zeros((1, 1, new, keys), dtype=batch.dtype, device=batch.device) if bias is None else bias


def compiled_body(how: CompileArguments) -> Body:
    """`static_step`, compiled: for the first bucket, for any number of keys and for all slots; not for each bucket."""
    compiled: Body = torch.compile(own_code(static_step), fullgraph=True, **how)
    return compiled


def capture_on_gpu(device: torch.device) -> Capture:
    """Graphs of one decoder share a pool of memory: only one of them runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # libraries choose kernels and take their workspaces now
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            logits = run()
        return graph.replay, logits

    return capture
