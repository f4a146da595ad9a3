"""The reference transformer: one readable decoder for Llama, Qwen, Gemma, GPT-NeoX, OPT, BLOOM and their like.

It is plain PyTorch, a module per part. What document B takes apart is handed in as `Parts`: how a matrix is multiplied,
how a norm, a softmax and a GELU are computed, how attention goes over a prompt and over one new token. Tensors are
[batch, new, hidden] between layers and [batch, heads, new, head_dim] inside attention; a key-value cache holds
[batch, kv_heads, keys, head_dim] per layer.

Sources of the maths: Transformers' own modules, which the tests compare with.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from claimbench.engine.model.spec import Spec
from claimbench.engine.model.weights import Affine, ExpertWeights, LayerWeights, Weights


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


def rotary_frequencies(spec: Spec, layer: int = 0) -> Tensor:
    """By how much each pair of a head turns from one position to the next, float32 [pairs], in a layer."""
    given = spec.local_frequencies if layer in spec.local_layers else spec.frequencies
    if given is not None:
        return torch.tensor(given, dtype=torch.float32)
    half = torch.arange(0, spec.arch.head_dim, 2, dtype=torch.float32) / spec.arch.head_dim
    return 1.0 / (spec.rope_theta or 1.0) ** half


class Rotary(nn.Module):
    """Rotary positions: pairs (i, i + width / 2) of a head turn by position x frequency, from tables of `longest` rows.

    What lies beyond `width`, twice the number of frequencies, does not turn.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, spec: Spec, longest: int, device: torch.device, layer: int = 0) -> None:
        super().__init__()
        frequencies = rotary_frequencies(spec, layer).to(device)
        self.width = 2 * len(frequencies)
        angles = torch.outer(torch.arange(longest, device=device).float(), frequencies)
        twice, scale = torch.cat((angles, angles), -1), spec.rope_scale
        self.register_buffer("cos", twice.cos() * scale, persistent=False)  # [longest, width]
        self.register_buffer("sin", twice.sin() * scale, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn x, [batch, heads, new, head_dim]."""
        cos, sin = self.cos[positions].unsqueeze(1).to(x.dtype), self.sin[positions].unsqueeze(1).to(x.dtype)
        turning = x[..., : self.width]
        first, second = turning.chunk(2, dim=-1)
        turned = turning * cos + torch.cat((-second, first), -1) * sin
        return turned if self.width == x.shape[-1] else torch.cat((turned, x[..., self.width :]), -1)


def activation_of(spec: Spec) -> Linear:
    """What a gate is put through."""
    known: dict[str, Linear] = {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "tanh_gelu": functools.partial(functional.gelu, approximate="tanh"),
        "relu": functional.relu,
    }
    return known[spec.activation]


class PlainRelu(nn.Module):
    """ReLU after a matrix."""

    def __init__(self, dense: Linear) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.dense(x))


class Experts(nn.Module):
    """A mixture: each token passes through the experts that its router ranks first, and adds what they give."""

    def __init__(self, spec: Spec, weights: ExpertWeights) -> None:
        super().__init__()
        assert spec.mixture is not None
        self.mixture, self.activation = spec.mixture, activation_of(spec)
        self.router = PlainLinear(weights.router)
        self.up = nn.Parameter(weights.up, requires_grad=False)
        self.down = nn.Parameter(weights.down, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, new, hidden] -> the same; an expert that no token takes is not read."""
        tokens = x.reshape(-1, x.shape[-1])
        odds = functional.softmax(self.router(tokens), dim=-1, dtype=torch.float32)
        best, chosen = odds.topk(self.mixture.active, dim=-1)  # [tokens, active]
        if self.mixture.renormalised:
            best = best / best.sum(-1, keepdim=True)
        best, mixed = best.to(x.dtype), torch.zeros_like(tokens)
        for expert in sorted(set(chosen.flatten().tolist())):
            rows, places = torch.where(chosen == expert)
            gate, up = functional.linear(tokens[rows], self.up[expert]).chunk(2, dim=-1)
            given = functional.linear(self.activation(gate) * up, self.down[expert])
            mixed.index_add_(0, rows, given * best[rows, places, None])
        return mixed.view_as(x)


class Layer(nn.Module):
    """Attention, then feed-forward; each reads a norm of the residual stream and adds to it.

    In some families both read the stream as it was, a norm comes behind each half as well, or only there.
    """

    def __init__(self, spec: Spec, weights: LayerWeights, parts: Parts, rotary: Rotary | None) -> None:
        super().__init__()

        def norm(affine: Affine | None) -> Norm | None:
            return None if affine is None else parts.norm(affine, spec)

        self.spec, self.parts, self.rotary = spec, parts, rotary
        self.norm1, self.norm2 = norm(weights.norm1), norm(weights.norm2)
        self.after_attention, self.after_mlp = norm(weights.after_attention), norm(weights.after_mlp)
        self.qkv, self.out = parts.linear(weights.qkv), parts.linear(weights.out)
        self.experts = None if weights.experts is None else Experts(spec, weights.experts)
        if weights.up is not None and weights.down is not None:
            up, self.down = parts.linear(weights.up), parts.linear(weights.down)
            of_gelu = spec.activation != "relu" and not spec.gated
            self.up = up if spec.gated else parts.gelu(up, spec) if of_gelu else PlainRelu(up)
        self.activation = activation_of(spec)
        self.q_norm, self.k_norm = norm(weights.q_norm), norm(weights.k_norm)
        self.scale = spec.scale

    def forward(self, x: Tensor, context: PassContext, slot: LayerCache) -> Tensor:
        add, read = self.parts.add, x if self.norm1 is None else self.norm1(x)
        attended = self.attention(read, context, slot)
        if self.after_attention is not None:
            attended = self.after_attention(attended)
        if self.spec.parallel:
            thought = self.feed_forward(read if self.norm2 is None else self.norm2(x))
            return add(add(x, attended), thought)
        x = add(x, attended)
        thought = self.feed_forward(x if self.norm2 is None else self.norm2(x))
        return add(x, thought if self.after_mlp is None else self.after_mlp(thought))

    def attention(self, x: Tensor, context: PassContext, slot: LayerCache) -> Tensor:
        arch = self.spec.arch
        batch, new, _ = x.shape
        mixed = self.qkv(x)
        if self.spec.whole_qk_norm:
            mixed = self.normalised(mixed, 2, arch.head_dim)
        heads = mixed.view(batch, new, arch.heads + 2 * arch.kv_heads, arch.head_dim).transpose(1, 2)
        if not self.spec.whole_qk_norm:
            heads = self.normalised(heads, 1)
        q, k, v = torch.split(heads, [arch.heads, arch.kv_heads, arch.kv_heads], dim=1)
        if self.rotary is not None:
            q, k = self.rotary(q, context.positions), self.rotary(k, context.positions)
        keys, values = slot.write(k, v, context)
        mixed = self.parts.attend(context)(q, keys, values, context, self.scale, self.parts.softmax)
        return self.out(mixed.transpose(1, 2).reshape(batch, new, arch.heads * arch.head_dim))

    def normalised(self, mixed: Tensor, axis: int, width: int = 1) -> Tensor:
        """Queries, keys and values, one after the other along `axis`, with the norms of queries and keys."""
        if self.q_norm is None or self.k_norm is None:
            return mixed
        arch = self.spec.arch
        q, k, v = torch.split(mixed, [each * width for each in (arch.heads, arch.kv_heads, arch.kv_heads)], dim=axis)
        return torch.cat((self.q_norm(q), self.k_norm(k), v), axis)

    def feed_forward(self, x: Tensor) -> Tensor:
        if self.experts is not None:
            mixed: Tensor = self.experts(x)
            return mixed
        if not self.spec.gated:
            return self.down(self.up(x))
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


class Transformer(nn.Module):
    """Token ids to hidden states, and hidden states to logits."""

    def __init__(self, spec: Spec, weights: Weights, parts: Parts, longest: int | None = None) -> None:
        """`longest`: tokens of a sequence that positions are needed for; by default the whole context."""
        super().__init__()
        self.spec, self.parts = spec, parts
        device = weights.embedding.device
        self.embedding = nn.Parameter(weights.embedding, requires_grad=False)
        self.positions = None if weights.positions is None else nn.Parameter(weights.positions, requires_grad=False)
        plain = weights.embedding_norm
        self.embedding_norm = None if plain is None else parts.norm(plain, spec)
        rows = min(spec.arch.context, longest or spec.arch.context)
        first = min(set(range(spec.arch.layers)) - spec.local_layers, default=0)
        usual = Rotary(spec, rows, device, first) if spec.positions == "rotary" else None
        local = Rotary(spec, rows, device, min(spec.local_layers)) if spec.local_layers else None

        def rotary(number: int) -> Rotary | None:
            return None if number in spec.unturned else local if number in spec.local_layers else usual

        self.layers = nn.ModuleList(
            Layer(spec, layer, parts, rotary(number)) for number, layer in enumerate(weights.layers)
        )
        self.norm = parts.norm(weights.norm, spec)
        self.head = (parts.head or parts.linear)(Affine(weights.head, weights.head_bias))
        slopes = alibi_slopes(spec.arch.heads * spec.ranks).chunk(spec.ranks)[spec.rank]
        self.slopes = slopes.to(device) if spec.positions == "alibi" else None  # [heads]

    def forward(self, tokens: Tensor, context: PassContext, slots: list[LayerCache]) -> Tensor:
        """Token ids [batch, new] -> hidden states [batch, new, hidden], before the head."""
        x = self.embed(tokens, context.positions)
        for layer, slot in zip(self.layers, slots, strict=False):  # a draft of fewer layers leaves the last slots alone
            x = layer(x, context, slot)
        return self.norm(x)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self.parts.look_up(tokens, self.embedding)
        if self.spec.embedding_scale != 1:
            x = x * torch.tensor(self.spec.embedding_scale, dtype=x.dtype)
        if self.positions is not None:
            x = x + functional.embedding(positions, self.positions)
        return x if self.embedding_norm is None else self.embedding_norm(x)


def alibi_slopes(heads: int) -> Tensor:
    """How fast each head forgets, float32 [heads]: a geometric series (Press et al., 2021).

    Between powers of two, the rest are every other member of the next power's series.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (number + 1) / power) for number in range(power)]
    slopes += [2 ** (-4 * (2 * number + 1) / power) for number in range(heads - power)]
    return torch.tensor(slopes, dtype=torch.float32)
