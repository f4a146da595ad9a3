"""Launches of the decode step's own kernels: each is counted with the bytes of its arguments, where somebody counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Launch:
    kernel: str
    weight_bytes: int
    """Of what the model is: matrices with their codes' numbers, biases, norms, tables."""
    cache_bytes: int
    """Of the keys and values that are seen."""
    other_bytes: int
    """Of activations and partial sums, read and written."""


@dataclass
class Count:
    """The launches since it began."""

    keys: int
    """How many slots of the cache are filled."""
    dry: bool
    """Nothing is launched: tensors may be without storage."""
    launches: list[Launch] = field(default_factory=list)

    @property
    def weight_bytes(self) -> int:
        return sum(launch.weight_bytes for launch in self.launches)

    @property
    def cache_bytes(self) -> int:
        return sum(launch.cache_bytes for launch in self.launches)

    @property
    def other_bytes(self) -> int:
        return sum(launch.other_bytes for launch in self.launches)

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.other_bytes


_count: Count | None = None


@contextmanager
def counting(keys: int, dry: bool = False) -> Iterator[Count]:
    """Count launches over a cache of which `keys` slots are filled; `dry`: instead of launching."""
    global _count
    before, _count = _count, Count(keys, dry)
    try:
        yield _count
    finally:
        _count = before


@dataclass(frozen=True)
class Touched:
    """What a launch reads and writes."""

    weights: Sequence[Tensor | None] = ()
    cache: Sequence[Tensor] = ()
    """Keys and values [batch, kv_heads, slots, head_dim], of which those filled are read, or a `window` of them."""
    window: int | None = None
    other: Sequence[Tensor | None] = ()


def launch(name: str, grid: tuple[int, ...], touched: Touched, *arguments: Any, **named: Any) -> None:
    """Run the kernel of that name over `grid`."""
    if _count is not None:
        _count.launches.append(_noted(name, touched, _count.keys))
        if _count.dry:
            return
    kernel(name)[grid](*arguments, **named)


@cache
def kernel(name: str) -> Any:
    """Triton is imported where one is first run: what is only counted needs none."""
    from claimbench.engine.kernels import triton_attention, triton_gemv

    return getattr(triton_gemv, name, None) or getattr(triton_attention, name)


def _noted(name: str, touched: Touched, keys: int) -> Launch:
    seen = keys if touched.window is None else min(keys, touched.window)
    cache = sum(tensor.nbytes // tensor.shape[2] * min(seen, tensor.shape[2]) for tensor in touched.cache)
    return Launch(name, _nbytes(touched.weights), cache, _nbytes(touched.other))


def _nbytes(tensors: Sequence[Tensor | None]) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
