"""The reference transformer: one readable decoder for Llama, Qwen, Gemma, GPT-NeoX, OPT, BLOOM and their like.

It is plain PyTorch, a module per part. What document B takes apart is handed in as `Parts`: how a matrix is multiplied,
how a norm, a softmax and a GELU are computed, how attention goes over a prompt and over one new token. Tensors are
[batch, new, hidden] between layers and [batch, heads, new, head_dim] inside attention; a key-value cache holds
[batch, kv_heads, keys, head_dim] per layer.

Sources of the maths: Transformers' own modules, which the tests compare with.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from claimbench.engine.model.feed_forward import Activated, Experts, activation_of, gate_of
from claimbench.engine.model.parts import (
    LayerCache,
    Linear,
    Norm,
    Parts,
    PassContext,
    Softmax,
    capped_softmax,
    soft_cap,
    softmax_with_sinks,
)
from claimbench.engine.model.positions import Rotary, alibi_slopes
from claimbench.engine.model.shards import Affine
from claimbench.engine.model.spec import Spec
from claimbench.engine.model.weights import LayerWeights, Weights


class Layer(nn.Module):
    """Attention, then feed-forward; each reads a norm of the residual stream and adds to it.

    In some families both read the stream as it was, a norm comes behind each half as well, or only there.
    """

    def __init__(
        self, spec: Spec, weights: LayerWeights, parts: Parts, rotary: Rotary | None = None, windowed: bool = False
    ) -> None:
        super().__init__()

        def norm(affine: Affine | None) -> Norm | None:
            return None if affine is None else parts.norm(affine, spec)

        self.spec, self.parts, self.rotary, self.windowed = spec, parts, rotary, windowed
        self.norm1, self.norm2 = norm(weights.norm1), norm(weights.norm2)
        self.after_attention, self.after_mlp = norm(weights.after_attention), norm(weights.after_mlp)
        self.qkv, self.out = parts.linear(weights.qkv), parts.linear(weights.out)
        self.experts = None if weights.experts is None else Experts(spec, weights.experts, parts)
        if weights.up is not None and weights.down is not None:
            up, self.down = parts.linear(weights.up), parts.linear(weights.down)
            self.up = up if spec.gated else activated(up, spec, parts)
        self.gate = gate_of(spec) if spec.gated else None
        self.q_norm, self.k_norm = norm(weights.q_norm), norm(weights.k_norm)
        self.scale, self.softmax = spec.scale, softmax_of(spec, weights, parts)

    def forward(self, x: Tensor, context: PassContext, slot: LayerCache) -> Tensor:
        add, read = self.parts.add, x if self.norm1 is None else self.norm1(x)
        also = None
        if self.spec.parallel:
            also = read if self.norm2 is None else self.norm2(x)
        attended = self.attention(read, context, slot)
        x = add(x, attended if self.after_attention is None else self.after_attention(attended))
        if also is None:
            also = x if self.norm2 is None else self.norm2(x)
        thought = self.feed_forward(also)
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
        seen = context.windowed if self.windowed and context.windowed is not None else context
        mixed = self.parts.attend(context)(q, keys, values, seen, self.scale, self.softmax)
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
        if self.gate is None:
            return self.down(self.up(x))
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(self.gate(gate, up))


def activated(up: Linear, spec: Spec, parts: Parts) -> Linear:
    """The first matrix of a feed-forward without a gate, and its activation."""
    return parts.gelu(up, spec) if spec.activation.endswith("gelu") else Activated(up, activation_of(spec))


def softmax_of(spec: Spec, weights: LayerWeights, parts: Parts) -> Softmax:
    softmax = parts.softmax
    if weights.sinks is not None:
        softmax = softmax_with_sinks(softmax, weights.sinks)
    return softmax if spec.score_cap is None else capped_softmax(softmax, spec.score_cap)


class Transformer(nn.Module):
    """Token ids to hidden states, and hidden states to logits."""

    def __init__(self, spec: Spec, weights: Weights, parts: Parts, longest: int | None = None) -> None:
        """`longest`: tokens of a sequence that positions are needed for; by default the whole context."""
        super().__init__()
        self.spec, self.parts = spec, parts
        device = weights.embedding.device
        self.embedding = nn.Parameter(weights.embedding, requires_grad=False)
        self.positions = None if weights.positions is None else nn.Parameter(weights.positions, requires_grad=False)
        self.embedding_scale = embedding_scale_of(spec, weights)
        plain = weights.embedding_norm
        self.embedding_norm = None if plain is None else parts.norm(plain, spec)
        rows = min(spec.arch.context, longest or spec.arch.context)
        usual = Rotary(spec, rows, device) if spec.positions == "rotary" else None
        local = Rotary(spec, rows, device, local=True) if spec.local_layers else None

        def rotary(number: int) -> Rotary | None:
            return None if number in spec.unturned else local if number in spec.local_layers else usual

        self.layers = nn.ModuleList(
            Layer(spec, layer, parts, rotary(number), spec.window_of(number) is not None)
            for number, layer in enumerate(weights.layers)
        )
        self.norm = parts.norm(weights.norm, spec)
        head = (parts.head or parts.linear)(Affine(weights.head, weights.head_bias))
        self.head = head if spec.logit_cap is None else Activated(head, partial(soft_cap, cap=spec.logit_cap))
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
        if self.embedding_scale is not None:
            x = x * self.embedding_scale
        if self.positions is not None:
            x = x + functional.embedding(positions, self.positions)
        return x if self.embedding_norm is None else self.embedding_norm(x)


def embedding_scale_of(spec: Spec, weights: Weights) -> float | None:
    """Rounded to the embedding's own type, in which it multiplies; None: there is none."""
    if spec.embedding_scale == 1:
        return None
    return float(torch.tensor(spec.embedding_scale, dtype=weights.embedding.dtype))
