"""What a layer is made of: how a matrix is multiplied, a norm computed, attention done, and what a pass is told.

Each part has a plain way, written out operation by operation, until an optimization puts another in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from claimbench.engine.model.shards import Affine
from claimbench.engine.model.spec import Spec


@dataclass
class PassContext:
    """Where one pass stands: the positions that it adds, and what they may attend to."""

    past: int
    """Slots of the cache that were filled before."""
    positions: Tensor
    """Of the new tokens in their rows, int64 [batch, new]; slots of padding have some valid position."""
    bias: Tensor | None = None
    """Added to the scores: [batch or 1, heads or 1, new, keys]. None: nothing but causality."""
    packed: Packed | None = None
    """What the new tokens are made of, where they are several requests' in one row."""
    windowed: PassContext | None = None
    """The same pass for layers with a window, where that hides something."""

    @property
    def new(self) -> int:
        return int(self.positions.shape[1])


@dataclass
class Packed:
    """Requests one after the other in one row, none of which sees another: a prompt without padding."""

    contexts: list[PassContext]
    """Each request's own pass."""
    starts: Tensor
    """Where each begins, and where the last ends: int32 [requests + 1]."""
    longest: int


class LayerCache(Protocol):
    """One layer's place in a key-value cache."""

    def write(self, keys: Tensor, values: Tensor, context: PassContext) -> tuple[Tensor, Tensor]:
        """Add [batch, kv_heads, new, head_dim]; all keys and all values, [batch, kv_heads, keys, head_dim]."""


Linear = Callable[[Tensor], Tensor]
Norm = Callable[[Tensor], Tensor]
Softmax = Callable[[Tensor, Tensor | None, float], Tensor]
"""(scores [..., keys], bias or None, scale) -> probabilities of the scores' type."""
Attend = Callable[[Tensor, Tensor, Tensor, PassContext, float, Softmax], Tensor]
"""(queries, keys, values, context, scale, softmax) -> [batch, heads, new, head_dim]."""


class PlainLinear(nn.Module):
    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.weight = nn.Parameter(affine.weight, requires_grad=False)
        self.bias = None if affine.bias is None else nn.Parameter(affine.bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class PlainNorm(nn.Module):
    """RMSNorm or LayerNorm, written out operation by operation, in float32 as Transformers computes it."""

    def __init__(self, affine: Affine, spec: Spec) -> None:
        super().__init__()
        self.weight = nn.Parameter(affine.weight, requires_grad=False)
        self.bias = None if affine.bias is None else nn.Parameter(affine.bias, requires_grad=False)
        self.eps, self.centred = spec.eps, spec.norm == "layer"

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        scaled = wide.to(x.dtype) * self.weight
        return scaled if self.bias is None else scaled + self.bias


class PlainGelu(nn.Module):
    """GELU after a matrix, operation by operation: in its tanh form, or with the error function."""

    def __init__(self, dense: Linear, spec: Spec) -> None:
        super().__init__()
        self.dense, self.by_tanh = dense, spec.activation == "tanh_gelu"

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x)
        if not self.by_tanh:
            return 0.5 * y * (1.0 + torch.erf(y * math.sqrt(0.5)))
        return 0.5 * y * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * y * y * y)))


def plain_softmax(scores: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Scale, mask, widen to float32, softmax, narrow: one pass over the scores each."""
    scores = scores * scale
    if bias is not None:
        scores = scores + bias
    return functional.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap)


def capped_softmax(softmax: Softmax, cap: float) -> Softmax:
    """`softmax` of scores that come to cap * tanh(score / cap) before they are masked."""

    def capped(scores: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        return softmax(soft_cap(scores * scale, cap), bias, 1.0)

    return capped


def softmax_with_sinks(softmax: Softmax, sinks: Tensor) -> Softmax:
    """`softmax` over one more score for each head, `sinks` [heads], whose weight goes nowhere."""

    def with_sinks(scores: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        batch, heads, new, keys = scores.shape
        sink = (sinks / scale).to(scores.dtype).view(1, heads, 1, 1).expand(batch, heads, new, 1)
        bias = None if bias is None else functional.pad(bias, (0, 1))
        return softmax(torch.cat((scores, sink), -1), bias, scale)[..., :keys]

    return with_sinks


def attend_by_scores(q: Tensor, k: Tensor, v: Tensor, context: PassContext, scale: float, softmax: Softmax) -> Tensor:
    """Attention that writes the matrix of scores, [batch, heads, new, keys], to memory.

    Queries that share a key-value head are one tall matrix, so that the head is read once and never repeated.
    """
    batch, heads, new, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads * new, head_dim)
    scores = (grouped @ k.transpose(2, 3)).view(batch, heads, new, keys)
    weights = softmax(scores, context.bias, scale).view(batch, kv_heads, heads // kv_heads * new, keys)
    return (weights @ v).view(batch, heads, new, head_dim)


def attend_one_by_one(attend: Attend) -> Attend:
    """`attend`, over the requests of a packed row, one after the other."""

    def attend_each(q: Tensor, k: Tensor, v: Tensor, context: PassContext, scale: float, softmax: Softmax) -> Tensor:
        assert context.packed is not None
        lengths = [own.new for own in context.packed.contexts]
        queries, keys, values = (torch.split(each, lengths, dim=2) for each in (q, k, v))
        rows = zip(queries, keys, values, context.packed.contexts, strict=True)
        return torch.cat([attend(q, k, v, own, scale, softmax) for q, k, v, own in rows], 2)

    return attend_each


def never(past: int, new: int, keys: int) -> bool:
    return False


@dataclass
class Parts:
    """How the operations of a layer are done: the plain way, until an optimization puts another in its place."""

    linear: Callable[[Affine], Linear] = PlainLinear
    head: Callable[[Affine], Linear] | None = None
    """The output head's product, where it is not as the others'."""
    norm: Callable[[Affine, Spec], Norm] = PlainNorm
    gelu: Callable[[Linear, Spec], Linear] = PlainGelu
    softmax: Softmax = plain_softmax
    attend_prompt: Attend = attend_by_scores
    attend_packed: Attend | None = None
    """Over a packed row; None: `attend_prompt` over each request."""
    attend_step: Attend = attend_by_scores
    causal: Callable[[int, int, int], bool] = never
    """(past, new, keys) -> whether attention hides the future by itself; then it needs no bias to do so."""
    look_up: Callable[[Tensor, Tensor], Tensor] = functional.embedding
    """Token ids [batch, new] and the table of embeddings -> [batch, new, hidden]."""
    add: Callable[[Tensor, Tensor], Tensor] = torch.add
    """What a layer's half gives, the second, to the residual stream, the first, which nothing else reads afterwards."""

    def attend(self, context: PassContext) -> Attend:
        if context.packed is not None:
            return self.attend_packed or attend_one_by_one(self.attend_prompt)
        return self.attend_prompt if context.past == 0 else self.attend_step
