"""Key-value caches: where a pass writes its keys and values, and what attention reads back.

Tensors are [batch, kv_heads, keys, head_dim], one pair a layer. Rows are aligned at their ends: a shorter row starts
later, behind padding that is never attended to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from claimbench.cost_model import cost
from claimbench.engine.model.parts import LayerCache, PassContext


@dataclass(frozen=True)
class CacheShape:
    """What a cache must have room for."""

    arch: cost.Architecture
    batch: int
    length: int
    """Slots that a whole generation fills."""
    dtype: torch.dtype
    device: torch.device
    key_multiple: int = 1
    """Attention sees a multiple of this many keys; the excess is masked."""

    def empty(self, length: int) -> Tensor:
        """[batch, kv_heads, length, head_dim], zeroed: masked slots must hold numbers, since 0 x NaN is NaN."""
        shape = self.batch, self.arch.kv_heads, length, self.arch.head_dim
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    @property
    def column_bytes(self) -> int:
        """Of one slot, in all layers and rows."""
        return int(cost.kv_bytes(self.arch, self.batch, 1, self.dtype.itemsize))

    def of_rows(self, batch: int) -> CacheShape:
        return replace(self, batch=batch)


class Cache(Protocol):
    shape: CacheShape
    slots: list[LayerCache]
    length: int
    """Slots filled so far."""

    def keys_after(self, new: int) -> int:
        """How many keys attention will see after `new` more; makes room for them."""

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` slots."""

    def tensors(self) -> list[Tensor]:
        """Every tensor that is held."""

    def filter(self, rows: Tensor) -> Self:
        """A cache of its own for `rows`, int64 [kept]: their keys and values are copied."""

    def concatenate(self, other: Self) -> Self:
        """A cache of its own for these rows and then those of `other`, which is as long: both are copied."""


class ConcatenatedLayerCache:
    """Grown by copying everything at every token: reads and writes the whole cache to add one column."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def write(self, keys: Tensor, values: Tensor, context: PassContext) -> tuple[Tensor, Tensor]:
        # a copy even of the first keys, which are a view of all the heads: that would keep the queries alive
        self.keys, self.values = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        return self.keys, self.values


class ConcatenatedCache:
    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self.grown = [ConcatenatedLayerCache(shape.empty(0), shape.empty(0)) for _ in range(shape.arch.layers)]
        self.slots: list[LayerCache] = list(self.grown)
        self.length = 0

    def keys_after(self, new: int) -> int:
        return self.length + new

    def truncate(self, length: int) -> None:
        self.length = length
        for slot in self.grown:
            slot.keys, slot.values = slot.keys[:, :, :length], slot.values[:, :, :length]

    def tensors(self) -> list[Tensor]:
        return [tensor for slot in self.grown for tensor in (slot.keys, slot.values)]

    def filter(self, rows: Tensor) -> ConcatenatedCache:
        kept = ConcatenatedCache(self.shape.of_rows(len(rows)))
        kept.length = self.length
        for slot, whole in zip(kept.grown, self.grown, strict=True):
            slot.keys, slot.values = whole.keys.index_select(0, rows), whole.values.index_select(0, rows)
        return kept

    def concatenate(self, other: ConcatenatedCache) -> ConcatenatedCache:
        joined = ConcatenatedCache(self.shape.of_rows(self.shape.batch + other.shape.batch))
        joined.length = self.length
        for slot, first, second in zip(joined.grown, self.grown, other.grown, strict=True):
            slot.keys = torch.cat((first.keys, second.keys))
            slot.values = torch.cat((first.values, second.values))
        return joined


class AllocatedLayerCache:
    """Room for tokens that are still to come: a new column is written in place."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.visible = 0

    def write(self, keys: Tensor, values: Tensor, context: PassContext) -> tuple[Tensor, Tensor]:
        past, new = context.past, keys.shape[2]
        self.keys.narrow(2, past, new).copy_(keys)  # an index by slices takes Python longer
        self.values.narrow(2, past, new).copy_(values)
        return self.keys.narrow(2, 0, self.visible), self.values.narrow(2, 0, self.visible)


class AllocatedCache:
    """Allocated `ahead` tokens at a time, copied when full; with `ahead=None`, once for the whole generation."""

    def __init__(self, shape: CacheShape, ahead: int | None) -> None:
        self.shape, self.ahead, self.length, self.capacity = shape, ahead, 0, 0
        self.allocated = [AllocatedLayerCache(shape.empty(0), shape.empty(0)) for _ in range(shape.arch.layers)]
        self.slots: list[LayerCache] = list(self.allocated)
        self.allocations = 0

    def keys_after(self, new: int) -> int:
        needed = _round_up(self.length + new, self.shape.key_multiple)
        if needed > self.capacity:
            whole = self.length + new + self.ahead if self.ahead else max(self.shape.length, needed)
            self._grow(_round_up(whole, self.shape.key_multiple))
        for slot in self.allocated:
            slot.visible = needed
        return needed

    def _grow(self, capacity: int) -> None:
        self.capacity, self.allocations = capacity, self.allocations + 1
        for slot in self.allocated:
            keys, values = self.shape.empty(capacity), self.shape.empty(capacity)
            keys[:, :, : self.length] = slot.keys[:, :, : self.length]
            values[:, :, : self.length] = slot.values[:, :, : self.length]
            slot.keys, slot.values = keys, values

    def truncate(self, length: int) -> None:
        self.length = length

    def tensors(self) -> list[Tensor]:
        return [tensor for slot in self.allocated for tensor in (slot.keys, slot.values)]

    def filter(self, rows: Tensor) -> AllocatedCache:
        kept = self._same_shape(len(rows))
        for slot, whole in zip(kept.allocated, self.allocated, strict=True):
            slot.keys, slot.values = whole.keys.index_select(0, rows), whole.values.index_select(0, rows)
        return kept

    def concatenate(self, other: AllocatedCache) -> AllocatedCache:
        joined = self._same_shape(self.shape.batch + other.shape.batch)
        for slot, first, second in zip(joined.allocated, self.allocated, other.allocated, strict=True):
            slot.keys = torch.cat((first.keys, second.keys))
            slot.values = torch.cat((first.values, second.values))
        return joined

    def replace(self, rows: Tensor, other: AllocatedCache) -> None:
        """Write the rows of `other`, which is as long, over `rows`, int64: the rest stays where it is."""
        end = self.length
        for slot, joining in zip(self.allocated, other.allocated, strict=True):
            slot.keys[:, :, :end].index_copy_(0, rows, joining.keys[:, :, :end])
            slot.values[:, :, :end].index_copy_(0, rows, joining.values[:, :, :end])

    def _same_shape(self, batch: int) -> AllocatedCache:
        other = AllocatedCache(self.shape.of_rows(batch), self.ahead)
        other.length, other.capacity, other.allocations = self.length, self.capacity, self.allocations
        return other


class Reused:
    """Makes a cache for the first generation and hands the same one, emptied, to every later one.

    What the earlier generation left is overwritten, or masked. One generation at a time.
    """

    def __init__(self, make: Callable[[CacheShape], AllocatedCache]) -> None:
        self.make = make
        self.made: dict[CacheShape, AllocatedCache] = {}

    def __call__(self, shape: CacheShape) -> AllocatedCache:
        cache = self.made.get(shape)
        if cache is None:
            cache = self.made[shape] = self.make(shape)
        cache.truncate(0)
        return cache


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
