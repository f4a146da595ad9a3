"""A decode step with little Python: one flat loop over layers whose parts are plain objects.

Calling an `nn.Module` looks for hooks first, and reading one of its weights goes through `__getattr__` and three
dictionaries. `bare` makes the same part, whatever is plugged in, an object of a plain class: its forward method is the
module's own. The rest is hoisted out of the loop or out of the step: names, sizes, tables of positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from claimbench.engine.batch import Batch
from claimbench.engine.kv_cache import Cache
from claimbench.engine.model.parts import LayerCache, Linear, PassContext
from claimbench.engine.model.positions import Rotary
from claimbench.engine.model.transformer import Layer, Transformer
from claimbench.engine.pass_setup import PassSetup, Step
from claimbench.errors import Unavailable

silu = torch._C._nn.silu  # what functional.silu calls, after asking whether to override it


def bare(part: object) -> Any:
    """`part` as an object of a plain class with the same methods, weights and parts; what is no module stays itself."""
    if isinstance(part, nn.ModuleList):
        return [bare(child) for child in part]
    if not isinstance(part, nn.Module):
        return part
    own = [kind for kind in type(part).__mro__ if kind not in nn.Module.__mro__]
    methods = {
        name: value
        for kind in reversed(own)
        for name, value in vars(kind).items()
        if not name.startswith("__") and name not in ("_parameters", "_buffers", "_modules")
    }
    plain = type(type(part).__name__, (), methods | {"__call__": methods["forward"]})()
    inherited = vars(nn.Module())
    plain.__dict__ |= {name: value for name, value in vars(part).items() if name not in inherited}
    plain.__dict__ |= {**part._parameters, **part._buffers}
    plain.__dict__ |= {name: bare(child) for name, child in part._modules.items()}
    return plain


def call_of(part: Linear) -> Linear:
    """What to call to run `part`, bound once."""
    if not isinstance(part, nn.Module):
        return part
    forward: Linear = bare(part).forward
    return forward


def rotary_of(model: Transformer) -> Rotary | None:
    """The rotary positions that all layers share.

    Raises:
        Unavailable: they share none, or do something else that the flat loop does not know.
    """
    if model.spec.unlike_llama:
        raise Unavailable(f"the flat step has no {model.spec.unlike_llama[0]}")
    layer = model.layers[0]
    assert isinstance(layer, Layer)
    return layer.rotary


class Places:
    """Where new tokens stand, from tables that are made once for a batch.

    Rows of one length share one row of positions, so a step takes a slice of each table: no operator reads it.
    """

    def __init__(self, batch: Batch, model: Transformer, length: int) -> None:
        rotary, self.length = rotary_of(model), length
        padding = batch.padding[:, None] if batch.ragged else batch.padding[:1, None]
        self.positions = (torch.arange(length, device=batch.device) - padding).clamp(min=0)  # [batch or 1, length]
        half = model.spec.arch.head_dim // 2
        tables: list[Tensor] = [] if model.positions is None else [model.positions]
        if rotary is not None:  # the first half of the sines negated, since it multiplies the second half of a head
            sin = torch.cat((-rotary.sin[:, :half], rotary.sin[:, half:]), -1)
            tables = [rotary.cos.to(batch.dtype), sin.to(batch.dtype)]
        self.shared = not batch.ragged
        self.tables = [table[:length] if self.shared else table for table in tables]  # [length or context, ...]

    def at(self, past: int, end: int) -> list[Tensor]:
        """Rows of each table, [batch or 1, new, ...]."""
        if self.shared:
            return [table[past:end].unsqueeze(0) for table in self.tables]
        positions = self.positions[:, past:end]
        return [table[positions] for table in self.tables]


Turn = tuple[Tensor, Tensor] | None
"""Cosines and sines of the new positions, [batch or 1, 1, new, head_dim] each; None where positions are not rotary."""
Begin = Callable[[Tensor, Cache], tuple[Tensor, PassContext, Turn]]
RunLayer = Callable[[Tensor, LayerCache, PassContext, Turn], Tensor]


def step_trimmed(setup: PassSetup) -> Step:
    model = setup.model
    begin, norm, head = begin_trimmed(setup), call_of(model.norm), call_of(model.head)
    layers = [layer_trimmed(layer) for layer in model.layers]

    def step(tokens: Tensor, cache: Cache) -> Tensor:
        x, context, turn = begin(tokens, cache)
        for layer, slot in zip(layers, cache.slots[: len(layers)], strict=True):  # a draft leaves the last slots alone
            x = layer(x, slot, context, turn)
        cache.length += tokens.shape[1]
        return head(norm(x))

    return step


def begin_trimmed(setup: PassSetup) -> Begin:
    """What comes before the layers: where the tokens stand, what they may see, and their embeddings."""
    model, batch, mask = setup.model, setup.batch, setup.mask
    embedding, embed, causal = model.embedding, torch.embedding, model.parts.causal
    hiding = batch.ragged or batch.slopes is not None
    embedding_norm = None if model.embedding_norm is None else call_of(model.embedding_norm)
    rotary, learned = rotary_of(model) is not None, model.positions is not None
    places = Places(batch, model, batch.cache_shape.length)

    def begin(tokens: Tensor, cache: Cache) -> tuple[Tensor, PassContext, Turn]:
        nonlocal places
        past, new, turn, bias = cache.length, tokens.shape[1], None, None
        end, keys_seen = past + new, cache.keys_after(new)
        if places.length < end:
            places = Places(batch, model, end)
        if hiding or not causal(past, new, keys_seen):
            bias = mask(batch, past, new, keys_seen)
        x = embed(embedding, tokens)
        if rotary:
            cos, sin = places.at(past, end)
            turn = cos.unsqueeze(1), sin.unsqueeze(1)
        elif learned:
            x = x + places.at(past, end)[0]
        if embedding_norm is not None:
            x = embedding_norm(x)
        return x, PassContext(past, places.positions[:, past:end], bias), turn

    return begin


def layer_trimmed(layer: nn.Module) -> RunLayer:
    """One layer; rotary positions are turned for queries and keys in one go."""
    assert isinstance(layer, Layer)
    parts, arch, gated, cat = layer.parts, layer.spec.arch, layer.spec.gated, torch.cat
    assert layer.norm1 is not None, "see `rotary_of`"
    assert layer.norm2 is not None, "see `rotary_of`"
    norm1, qkv, out = call_of(layer.norm1), call_of(layer.qkv), call_of(layer.out)
    norm2, up, down = call_of(layer.norm2), call_of(layer.up), call_of(layer.down)
    attend, softmax, add, scale = parts.attend_step, parts.softmax, parts.add, layer.spec.scale
    q_norm = None if layer.q_norm is None else call_of(layer.q_norm)
    k_norm = None if layer.k_norm is None else call_of(layer.k_norm)
    heads, turning, head_dim = arch.heads, arch.heads + arch.kv_heads, arch.head_dim
    every_head, width = turning + arch.kv_heads, heads * head_dim

    def run(x: Tensor, slot: LayerCache, context: PassContext, turn: Turn) -> Tensor:
        batch, new, _ = x.shape
        mixed = qkv(norm1(x)).view(batch, new, every_head, head_dim).transpose(1, 2)
        turned = mixed[:, :turning]
        if q_norm is not None and k_norm is not None:
            turned = cat((q_norm(mixed[:, :heads]), k_norm(mixed[:, heads:turning])), 1)
        if turn is not None:
            first, second = turned.chunk(2, -1)
            turned = turned * turn[0] + cat((second, first), -1) * turn[1]
        keys, values = slot.write(turned[:, heads:], mixed[:, turning:], context)
        mixed = attend(turned[:, :heads], keys, values, context, scale, softmax)
        x = add(x, out(mixed.transpose(1, 2).reshape(batch, new, width)))
        if not gated:
            return add(x, down(up(norm2(x))))
        gate, linear = up(norm2(x)).chunk(2, -1)
        return add(x, down(silu(gate) * linear))

    return run
