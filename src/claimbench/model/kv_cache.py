"""Key-value caches: where a pass writes its keys and values, and what attention reads back.

Tensors are [batch, kv_heads, keys, head_dim], one pair a layer. Rows are aligned at their ends: a shorter row starts
later, behind padding that is never attended to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from claimbench.model.cost import Architecture
from claimbench.model.transformer import Slot, Span


@dataclass(frozen=True)
class Room:
    """What a cache must have room for."""

    arch: Architecture
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


class Cache(Protocol):
    slots: list[Slot]
    length: int
    """Slots filled so far."""

    def keys_after(self, new: int) -> int:
        """How many keys attention will see after `new` more; makes room for them."""

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` slots."""

    def tensors(self) -> list[Tensor]:
        """Every tensor that is held."""


class ConcatenatedSlot:
    """Grown by copying everything at every token: reads and writes the whole cache to add one column."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def write(self, keys: Tensor, values: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        self.keys, self.values = keys, values
        return keys, values


class ConcatenatedCache:
    def __init__(self, room: Room) -> None:
        self.grown = [ConcatenatedSlot() for _ in range(room.arch.layers)]
        self.slots: list[Slot] = list(self.grown)
        self.length = 0

    def keys_after(self, new: int) -> int:
        return self.length + new

    def truncate(self, length: int) -> None:
        self.length = length
        for slot in self.grown:
            if slot.keys is not None and slot.values is not None:
                slot.keys, slot.values = slot.keys[:, :, :length], slot.values[:, :, :length]

    def tensors(self) -> list[Tensor]:
        return [tensor for slot in self.grown for tensor in (slot.keys, slot.values) if tensor is not None]


class AllocatedSlot:
    """Room for tokens that are still to come: a new column is written in place."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.visible = 0

    def write(self, keys: Tensor, values: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        end = span.past + keys.shape[2]
        self.keys[:, :, span.past : end] = keys
        self.values[:, :, span.past : end] = values
        return self.keys[:, :, : self.visible], self.values[:, :, : self.visible]


class AllocatedCache:
    """Allocated `ahead` tokens at a time, copied when full; with `ahead=None`, once for the whole generation."""

    def __init__(self, room: Room, ahead: int | None) -> None:
        self.room, self.ahead, self.length, self.capacity = room, ahead, 0, 0
        self.allocated = [AllocatedSlot(room.empty(0), room.empty(0)) for _ in range(room.arch.layers)]
        self.slots: list[Slot] = list(self.allocated)
        self.allocations = 0

    def keys_after(self, new: int) -> int:
        needed = _round_up(self.length + new, self.room.key_multiple)
        if needed > self.capacity:
            whole = self.length + new + self.ahead if self.ahead else max(self.room.length, needed)
            self._grow(_round_up(whole, self.room.key_multiple))
        for slot in self.allocated:
            slot.visible = needed
        return needed

    def _grow(self, capacity: int) -> None:
        self.capacity, self.allocations = capacity, self.allocations + 1
        for slot in self.allocated:
            keys, values = self.room.empty(capacity), self.room.empty(capacity)
            keys[:, :, : self.length] = slot.keys[:, :, : self.length]
            values[:, :, : self.length] = slot.values[:, :, : self.length]
            slot.keys, slot.values = keys, values

    def truncate(self, length: int) -> None:
        self.length = length

    def tensors(self) -> list[Tensor]:
        return [tensor for slot in self.allocated for tensor in (slot.keys, slot.values)]


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
