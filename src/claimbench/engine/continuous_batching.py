"""Requests that leave a batch and others that join it: what continuous batching does to a key-value cache.

Every row of a cell is to have its full length, so here the requests that leave are the ones that join again, at once
and in their old place, the end of the batch: tokens, positions and odds stay as they are, and what is left is the work
on the cache. A request's keys and values that come in are a copy of those that went out, which stands for what its
prefill would have made; that copy is of `leave` rows, and is counted with the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from claimbench.engine.decoder import Decoder
from claimbench.engine.kv_cache import AllocatedCache, Cache

Exchange = Callable[[Cache, int], Cache]
"""(cache, how many leave) -> the cache after they left and joined again."""


def _leaving(cache: Cache, leave: int) -> tuple[Tensor, Tensor]:
    """Rows that stay and rows that leave, int64."""
    rows = torch.arange(cache.shape.batch, device=cache.shape.device)
    return rows[:-leave], rows[-leave:]


def by_copying(cache: Cache, leave: int) -> Cache:
    """As text-generation-inference's `filter` and `concatenate`: every row is copied to leave, and again to join."""
    stay, gone = _leaving(cache, leave)
    return cache.filter(stay).concatenate(cache.filter(gone))


def by_slots(cache: Cache, leave: int) -> Cache:
    """Each row has its slot: one that leaves is free from then on, one that joins is written there, the rest stays."""
    assert isinstance(cache, AllocatedCache)
    _, gone = _leaving(cache, leave)
    cache.replace(gone, cache.filter(gone))
    return cache


def exchange_every(every: int, leave: int, exchange: Exchange) -> Callable[[Decoder, Cache, Tensor], Cache]:
    """What happens between two steps: before the first, and before each `every`-th after it, some leave and join."""
    passes = 0

    def between(decoder: Decoder, cache: Cache, tokens: Tensor) -> Cache:
        nonlocal passes
        if cache.length == decoder.batch.prompt.shape[1]:
            passes = 0  # another generation has begun
        if passes % every == 0:
            cache = decoder.cache = exchange(cache, leave)
            if decoder.draft is not None:
                decoder.draft.cache = exchange(decoder.draft.cache, leave)
        passes += 1
        return cache

    return between
