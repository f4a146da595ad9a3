"""One batch of prompts: its rows in one tensor, and what masks, buffers and steps work out from where they begin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from claimbench.engine.kv_cache import CacheShape


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts whose ends are aligned: a shorter one stands behind padding. What is kept for a batch is kept by `is`."""

    prompt: Tensor
    """Token ids, int64 [batch, longest]; padding repeats the row's first token."""
    padding: Tensor
    """Slots of each row before its first token, int64 [batch]."""
    lengths: list[int]
    """Of each row, in tokens, without padding."""
    slopes: Tensor | None
    """Of the model's heads, [heads], where positions are ALiBi's."""
    cache_shape: CacheShape
    """What a cache of a whole generation must have room for."""

    @cached_property
    def ragged(self) -> bool:
        """Whether some row has padding."""
        return min(self.lengths) < max(self.lengths)

    @cached_property
    def dtype(self) -> torch.dtype:
        return self.cache_shape.dtype

    @cached_property
    def device(self) -> torch.device:
        return self.cache_shape.device


def batch_of(rows: list[list[int]], slopes: Tensor | None, cache_shape: CacheShape) -> Batch:
    """Rows of token ids as one batch on the cache's device."""
    lengths = [len(row) for row in rows]
    longest, device = max(lengths), cache_shape.device
    padded = [row[:1] * (longest - len(row)) + row for row in rows]
    padding = [longest - length for length in lengths]
    return Batch(
        torch.tensor(padded, device=device), torch.tensor(padding, device=device), lengths, slopes, cache_shape
    )
