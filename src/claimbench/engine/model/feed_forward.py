"""What a layer does to each token by itself: activations and gates, and mixtures of experts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from claimbench.engine.model.parts import Linear, Parts
from claimbench.engine.model.shards import Affine
from claimbench.engine.model.spec import Mixture, Spec
from claimbench.engine.model.weights import ExpertWeights, SharedWeights

Gate = Callable[[Tensor, Tensor], Tensor]
"""(gate, up) -> what goes down, of their shape."""


def squared_relu(x: Tensor) -> Tensor:
    return functional.relu(x).square()


def activation_of(spec: Spec) -> Linear:
    known: dict[str, Linear] = {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "tanh_gelu": functools.partial(functional.gelu, approximate="tanh"),
        "relu": functional.relu,
        "squared_relu": squared_relu,
    }
    return known[spec.activation]


def gate_of(spec: Spec) -> Gate:
    """How a gated feed-forward joins its halves."""
    if spec.activation == "clamped_swish":
        factor, most = spec.swish
        return functools.partial(clamped_swish, factor=factor, most=most)
    activation = activation_of(spec)

    def gate(gate: Tensor, up: Tensor) -> Tensor:
        return activation(gate) * up

    return gate


def clamped_swish(gate: Tensor, up: Tensor, factor: float, most: float) -> Tensor:
    """That of gpt-oss: both are held within bounds, and one is added to what is gated."""
    gate = gate.clamp(max=most)
    return (up.clamp(-most, most) + 1) * gate * torch.sigmoid(factor * gate)


class Activated(nn.Module):
    """An activation after a matrix, in one operation."""

    def __init__(self, dense: Linear, activation: Linear) -> None:
        super().__init__()
        self.dense, self.activation = dense, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))


class Scores(nn.Module):
    """What a router gives, or a gate of one number: no technique codes or moves its few weights."""

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.weight = nn.Parameter(affine.weight, requires_grad=False)
        self.bias = None if affine.bias is None else nn.Parameter(affine.bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.matmul(x, self.weight.t())
        return scores if self.bias is None else scores + self.bias


class Experts(nn.Module):
    """A mixture: each token passes through the experts that its router ranks first, and adds what they give."""

    def __init__(self, spec: Spec, weights: ExpertWeights, parts: Parts) -> None:
        super().__init__()
        assert spec.mixture is not None
        self.mixture, self.gate = spec.mixture, gate_of(spec)
        self.router = Scores(weights.router)
        self.up = nn.ModuleList(_module(parts.linear(each)) for each in weights.up)
        self.down = nn.ModuleList(_module(parts.linear(each)) for each in weights.down)
        self.shared = None if weights.shared is None else SharedExpert(spec, weights.shared, parts)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, new, hidden] -> the same; an expert that no token takes is not read."""
        tokens = x.reshape(-1, x.shape[-1])
        best, chosen = ranked(self.router(x).flatten(0, -2), self.mixture)
        mixed = torch.zeros_like(tokens)
        for expert in sorted(set(chosen.flatten().tolist())):
            rows, places = torch.where(chosen == expert)
            gate, up = self.up[expert](tokens[rows][None]).chunk(2, dim=-1)
            given = self.down[expert](self.gate(gate, up))[0]
            mixed.index_add_(0, rows, given * best[rows, places, None].to(x.dtype))
        return mixed.view_as(x) if self.shared is None else mixed.view_as(x) + self.shared(x)


def ranked(scores: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """A router's scores [tokens, experts] -> weights, float32, and experts, both [tokens, active]."""
    odds = functional.softmax(scores, dim=-1, dtype=torch.float32)
    best, chosen = odds.topk(mixture.active, dim=-1)
    return best / best.sum(-1, keepdim=True) if mixture.renormalised else best, chosen


class SharedExpert(nn.Module):
    """The expert that every token passes through."""

    def __init__(self, spec: Spec, weights: SharedWeights, parts: Parts) -> None:
        super().__init__()
        self.gate, self.weight = gate_of(spec), Scores(weights.gate)
        self.up, self.down = parts.linear(weights.up), parts.linear(weights.down)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, dim=-1)
        return torch.sigmoid(self.weight(x)) * self.down(self.gate(gate, up))


def _module(linear: Linear) -> nn.Module:
    assert isinstance(linear, nn.Module), "experts are held in a list of modules"
    return linear
