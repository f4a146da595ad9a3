"""Prefill of rows of several lengths as one row of real tokens, spread over a padded batch only where it is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from claimbench.engine.batch import Batch
from claimbench.engine.kv_cache import Cache
from claimbench.engine.masks import attention_bias
from claimbench.engine.model.parts import LayerCache, Packed, PassContext
from claimbench.engine.pass_setup import PassSetup


class SpreadLayerCache:
    """A layer's slot that is written a packed row, and holds it as a padded batch."""

    def __init__(self, slot: LayerCache, padded: PassContext, place: Tensor) -> None:
        self.slot, self.padded, self.place = slot, padded, place

    def write(self, keys: Tensor, values: Tensor, context: PassContext) -> tuple[Tensor, Tensor]:
        """Packed in, [1, kv_heads, tokens, head_dim], and packed out: attention goes over the real tokens."""
        self.slot.write(self._spread(keys), self._spread(values), self.padded)
        return keys, values

    def _spread(self, row: Tensor) -> Tensor:
        return row[0][:, self.place].transpose(0, 1)  # [batch, kv_heads, longest, head_dim]


@dataclass(frozen=True)
class Layout:
    """Which token of the packed row stands where: laid out once, with the batch."""

    prompt: Tensor
    """The padded one that it was made for, [batch, longest]."""
    tokens: Tensor
    """[1, tokens]"""
    positions: Tensor
    """Of each token in its own row, [1, tokens]."""
    starts: Tensor
    """Where each row begins, and where the last one ends: int32 [batch + 1]."""
    place: Tensor
    """Where the packed row has each slot of the padded batch, [batch, longest]; for padding, the row's first token."""


def lay_out(batch: Batch) -> Layout:
    column = torch.arange(batch.prompt.shape[1], device=batch.device)
    position = column - batch.padding[:, None]  # [batch, longest]
    real = position >= 0
    starts = torch.tensor([0, *batch.lengths], device=batch.device).cumsum(0)
    place = starts[:-1, None] + position.clamp(min=0)
    return Layout(batch.prompt, batch.prompt[real][None], position[real][None], starts.int(), place)


class PackedPrefill:
    def __init__(self) -> None:
        self.layout: Layout | None = None

    def __call__(self, setup: PassSetup, cache: Cache) -> Tensor:
        """Hidden states [batch, longest, hidden], those of padding without meaning."""
        batch = setup.batch
        if self.layout is None or self.layout.prompt is not batch.prompt:
            self.layout = lay_out(batch)
        layout, longest = self.layout, max(batch.lengths)
        cache.keys_after(longest)
        own = _own_passes(setup, layout, longest)
        packed = Packed(own, layout.starts, longest)
        seen = Packed([each.windowed or each for each in own], layout.starts, longest)
        padded = PassContext(past=0, positions=layout.place)
        slots: list[LayerCache] = [SpreadLayerCache(slot, padded, layout.place) for slot in cache.slots]
        windowed = PassContext(past=0, positions=layout.positions, packed=seen)
        context = PassContext(past=0, positions=layout.positions, packed=packed, windowed=windowed)
        hidden: Tensor = setup.model(layout.tokens, context, slots)  # [1, tokens, hidden]
        cache.length += longest
        return hidden[0][layout.place]


def _own_passes(setup: PassSetup, layout: Layout, longest: int) -> list[PassContext]:
    """Every request's pass; what is hidden in the longest one is hidden, as far as it goes, in each."""
    batch = setup.batch
    positions = torch.split(layout.positions, batch.lengths, dim=1)
    if batch.slopes is None and setup.model.parts.causal(0, longest, longest):
        biases: list[Tensor | None] = [None for _ in positions]
    else:
        unpadded = batch.padding.new_zeros(1)
        bias = attention_bias(unpadded, batch.slopes, batch.dtype, 0, longest, longest)  # [1, 1 or heads, ...]
        biases = [bias[:, :, : own.shape[1], : own.shape[1]] for own in positions]
    return [_own_pass(setup, *each) for each in zip(positions, biases, strict=True)]


def _own_pass(setup: PassSetup, positions: Tensor, bias: Tensor | None) -> PassContext:
    new = positions.shape[1]
    return PassContext(0, positions, bias, windowed=setup.windowed(bias, positions, 0, new, new))
