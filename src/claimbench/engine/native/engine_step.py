"""The engine's decode step as a call of the native one, and its matrices for the modules, which read the prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from claimbench.engine.buffers import Fresh
from claimbench.engine.kv_cache import AllocatedCache, Cache
from claimbench.engine.model.transformer import Linear, Parts, PlainLinear
from claimbench.engine.model.weights import Affine, Weights
from claimbench.engine.native.decoder import NativeDecoder
from claimbench.engine.native.packed_model import Formats, matrices_of
from claimbench.engine.native.packing import Format

if TYPE_CHECKING:
    from claimbench.engine.decoder import Decoder

OF_BITS: dict[int, Format] = {4: "int4", 8: "int8"}
OF_TYPE: dict[torch.dtype, Format] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class MatricesInC:
    """A model's matrices in the order in which the native step reads them."""

    def __init__(self, decoder: Decoder, weights: Weights, shared: bool | None = None) -> None:
        """`shared`: the modules multiply with them as well; None: where that is the faster way, and the only one asked
        for."""
        bits, plain = decoder.engine.weight_bits, OF_TYPE.get(decoder.dtype, "float32")
        layers, head = (OF_BITS[bits[0]], OF_BITS[bits[1]]) if bits else (plain, plain)
        engine = decoder.engine
        only_plain = engine.parts.linear is PlainLinear and engine.buffers is Fresh and plain == "float32"
        self.shared = (bits is not None or only_plain) if shared is None else shared
        self.native = NativeDecoder(
            decoder.spec, weights, Formats(layers, layers, head), threads=torch.get_num_threads()
        )

    @property
    def held(self) -> dict[str, int]:
        return self.native.held

    def parts(self, parts: Parts, weights: Weights) -> Parts:
        """Modules that would hold the matrices a second time, or widen codes at every prompt, multiply here instead."""
        if not self.shared:
            return parts
        tensors = [affine.weight for layer in weights.layers for affine in matrices_of(layer)]
        numbers = {id(tensor): number for number, tensor in enumerate([*tensors, weights.head])}

        def linear(affine: Affine) -> Linear:
            return NativeLinear(self.native, numbers[id(affine.weight)], len(affine.weight))

        return replace(parts, linear=linear, head=None)


class NativeLinear(nn.Module):
    """y = x W^T + b with W where the native step keeps it, however many rows x has."""

    def __init__(self, native: NativeDecoder, matrix: int, rows: int) -> None:
        super().__init__()
        self.native, self.matrix, self.rows = native, matrix, rows

    def forward(self, x: Tensor) -> Tensor:
        lines = x.reshape(-1, x.shape[-1]).float().contiguous()
        y = self.native.multiply(self.matrix, lines, self.rows)
        return y.view(*x.shape[:-1], self.rows).to(x.dtype)


class StepInC:
    """A step of the decoder's layers: all of them, or the first ones, which then share matrices and cache."""

    def __init__(self, decoder: Decoder) -> None:
        assert isinstance(decoder.matrices, MatricesInC)
        self.decoder, self.native, self.layers = decoder, decoder.matrices.native, decoder.spec.arch.layers
        self.padding: Tensor | None = None

    def __call__(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits [batch, new, vocabulary], float32; the next call overwrites them."""
        assert isinstance(cache, AllocatedCache)
        if self.padding is not self.decoder.padding:
            self._place(self.decoder.padding)
        past, new = cache.length, tokens.shape[1]
        cache.keys_after(new)
        keys = [slot.keys for slot in cache.allocated]
        values = [slot.values for slot in cache.allocated]
        positions = self.positions[past] if new == 1 else torch.cat(self.positions[past : past + new], 1)
        assert self.padding is not None
        logits = self.native.step(tokens.contiguous(), positions, keys, values, self.padding, past, layers=self.layers)
        cache.length += new
        return logits

    def _place(self, padding: Tensor) -> None:
        """Positions of every row at every length, [batch, 1] each, made once."""
        self.padding, longest = padding, self.decoder.cache_shape.length
        self.positions = list(
            (torch.arange(longest, device=padding.device)[:, None] - padding).clamp(min=0)[:, :, None]
        )

    def weight_bytes(self) -> int:
        """Bytes of weights that one step of batch 1 reads."""
        return self.native.weight_bytes()

    def tensors(self) -> list[Tensor]:
        return self.native.tensors()
