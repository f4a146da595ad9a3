"""Where a pass writes what it computes: into new tensors, or into the ones that it wrote to last time."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from claimbench.engine.batch import Batch
from claimbench.engine.model.parts import PlainLinear
from claimbench.engine.model.transformer import Transformer


class Buffers(Protocol):
    """What the decode loop itself writes at every step."""

    def begin(self, prompt: Tensor) -> Tensor:
        """The sequence of a new generation: its prompt, int64 [batch, prompt]."""

    def extend(self, sequence: Tensor, tokens: Tensor) -> Tensor:
        """`sequence` [batch, so far] with `tokens` [batch] behind it."""

    def positions(self, past: int, new: int) -> Tensor:
        """Of `new` tokens in their rows, int64 [batch, new]; slots of padding have position 0."""


class Fresh:
    """New tensors for everything, at every pass."""

    def __init__(self, batch: Batch, model: Transformer) -> None:
        self.batch = batch

    def begin(self, prompt: Tensor) -> Tensor:
        return prompt

    def extend(self, sequence: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat((sequence, tokens[:, None]), 1)

    def positions(self, past: int, new: int) -> Tensor:
        own = torch.arange(past, past + new, device=self.batch.device) - self.batch.padding[:, None]
        return own.clamp(min=0)


class Reused:
    """Tensors that are allocated once: the sequence, the positions, and what each plain matrix gives.

    A matrix's result lives until the next matrix of its width, in this layer or the one after it, writes: everything
    between has read it by then, since a cache keeps copies and the residual stream is its own tensor.
    """

    def __init__(self, batch: Batch, model: Transformer) -> None:
        self.padding = batch.padding
        self.tokens = batch.prompt.new_empty((len(batch.prompt), batch.cache_shape.length + 1))
        self.numbers = self._numbered(batch.cache_shape.length)
        self.results = Results()
        write_into(self.results, model)

    def _numbered(self, length: int) -> Tensor:
        return (torch.arange(length, device=self.padding.device) - self.padding[:, None]).clamp(min=0)

    def begin(self, prompt: Tensor) -> Tensor:
        length = prompt.shape[1]
        self.tokens[:, :length] = prompt
        return self.tokens[:, :length]

    def extend(self, sequence: Tensor, tokens: Tensor) -> Tensor:
        length = sequence.shape[1]
        self.tokens[:, length] = tokens
        return self.tokens[:, : length + 1]

    def positions(self, past: int, new: int) -> Tensor:
        if past + new > self.numbers.shape[1]:
            self.numbers = self._numbered(past + new)
        return self.numbers[:, past : past + new]


class Results:
    """One tensor for all matrices of a width, as long as the longest pass so far needs."""

    def __init__(self) -> None:
        self.storages: dict[int, Tensor] = {}
        self.views: dict[tuple[int, int], Tensor] = {}

    def of(self, rows: int, width: int, like: Tensor) -> Tensor:
        """[rows, width], with whatever was there before."""
        view = self.views.get((rows, width))
        if view is None:
            storage = self.storages.get(width)
            if storage is None or len(storage) < rows:
                storage = self.storages[width] = like.new_empty((rows, width))
                self.views = {key: held for key, held in self.views.items() if key[1] != width}
            view = self.views[rows, width] = storage[:rows]
        return view


class BufferedLinear(nn.Module):
    """A plain matrix that writes its result where it wrote the last one."""

    def __init__(self, plain: PlainLinear, results: Results) -> None:
        super().__init__()
        self.weight, self.bias, self.results = plain.weight, plain.bias, results
        self.transposed = plain.weight.t()

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # compiled code plans its own buffers
            return nn.functional.linear(x, self.weight, self.bias)
        batch, new, width = x.shape
        result = self.results.of(batch * new, self.transposed.shape[1], x)
        if self.bias is None:
            torch.mm(x.reshape(-1, width), self.transposed, out=result)
        else:
            torch.addmm(self.bias, x.reshape(-1, width), self.transposed, out=result)
        return result.view(batch, new, -1)


def write_into(results: Results, model: Transformer) -> None:
    """Let every plain matrix of `model` write into `results`; what is no plain matrix stays as it is."""
    for module in [*model.modules()]:
        for name, part in [*module.named_children()]:
            if type(part) is PlainLinear:
                setattr(module, name, BufferedLinear(part, results))


def add_in_place(x: Tensor, y: Tensor) -> Tensor:
    """x + y where x was: the residual stream is one tensor from the embedding to the last norm."""
    return x + y if torch.compiler.is_compiling() else x.add_(y)
