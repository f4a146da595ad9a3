"""Masks that are made once for a batch: a decode step takes a view of them, where it needs one at all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from claimbench.engine.batch import Batch

Mask = Callable[[Batch, int, int, int], Tensor | None]
"""(batch, past, new, keys) -> what is added to the scores, [batch or 1, heads or 1, new, keys]; None: nothing."""


class Tables:
    """What hides the future and the padding from any token of one batch, up to `length` keys."""

    def __init__(self, batch: Batch, length: int) -> None:
        self.padding, self.length = batch.padding, length
        least = torch.finfo(batch.dtype).min
        steps = torch.zeros(2 * length, dtype=batch.dtype, device=batch.device)
        steps[length:] = least
        self.future = steps
        """Zeros, then as many hidden: the token at p sees the window that has p + 1 zeros left."""
        self.rows: Tensor | None = None
        """Of padding and distance, what the last token of all would see: [batch or 1, heads or 1, 1, length]."""
        if batch.ragged or batch.slopes is not None:
            padding = batch.padding if batch.ragged else batch.padding[:1]
            self.rows = attention_bias(padding, batch.slopes, batch.dtype, length - 1, 1, length)

    def bias(self, past: int, new: int, keys: int) -> Tensor:
        """[batch or 1, heads or 1, new, keys]; for one token it is a view wherever one of the tables says it all."""
        first = self.length - past - new
        if new > 1:
            windows = self.future.unfold(0, keys, 1)[first : first + new]
            future = windows.flip(0)[None, None]  # the first token sees the least
        elif self.rows is not None and keys == past + 1:
            return self.rows[..., :keys]
        else:
            future = self.future[first : first + keys].view(1, 1, 1, keys)
        return future if self.rows is None else self.rows[..., :keys] + future


class KeptMask:
    """The mask of an engine: none where nothing is hidden, else out of tables that outlive the pass."""

    def __init__(self) -> None:
        self.tables: Tables | None = None
        self.prompt: tuple[tuple[int, int], Tensor] | None = None
        """(tokens, keys) of the last prompt, and its bias, which the next generation asks for again."""

    def __call__(self, batch: Batch, past: int, new: int, keys: int) -> Tensor | None:
        if new == 1 and keys == past + 1 and not batch.ragged and batch.slopes is None:
            return None
        if self.tables is None or self.tables.padding is not batch.padding or self.tables.length < keys:
            self.tables = Tables(batch, max(keys, batch.cache_shape.length))
            self.prompt = None
        if past:
            return self.tables.bias(past, new, keys)
        if self.prompt is None or self.prompt[0] != (new, keys):
            self.prompt = (new, keys), self.tables.bias(past, new, keys)
        return self.prompt[1]


def mask_in_full(batch: Batch, past: int, new: int, keys: int) -> Tensor | None:
    """What each new token must not see, as a number to add to its scores: [batch, 1 or heads, new, keys]."""
    return attention_bias(batch.padding, batch.slopes, batch.dtype, past, new, keys)


def attention_bias(
    padding: Tensor, slopes: Tensor | None, dtype: torch.dtype, past: int | Tensor, new: int, keys: int
) -> Tensor:
    """The future and the `padding` [batch], hidden from each new token; with `slopes` [heads], distance counts too."""
    key = torch.arange(keys, device=padding.device)
    query = past + torch.arange(new, device=padding.device)  # the past may be a number on the device
    seen = (key[None] <= query[:, None]) & (key >= padding[:, None, None])  # [batch, new, keys]
    hidden = torch.zeros(seen.shape, dtype=dtype, device=padding.device)
    # the type's least number, not infinity: a row of padding sees nothing, and its softmax must stay finite
    hidden = hidden.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
    if slopes is None:
        return hidden
    distance = (key - padding[:, None]).float()[:, None, None]  # [batch, 1, 1, keys]
    return hidden + (slopes[None, :, None, None] * distance).to(dtype)


def within(
    window: int, bias: Tensor | None, dtype: torch.dtype, device: torch.device, past: int | Tensor, new: int, keys: int
) -> Tensor:
    """`bias` [batch or 1, heads or 1, new, keys], with all hidden but the `window` last slots up to each new token."""
    key = torch.arange(keys, device=device)
    query = (past + torch.arange(new, device=device))[:, None]
    seen = (key <= query) & (key > query - window)  # [new, keys]
    shown = torch.zeros((1, 1, new, keys), dtype=dtype, device=device) if bias is None else bias
    return shown.masked_fill(~seen, torch.finfo(dtype).min)
