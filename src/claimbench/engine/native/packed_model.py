"""A decoder's weights as decode.c reads them.

Physics: at batch 1 a token costs the bytes of all weights over the bandwidth of memory. So the matrices lie in one
block of memory in the order in which a step reads them, on large pages.
"""

from __future__ import annotations

import ctypes
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from claimbench.engine.native import structs
from claimbench.engine.native.packing import LANES, Format, Packed, pack, packed_bytes

if TYPE_CHECKING:
    import torch

    from claimbench.engine.model.shards import Affine
    from claimbench.engine.model.spec import Spec
    from claimbench.engine.model.weights import LayerWeights, Weights

FORMAT_CODES: dict[Format, int] = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
NORM_CODES = {"rms": 0, "layer": 1}
POSITION_CODES = {"rotary": 0, "learned": 1, "alibi": 2}
ACTIVATION_CODES = {"tanh_gelu": 1, "gelu": 2, "relu": 3, "squared_relu": 6}
GATED_CODES = {"silu": 0, "tanh_gelu": 4, "gelu": 5, "clamped_swish": 7}
LARGE_PAGE_BYTES = 1 << 21


@dataclass(frozen=True)
class Formats:
    """How each group of matrices is stored."""

    attention: Format = "float32"
    mlp: Format = "float32"
    head: Format = "float32"


class PackedModel:
    """Packed copies of the matrices, and all else that a step reads; the embedding is the tensor that was given.

    What `described` returns points into this, which must outlive it.
    """

    def __init__(self, spec: Spec, weights: Weights, formats: Formats) -> None:
        """
        Raises:
            MemoryError: there is no room.
        """
        self._spec, self._formats = spec, formats
        self._kept: list[torch.Tensor] = []
        self._arrays: list[ctypes.Array[structs.Matrix]] = []
        self.shapes = [
            *(tuple(affine.weight.shape) for layer in weights.layers for affine in matrices_of(layer)),
            tuple(weights.head.shape),
        ]
        """[rows, columns] of each matrix as it was before it was packed, in the order of a step."""
        ups = {id(up) for layer in weights.layers for up, _ in _feed_forwards(layer)} if spec.gated else set()
        self.halves = [id(affine) in ups for layer in weights.layers for affine in matrices_of(layer)] + [False]
        """Whether each is a gate and what it gates."""
        self._matrices = self._packed(weights)
        self._in_a_row = (structs.Matrix * len(self._matrices))(*self._matrices)
        self._layers = self._layers_of(weights)
        self._embedding_norm, self._final_norm = self._norm(weights.embedding_norm), self._norm(weights.norm)
        kept = weights.embedding if _is_bfloat16(weights.embedding) else weights.embedding.float()
        self._embedding = kept.contiguous()
        self._positions = None if weights.positions is None else weights.positions.float().contiguous()
        self._turns = _turns(spec)
        self._frequencies = self._floats(self._turns)
        self._scales = self._floats(_scales(spec))
        self._slopes = self._floats(_slopes(spec)) if spec.positions == "alibi" else None

    def described(self, threads: int, idle_spin_ns: int) -> structs.Model:
        """All of it for a step of `threads` threads, each of which looks `idle_spin_ns` for work before it sleeps."""
        spec, arch, mixture = self._spec, self._spec.arch, self._spec.mixture
        factor, most = spec.swish
        return structs.Model(
            vocabulary=arch.vocabulary,
            hidden=arch.hidden,
            heads=arch.heads,
            kv_heads=arch.kv_heads,
            head_dim=arch.head_dim,
            intermediate=mixture.intermediate if mixture else arch.intermediate,
            layers=arch.layers,
            norm=NORM_CODES[spec.norm],
            positions=POSITION_CODES[spec.positions],
            mlp=(GATED_CODES if spec.gated else ACTIVATION_CODES)[spec.activation],
            threads=threads,
            idle_spin_ns=idle_spin_ns,
            rotary=2 * self._turns.shape[1],
            turns=len(self._turns),
            parallel=spec.parallel,
            whole_qk_norm=spec.whole_qk_norm,
            experts=mixture.count if mixture else 0,
            active=mixture.active if mixture else 0,
            renormalised=mixture.renormalised if mixture else False,
            norm_epsilon=spec.eps,
            embedding_scale=spec.embedding_scale,
            attention_scale=spec.scale,
            score_cap=spec.score_cap or 0.0,
            logit_cap=spec.logit_cap or 0.0,
            swish_factor=factor,
            swish_most=most,
            rotary_scale=self._scales,
            inverse_frequencies=self._frequencies,
            slopes=self._slopes,
            embedding=self._embedding.data_ptr(),
            embedding_bfloat16=_is_bfloat16(self._embedding),
            position_embedding=None if self._positions is None else self._positions.data_ptr(),
            position_rows=0 if self._positions is None else len(self._positions),
            embedding_norm=self._embedding_norm,
            final_norm=self._final_norm,
            layer=self._layers,
            head=self._matrices[-1],
            matrices=self._in_a_row,
        )

    @property
    def held(self) -> dict[str, int]:
        """How many matrices are stored in each format, as the native code reads them."""
        names = {code: name for name, code in FORMAT_CODES.items()}
        return dict(Counter(names[matrix.format] for matrix in self._matrices))

    def weight_bytes(self) -> int:
        """Bytes of weights that one step of batch 1 reads: packed matrices, norms, biases and one row looked up."""
        looked_up = self._embedding[0].nbytes + (self._positions[0].nbytes if self._positions is not None else 0)
        return self._block.nbytes - self._idle + sum(tensor.nbytes for tensor in self._kept) + looked_up

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor that is held, the embedding included."""
        return [self._block, *self._kept, self._embedding, *([] if self._positions is None else [self._positions])]

    def _packed(self, weights: Weights) -> list[structs.Matrix]:
        import torch

        matrices = list(self._in_order(weights))
        sizes = [packed_bytes(len(weight), weight.shape[1], form) for weight, _, form in matrices]
        self._block, self._idle = large_pages(sum(sizes)), self._idle_bytes(sizes, weights)
        places = torch.split(self._block, sizes)
        packed = [pack(weight, form, into) for (weight, _, form), into in zip(matrices, places, strict=True)]
        return [self._matrix(part, bias) for part, (_, bias, _) in zip(packed, matrices, strict=True)]

    def _idle_bytes(self, sizes: list[int], weights: Weights) -> int:
        """Of the experts that one token does not pass through."""
        mixture, held = self._spec.mixture, iter(sizes)
        if mixture is None:
            return 0
        own = [[next(held) for _ in matrices_of(layer)][2:] for layer in weights.layers]
        return sum(map(sum, own)) * (mixture.count - mixture.active) // mixture.count

    def _in_order(self, weights: Weights) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, Format]]:
        """Every matrix with its bias and format, in the order of a step."""
        formats = self._formats
        for layer in weights.layers:
            for affine in (layer.qkv, layer.out):
                yield affine.weight, affine.bias, formats.attention
            for up, down in _feed_forwards(layer):
                yield *(_take_turns(up) if self._spec.gated else (up.weight, up.bias)), formats.mlp
                yield down.weight, down.bias, formats.mlp
        yield weights.head, weights.head_bias, formats.head

    def _matrix(self, packed: Packed, bias: torch.Tensor | None) -> structs.Matrix:
        from torch.nn import functional

        panels = len(packed.data)
        padded = None if bias is None else functional.pad(bias.float(), (0, panels * LANES - len(bias)))
        return structs.Matrix(
            data=packed.data.data_ptr(),
            bias=None if padded is None else self._floats(padded),
            rows=packed.rows,
            columns=packed.padded_columns,
            format=FORMAT_CODES[packed.format],
        )

    def _layers_of(self, weights: Weights) -> ctypes.Array[structs.Layer]:
        layers, first = (structs.Layer * len(weights.layers))(), 0
        for number, layer in enumerate(weights.layers):
            count = len(matrices_of(layer))
            layers[number] = self._layer(number, layer, self._in_a_row[first : first + count])
            first += count
        return layers

    def _layer(self, number: int, layer: LayerWeights, matrices: list[structs.Matrix]) -> structs.Layer:
        qkv, out, *rest = matrices
        before_mlp = layer.norm1 if self._spec.parallel and layer.norm2 is None else layer.norm2
        described = structs.Layer(
            before_attention=self._norm(layer.norm1),
            qkv=qkv,
            out=out,
            before_mlp=self._norm(before_mlp),
            after_attention=self._norm(layer.after_attention),
            after_mlp=self._norm(layer.after_mlp),
            query_norm=self._head_norm(layer.q_norm),
            key_norm=self._head_norm(layer.k_norm),
            window=self._spec.window_of(number) or 0,
            turn=_turn_of(self._spec, number),
            sinks=None if layer.sinks is None else self._floats(layer.sinks),
        )
        if layer.experts is None:
            described.up, described.down = rest
        else:
            described.router, described.experts = self._router(layer.experts.router), self._array(rest)
        return described

    def _router(self, router: Affine) -> structs.Matrix:
        """Never coded: a rank that is rounded would take other experts."""
        packed = pack(router.weight, "float32")
        self._kept.append(packed.data)
        return self._matrix(packed, router.bias)

    def _array(self, matrices: list[structs.Matrix]) -> ctypes.Array[structs.Matrix]:
        self._arrays.append((structs.Matrix * len(matrices))(*matrices))
        return self._arrays[-1]

    def _head_norm(self, norm: Affine | None) -> structs.HeadNorm:
        if norm is None:
            return structs.HeadNorm()
        head_dim = self._spec.arch.head_dim
        own = norm.weight.numel() > head_dim  # weights of every head's own
        bias = None if norm.bias is None else self._floats(norm.bias)
        return structs.HeadNorm(self._floats(norm.weight), bias, head_dim if own else 0)

    def _norm(self, norm: Affine | None) -> structs.Norm:
        if norm is None:
            return structs.Norm()
        return structs.Norm(self._floats(norm.weight), None if norm.bias is None else self._floats(norm.bias))

    def _floats(self, tensor: torch.Tensor) -> int:
        """The address of `tensor` as float32, kept for as long as this lives."""
        self._kept.append(tensor.detach().float().contiguous())
        return self._kept[-1].data_ptr()


def matrices_of(layer: LayerWeights) -> tuple[Affine, ...]:
    """In the order of a step; of a mixture, each expert's two."""
    return layer.qkv, layer.out, *(one for pair in _feed_forwards(layer) for one in pair)


def _feed_forwards(layer: LayerWeights) -> list[tuple[Affine, Affine]]:
    """Up and down of the feed-forward, or of every expert."""
    if layer.experts is not None:
        return list(zip(layer.experts.up, layer.experts.down, strict=True))
    assert layer.up is not None, "a layer has a feed-forward or experts"
    assert layer.down is not None, "a layer has a feed-forward or experts"
    return [(layer.up, layer.down)]


def _is_bfloat16(tensor: torch.Tensor) -> bool:
    import torch

    return tensor.dtype == torch.bfloat16


def _turns(spec: Spec) -> torch.Tensor:
    """Frequencies of each set of rotary positions, float32 [sets, pairs]."""
    import torch

    from claimbench.engine.model.positions import rotary_frequencies

    if spec.positions != "rotary":
        return torch.empty(0, 0)
    return torch.stack(
        [rotary_frequencies(spec, local) for local in ((False, True) if spec.local_layers else (False,))]
    )


def _scales(spec: Spec) -> torch.Tensor:
    import torch

    return torch.tensor([spec.rope_scale, spec.local_rope_scale])


def _turn_of(spec: Spec, layer: int) -> int:
    """Which of `_turns` a layer has; -1: none."""
    if spec.positions != "rotary" or layer in spec.unturned:
        return -1
    return int(layer in spec.local_layers)


def _slopes(spec: Spec) -> torch.Tensor:
    from claimbench.engine.model.positions import alibi_slopes

    return alibi_slopes(spec.arch.heads)


def _take_turns(up: Affine) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gate and up, one after the other, as panels of 16 rows that take turns: their product is made where they meet."""
    from torch.nn import functional

    def turns(rows: torch.Tensor) -> torch.Tensor:
        halves = rows.view(2, len(rows) // 2, -1)
        whole = functional.pad(halves, (0, 0, 0, -halves.shape[1] % LANES))
        panels = whole.view(2, -1, LANES, whole.shape[2]).transpose(0, 1)
        return panels.reshape(-1, whole.shape[2])

    bias = None if up.bias is None else turns(up.bias[:, None])[:, 0]
    return turns(up.weight), bias


def large_pages(size: int) -> torch.Tensor:
    """uint8 [size] at the start of a large page, and on large pages where the system has them."""
    import torch

    memory = mmap.mmap(-1, size + LARGE_PAGE_BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    begin = -whole.data_ptr() % LARGE_PAGE_BYTES
    return whole[begin : begin + size]
