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


class Tables:
    """Rows of cosines and sines, or of learned positions, for where new tokens stand: made once for a batch.

    Rows of one length share one row of positions, so a step takes a slice of each table: no operator reads it.
    """

    def __init__(self, batch: Batch, tables: list[Tensor], length: int) -> None:
        self.length, self.shared = length, not batch.ragged
        padding = batch.padding[:, None] if batch.ragged else batch.padding[:1, None]
        self.positions = (torch.arange(length, device=batch.device) - padding).clamp(min=0)  # [batch or 1, length]
        self.tables = [table[:length] if self.shared else table for table in tables]  # [length or context, ...]

    def at(self, past: int, end: int) -> list[Tensor]:
        """Rows of each table, [batch or 1, new, ...]."""
        if self.shared:
            return [table[past:end].unsqueeze(0) for table in self.tables]
        positions = self.positions[:, past:end]
        return [table[positions] for table in self.tables]


def turning_tables(rotary: Rotary, dtype: torch.dtype) -> list[Tensor]:
    """Cosines and sines, [rows, width]: those sines negated that multiply the second half of what turns."""
    half = rotary.width // 2
    sin = torch.cat((-rotary.sin[:, :half], rotary.sin[:, half:]), -1)
    return [rotary.cos.to(dtype), sin.to(dtype)]


def rotaries_of(model: Transformer) -> list[Rotary]:
    """The different rotary positions of the layers, each once."""
    found = {id(layer.rotary): layer.rotary for layer in model.layers if isinstance(layer, Layer) and layer.rotary}
    return list(found.values())


Turn = tuple[Tensor, Tensor]
"""Cosines and sines of the new positions, [batch or 1, 1, new, width] each."""
Turns = list[Turn]
"""One for each of `rotaries_of`."""
Begin = Callable[[Tensor, Cache], tuple[Tensor, PassContext, Turns]]
RunLayer = Callable[[Tensor, LayerCache, PassContext, Turns], Tensor]


def step_trimmed(setup: PassSetup) -> Step:
    model = setup.model
    begin, norm, head, rotaries = begin_trimmed(setup), call_of(model.norm), call_of(model.head), rotaries_of(model)
    layers = [layer_trimmed(layer, rotaries) for layer in model.layers]

    def step(tokens: Tensor, cache: Cache) -> Tensor:
        x, context, turns = begin(tokens, cache)
        for layer, slot in zip(layers, cache.slots[: len(layers)], strict=True):  # a draft leaves the last slots alone
            x = layer(x, slot, context, turns)
        cache.length += tokens.shape[1]
        return head(norm(x))

    return step


def begin_trimmed(setup: PassSetup) -> Begin:
    """What comes before the layers: where the tokens stand, what they may see, and their embeddings."""
    model, batch, mask = setup.model, setup.batch, setup.mask
    embedding, embed, causal = model.embedding, torch.embedding, model.parts.causal
    hiding, scale, window = batch.ragged or batch.slopes is not None, model.embedding_scale, model.spec.window
    embedding_norm = None if model.embedding_norm is None else call_of(model.embedding_norm)
    learned, turned = model.positions, rotaries_of(model)
    tables: list[Tensor] = [] if learned is None else [learned]
    tables += [table for rotary in turned for table in turning_tables(rotary, batch.dtype)]
    places = Tables(batch, tables, batch.cache_shape.length)

    def begin(tokens: Tensor, cache: Cache) -> tuple[Tensor, PassContext, Turns]:
        nonlocal places
        past, new, bias, windowed = cache.length, tokens.shape[1], None, None
        end, keys_seen = past + new, cache.keys_after(new)
        if places.length < end:
            places = Tables(batch, tables, end)
        if hiding or not causal(past, new, keys_seen):
            bias = mask(batch, past, new, keys_seen)
        positions, rows = places.positions[:, past:end], places.at(past, end)
        if window is not None:
            windowed = setup.windowed(bias, positions, past, new, keys_seen)
        x = embed(embedding, tokens)
        if scale is not None:
            x = x * scale
        if learned is not None:
            x = x + rows.pop(0)
        if embedding_norm is not None:
            x = embedding_norm(x)
        turns = [(cos.unsqueeze(1), sin.unsqueeze(1)) for cos, sin in zip(rows[::2], rows[1::2], strict=True)]
        return x, PassContext(past, positions, bias, windowed=windowed), turns

    return begin


def layer_trimmed(layer: nn.Module, rotaries: list[Rotary]) -> RunLayer:
    """One layer; its halves are put together once, of the parts that it has."""
    assert isinstance(layer, Layer)
    attend, think, add = attention_trimmed(layer, rotaries), feed_forward_trimmed(layer), layer.parts.add
    norm1, norm2 = chained(layer.norm1), chained(layer.norm2)

    def run(x: Tensor, slot: LayerCache, context: PassContext, turns: Turns) -> Tensor:
        x = add(x, attend(norm1(x), slot, context, turns))
        return add(x, think(norm2(x)))

    def run_both(x: Tensor, slot: LayerCache, context: PassContext, turns: Turns) -> Tensor:
        read = norm1(x)
        also = read if layer.norm2 is None else norm2(x)
        return add(add(x, attend(read, slot, context, turns)), think(also))

    return run_both if layer.spec.parallel else run


def chained(*parts: Linear | None) -> Linear:
    """Those that are there, one after the other."""
    calls = [call_of(part) for part in parts if part is not None]
    if len(calls) == 1:
        return calls[0]

    def run(x: Tensor) -> Tensor:
        for call in calls:
            x = call(x)
        return x

    return run


def attention_trimmed(layer: Layer, rotaries: list[Rotary]) -> RunLayer:
    """What attention adds; rotary positions are turned for queries and keys in one go."""
    parts, arch, windowed, cat = layer.parts, layer.spec.arch, layer.windowed, torch.cat
    qkv, out = call_of(layer.qkv), chained(layer.out, layer.after_attention)
    attend, softmax, scale = parts.attend_step, layer.softmax, layer.scale
    normalise, own = normalised_trimmed(layer), next((n for n, one in enumerate(rotaries) if one is layer.rotary), None)
    rotated = 0 if own is None else rotaries[own].width
    heads, turning, head_dim = arch.heads, arch.heads + arch.kv_heads, arch.head_dim
    every_head, width = turning + arch.kv_heads, heads * head_dim

    def run(x: Tensor, slot: LayerCache, context: PassContext, turns: Turns) -> Tensor:
        batch, new, _ = x.shape
        mixed = qkv(x).view(batch, new, every_head, head_dim).transpose(1, 2)
        turned = mixed[:, :turning]
        if normalise is not None:
            turned = normalise(turned)
        if own is not None:
            cos, sin = turns[own]
            rest = None if rotated == head_dim else turned[..., rotated:]
            turned = turned if rest is None else turned[..., :rotated]
            first, second = turned.chunk(2, -1)
            turned = turned * cos + cat((second, first), -1) * sin
            if rest is not None:
                turned = cat((turned, rest), -1)
        keys, values = slot.write(turned[:, heads:], mixed[:, turning:], context)
        seen = context.windowed if windowed and context.windowed is not None else context
        mixed = attend(turned[:, :heads], keys, values, seen, scale, softmax)
        return out(mixed.transpose(1, 2).reshape(batch, new, width))

    return run


def normalised_trimmed(layer: Layer) -> Linear | None:
    """The norms of queries and keys over both, [batch, heads + kv_heads, new, head_dim]; None where there are none."""
    if layer.q_norm is None or layer.k_norm is None:
        return None
    heads, cat = layer.spec.arch.heads, torch.cat
    q_norm, k_norm = call_of(layer.q_norm), call_of(layer.k_norm)

    def by_head(x: Tensor) -> Tensor:
        return cat((q_norm(x[:, :heads]), k_norm(x[:, heads:])), 1)

    def whole(x: Tensor) -> Tensor:
        rows = x.transpose(1, 2)  # [batch, new, heads + kv_heads, head_dim]
        q, k = rows[:, :, :heads], rows[:, :, heads:]
        normed = q_norm(q.flatten(2)).view(q.shape), k_norm(k.flatten(2)).view(k.shape)
        return cat(normed, 2).transpose(1, 2)

    return whole if layer.spec.whole_qk_norm else by_head


def feed_forward_trimmed(layer: Layer) -> Linear:
    """What the feed-forward adds."""
    if layer.experts is not None:
        return chained(layer.experts, layer.after_mlp)
    up, down, gate = call_of(layer.up), chained(layer.down, layer.after_mlp), layer.gate
    if gate is None:
        return chained(up, down)

    def run(x: Tensor) -> Tensor:
        first, second = up(x).chunk(2, -1)
        return down(gate(first, second))

    return run
