"""The engine's decode step as a call of the native one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from claimbench.model.kv_cache import AllocatedCache, Cache
from claimbench.native.decoder import Formats, NativeDecoder
from claimbench.native.packing import Format

if TYPE_CHECKING:
    from claimbench.engine import Decoder

OF_BITS: dict[int, Format] = {4: "int4", 8: "int8"}
OF_TYPE: dict[torch.dtype, Format] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class StepInC:
    """A step that holds the weights a second time, in the order in which it reads them."""

    def __init__(self, decoder: Decoder) -> None:
        assert decoder.weights is not None
        bits, plain = decoder.engine.weight_bits, OF_TYPE.get(decoder.dtype, "float32")
        layers, head = (OF_BITS[bits[0]], OF_BITS[bits[1]]) if bits else (plain, plain)
        self.decoder = decoder
        self.native = NativeDecoder(
            decoder.spec, decoder.weights, Formats(layers, layers, head), threads=torch.get_num_threads()
        )
        self.padding: Tensor | None = None

    def __call__(self, tokens: Tensor, cache: Cache) -> Tensor:
        assert isinstance(cache, AllocatedCache)
        if self.padding is not self.decoder.padding:
            self._place(self.decoder.padding)
        if tokens.shape[1] == 1:
            return self._advance(tokens[:, 0], cache)[:, None]
        return torch.stack([self._advance(column, cache).clone() for column in tokens.unbind(1)], 1)

    def _place(self, padding: Tensor) -> None:
        """Positions of every row at every length, made once."""
        self.padding, longest = padding, self.decoder.room.length
        self.positions = list((torch.arange(longest, device=padding.device)[:, None] - padding).clamp(min=0))

    def _advance(self, tokens: Tensor, cache: AllocatedCache) -> Tensor:
        """Logits [batch, vocabulary] after one more token; the next call overwrites them."""
        cache.keys_after(1)
        keys = [slot.keys for slot in cache.allocated]
        values = [slot.values for slot in cache.allocated]
        position, length = self.positions[cache.length], cache.length
        assert self.padding is not None
        logits = self.native.step(tokens.contiguous(), position, keys, values, self.padding, length)
        cache.length += 1
        return logits

    def weight_bytes(self) -> int:
        """Bytes of weights that one step of batch 1 reads."""
        return self.native.weight_bytes()

    def tensors(self) -> list[Tensor]:
        return self.native.tensors()


def step_in_c(decoder: Decoder) -> StepInC:
    return StepInC(decoder)
