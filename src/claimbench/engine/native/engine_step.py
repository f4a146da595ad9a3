"""The engine's decode step as a call of the native one, and its matrices for the modules, which read the prompt."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from claimbench.engine.kv_cache import AllocatedCache, Cache
from claimbench.engine.model.parts import Linear, Parts
from claimbench.engine.model.shards import Affine
from claimbench.engine.model.spec import Spec
from claimbench.engine.model.weights import Weights
from claimbench.engine.native.decoder import NativeDecoder
from claimbench.engine.native.instruction_sets import Instructions, flags_of
from claimbench.engine.native.packed_model import Formats, matrices_of
from claimbench.engine.native.packing import Format
from claimbench.engine.pass_setup import MatrixStorage, PassSetup

OF_BITS: dict[int, Format] = {4: "int4", 8: "int8"}
LINES_AT_ONCE = 128
OF_TYPE: dict[torch.dtype, Format] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class MatricesInC:
    """A model's matrices in the order in which the native step reads them."""

    def __init__(
        self,
        spec: Spec,
        weights: Weights,
        storage: MatrixStorage,
        shared: bool | None = None,
        instructions: Instructions | None = None,
    ) -> None:
        """`shared`: the modules multiply with them as well; None: where that is faster, and nothing forbids it.

        Raises:
            Unavailable: this CPU lacks `instructions`.
        """
        bits, plain = storage.bits, OF_TYPE.get(storage.dtype, "float32")
        layers, head = (OF_BITS[bits[0]], OF_BITS[bits[1]]) if bits else (plain, plain)
        only_plain = storage.plain_modules and plain == "float32"
        self.shared = (bits is not None or only_plain) if shared is None else shared
        formats, threads = Formats(layers, layers, head), torch.get_num_threads()
        self.native = NativeDecoder(spec, weights, formats, threads, flags_of(instructions))

    @property
    def held(self) -> dict[str, int]:
        return self.native.held

    @property
    def instructions(self) -> str:
        return self.native.instructions

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


def prefill_in_c(setup: PassSetup, cache: Cache) -> Tensor:
    """The prompt, some tokens of every row at a time: hidden states [batch, longest, hidden], padding included.

    A pass over more lines than that would push what it reads of them out of the cache between two panels.
    """
    assert isinstance(setup.matrices, MatricesInC)
    assert isinstance(cache, AllocatedCache)
    native, batch, prompt = setup.matrices.native, setup.batch, setup.batch.prompt
    rows, longest = prompt.shape
    at_once, parts = max(1, LINES_AT_ONCE // rows), []
    for past in range(0, longest, at_once):
        tokens = prompt[:, past : past + at_once].contiguous()
        new = tokens.shape[1]
        cache.keys_after(new)
        keys, values = [slot.keys for slot in cache.allocated], [slot.values for slot in cache.allocated]
        positions = (torch.arange(past, past + new) - batch.padding[:, None]).clamp(min=0)
        hidden = torch.empty(rows, new, setup.model.spec.arch.hidden)
        starts = batch.padding.clamp(max=past + new - 1)  # a row of padding alone sees a slot that nobody reads
        native.step(tokens, positions, keys, values, starts, past, logits_to_keep=0, hidden=hidden)
        cache.length += new
        parts.append(hidden)
    return torch.cat(parts, 1).to(batch.dtype)


class StepInC:
    """A step of the model's layers: all of them, or the first ones, which then share matrices and cache."""

    def __init__(self, setup: PassSetup) -> None:
        assert isinstance(setup.matrices, MatricesInC)
        self.native, self.layers = setup.matrices.native, len(setup.model.layers)
        self.padding, longest = setup.batch.padding, setup.batch.cache_shape.length
        column = torch.arange(longest, device=self.padding.device)[:, None]
        self.positions = list((column - self.padding).clamp(min=0)[:, :, None])
        """Of every row at every length, [batch, 1] each."""

    def __call__(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits [batch, new, vocabulary], float32; the next call overwrites them."""
        assert isinstance(cache, AllocatedCache)
        past, new = cache.length, tokens.shape[1]
        cache.keys_after(new)
        keys = [slot.keys for slot in cache.allocated]
        values = [slot.values for slot in cache.allocated]
        positions = self.positions[past] if new == 1 else torch.cat(self.positions[past : past + new], 1)
        logits = self.native.step(tokens.contiguous(), positions, keys, values, self.padding, past, layers=self.layers)
        cache.length += new
        return logits

    def weight_bytes(self) -> int:
        """Bytes of weights that one step of batch 1 reads."""
        return self.native.weight_bytes()

    def tensors(self) -> list[Tensor]:
        return self.native.tensors()
