"""What any pass over a batch is made of, prefill or decode step: handed over by the decoder, never global."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from claimbench.engine.batch import Batch
from claimbench.engine.buffers import Buffers
from claimbench.engine.kv_cache import Cache
from claimbench.engine.masks import Mask, within
from claimbench.engine.model.parts import Parts, PassContext
from claimbench.engine.model.transformer import Transformer
from claimbench.engine.model.weights import Weights

Step = Callable[[Tensor, Cache], Tensor]
"""(tokens [batch, new], cache) -> logits [batch, new, vocabulary]; the cache is `new` longer afterwards."""


class Matrices(Protocol):
    """A model's matrices in an order of the step's own."""

    @property
    def held(self) -> dict[str, int]:
        """How many are stored in each format, as the code that multiplies with them reads it."""

    @property
    def instructions(self) -> str:
        """The CPU's instructions that products with them are made of."""

    def parts(self, parts: Parts, weights: Weights) -> Parts:
        """`parts`, where need be with these matrices instead of others: none is held twice for nothing."""


@dataclass(frozen=True)
class MatrixStorage:
    """How a step that has matrices of its own is to store them."""

    dtype: torch.dtype
    """The cell's; it counts where there are no codes."""
    bits: tuple[int, int] | None
    """Of the codes of the layers' matrices and of the head's; None: they are not coded."""
    plain_modules: bool
    """Nothing that is plugged in changes how modules multiply, or where they write the product."""


@dataclass(frozen=True, eq=False)
class PassSetup:
    model: Transformer
    batch: Batch
    mask: Mask
    buffers: Buffers
    matrices: Matrices | None
    """The step's own; None: it reads the modules'."""

    def context(self, cache: Cache, new: int) -> PassContext:
        """The pass that adds `new` tokens to `cache`."""
        past, keys = cache.length, cache.keys_after(new)
        batch = self.batch
        only_causal = not batch.ragged and batch.slopes is None and self.model.parts.causal(past, new, keys)
        bias = None if only_causal else self.mask(batch, past, new, keys)
        positions = self.buffers.positions(past, new)
        return PassContext(past, positions, bias, windowed=self.windowed(bias, positions, past, new, keys))

    def windowed(self, bias: Tensor | None, positions: Tensor, past: int, new: int, keys: int) -> PassContext | None:
        """The pass as layers with a window see it; None where they see what the others do."""
        batch, window = self.batch, self.model.spec.window
        if window is None or past + new <= window:
            return None
        return PassContext(past, positions, within(window, bias, batch.dtype, batch.device, past, new, keys))
