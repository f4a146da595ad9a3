"""A decode step of one to four rows as a few kernels a layer.

    embed                                     the token's row, its position's, the norm behind them
    queries, keys, values    1 or 2           norm, product, turn, and their place in the cache
    attention                1 or 2           parts of the keys, and where there are several, their sum
    output                   1 or 2           product and residual stream, or a norm between the two
    gate and up              1                norm, product, activation and gate
    down                     1 or 2           as output
    head                                      norm and product

The residual stream changes between three tensors, so that both halves of a parallel layer read what was there before.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from claimbench.engine.kernels.decode_kernels import Attention, Embed, Gemv, Heads, NormAdd, On, Place, Slots
from claimbench.engine.kernels.decode_matrix import NormWeights, matrix_of, norm_of
from claimbench.engine.model.transformer import Layer, Transformer


class Workspace:
    """What the kernels write, but for the cache: allocated once for a number of rows."""

    def __init__(self, model: Transformer, batch: int) -> None:
        arch, like = model.spec.arch, model.embedding
        self.stream = [like.new_empty((batch, arch.hidden)) for _ in range(3)]
        self.queries = like.new_empty((batch, arch.heads, arch.head_dim))
        self.attended = like.new_empty((batch, arch.heads * arch.head_dim))
        self.mixed = like.new_empty((batch, (arch.heads + 2 * arch.kv_heads) * arch.head_dim))
        self.given = like.new_empty((batch, arch.hidden))
        self.inner = like.new_empty((batch, arch.intermediate))
        self.logits = like.new_empty((batch, 1, arch.vocabulary))

    def others(self, used: Tensor) -> tuple[Tensor, Tensor]:
        """The two tensors that the stream is not in."""
        first, second = (one for one in self.stream if one is not used)
        return first, second


class Half:
    """The product at the end of a half of a layer, which adds to the residual stream, a norm between them or none."""

    def __init__(self, on: On, layer: Layer, part: object, norm: NormWeights | None, batch: int) -> None:
        self.product = Gemv(on, layer.spec, matrix_of(part), batch)
        self.norm_add = None if norm is None else NormAdd(on, layer.spec, norm)

    def __call__(self, x: Tensor, residual: Tensor, given: Tensor, out: Tensor) -> None:
        if self.norm_add is None:
            self.product(x, out, "add", residual)
        else:
            self.product(x, given)
            self.norm_add(given, residual, out)


class LayerKernels:
    def __init__(self, on: On, layer: Layer, number: int, batch: int, slots: int) -> None:
        spec, qkv = layer.spec, matrix_of(layer.qkv)
        norm1, norm2 = norm_of(layer.norm1), norm_of(layer.norm2)
        self.parallel, self.rotary = spec.parallel, layer.rotary
        self.qkv = Gemv(on, spec, qkv, batch, norm1)
        q_norm, k_norm = norm_of(layer.q_norm), norm_of(layer.k_norm)
        self.heads = None if q_norm is None or k_norm is None else Heads(on, spec, q_norm, k_norm)
        self.attention = Attention(on, spec, batch, slots, spec.window_of(number), qkv.codes.device)
        self.out = Half(on, layer, layer.out, norm_of(layer.after_attention), batch)
        before = norm1 if spec.parallel and norm2 is None else norm2
        self.up = Gemv(on, spec, matrix_of(layer.up), batch, before, spec.activation)
        self.down = Half(on, layer, layer.down, norm_of(layer.after_mlp), batch)
        self.gated = spec.gated

    def __call__(self, x: Tensor, slots: Slots, place: Place, slopes: Tensor | None, space: Workspace) -> Tensor:
        """The stream behind the layer: one of the two tensors that x is not."""
        middle, last = space.others(x)
        self.place_heads(x, slots, place, space)
        self.attention(space.queries, slots, place, slopes, space.attended)
        self.out(space.attended, x, space.given, middle)
        self.up(x if self.parallel else middle, space.inner, "gate" if self.gated else "store")
        self.down(space.inner, middle, space.given, last)
        return last

    def place_heads(self, x: Tensor, slots: Slots, place: Place, space: Workspace) -> None:
        if self.heads is None:
            self.qkv.heads(x, space.queries, slots, place, self.rotary)
        else:
            self.qkv(x, space.mixed)
            self.heads(space.mixed, space.queries, slots, place, self.rotary)


class DecodeKernels:
    """A whole step for one number of rows and slots: token ids in, logits out, nothing but launches between."""

    def __init__(self, model: Transformer, on: On, batch: int, slots: int) -> None:
        spec = model.spec
        self.slopes = model.slopes
        self.space = Workspace(model, batch)
        positions = None if model.positions is None else model.positions.detach()
        table, factor, norm = model.embedding.detach(), model.embedding_scale, norm_of(model.embedding_norm)
        self.embed = Embed(on, spec, table, positions, factor, norm)
        layers = cast("list[Layer]", list(model.layers))
        self.layers = [LayerKernels(on, layer, n, batch, slots) for n, layer in enumerate(layers)]
        self.head = Gemv(on, spec, matrix_of(model.head), batch, norm_of(model.norm), cap=spec.logit_cap or 0.0)

    def __call__(self, tokens: Tensor, place: Place, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """Token ids [batch, 1] -> logits [batch, 1, vocabulary], which the next step overwrites."""
        space = self.space
        x = space.stream[0]
        self.embed(tokens, place, x)
        for layer, *slots in zip(self.layers, keys, values, strict=False):
            x = layer(x, (slots[0], slots[1]), place, self.slopes, space)
        self.head(x, space.logits)
        return space.logits


class StepBody:
    """What a graph is captured of, with the arguments of `static_step`."""

    def __init__(self, on: On) -> None:
        self.on = on
        self.made: dict[tuple[int, int], DecodeKernels] = {}

    def __call__(
        self,
        model: Transformer,
        tokens: Tensor,
        past: Tensor,
        padding: Tensor,
        bias: Tensor | None,
        keys: list[Tensor],
        values: list[Tensor],
        seen: int,
    ) -> Tensor:
        shape = len(tokens), keys[0].shape[2]
        if shape not in self.made:
            self.made[shape] = DecodeKernels(model, self.on, *shape)
        return self.made[shape](tokens, Place(past, padding), keys, values)
