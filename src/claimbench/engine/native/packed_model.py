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
ACTIVATION_CODES = {"tanh_gelu": 1, "gelu": 2, "relu": 3}
GATED_CODES = {"silu": 0, "tanh_gelu": 4, "gelu": 5}
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
        self.shapes = [
            *(tuple(affine.weight.shape) for layer in weights.layers for affine in matrices_of(layer)),
            tuple(weights.head.shape),
        ]
        """[rows, columns] of each matrix as it was before it was packed, in the order of a step."""
        self._matrices = self._packed(weights)
        self._layers = self._layers_of(weights)
        self._embedding_norm, self._final_norm = self._norm(weights.embedding_norm), self._norm(weights.norm)
        kept = weights.embedding if _is_bfloat16(weights.embedding) else weights.embedding.float()
        self._embedding = kept.contiguous()
        self._positions = None if weights.positions is None else weights.positions.float().contiguous()
        self._kept_frequencies = _frequencies(spec)
        self._frequencies = self._floats(self._kept_frequencies)
        self._slopes = self._floats(_slopes(spec)) if spec.positions == "alibi" else None

    def described(self, threads: int, idle_spin_ns: int) -> structs.Model:
        """All of it for a step of `threads` threads, each of which looks `idle_spin_ns` for work before it sleeps."""
        spec, arch = self._spec, self._spec.arch
        return structs.Model(
            vocabulary=arch.vocabulary,
            hidden=arch.hidden,
            heads=arch.heads,
            kv_heads=arch.kv_heads,
            head_dim=arch.head_dim,
            intermediate=arch.intermediate,
            layers=arch.layers,
            norm=NORM_CODES[spec.norm],
            positions=POSITION_CODES[spec.positions],
            mlp=(GATED_CODES if spec.gated else ACTIVATION_CODES)[spec.activation],
            window=spec.window or 0,
            threads=threads,
            idle_spin_ns=idle_spin_ns,
            rotary=2 * len(self._kept_frequencies) if spec.positions == "rotary" else 0,
            norm_epsilon=spec.eps,
            embedding_scale=spec.embedding_scale,
            attention_scale=spec.scale,
            rotary_scale=spec.rope_scale,
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
        )

    @property
    def held(self) -> dict[str, int]:
        """How many matrices are stored in each format, as the native code reads them."""
        names = {code: name for name, code in FORMAT_CODES.items()}
        return dict(Counter(names[matrix.format] for matrix in self._matrices))

    def weight_bytes(self) -> int:
        """Bytes of weights that one step of batch 1 reads: packed matrices, norms, biases and one row looked up."""
        looked_up = self._embedding[0].nbytes + (self._positions[0].nbytes if self._positions is not None else 0)
        return self._block.nbytes + sum(tensor.nbytes for tensor in self._kept) + looked_up

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor that is held, the embedding included."""
        return [self._block, *self._kept, self._embedding, *([] if self._positions is None else [self._positions])]

    def _packed(self, weights: Weights) -> list[structs.Matrix]:
        import torch

        matrices = list(self._in_order(weights))
        sizes = [packed_bytes(len(weight), weight.shape[1], form) for weight, _, form in matrices]
        self._block = large_pages(sum(sizes))
        places = torch.split(self._block, sizes)
        packed = [pack(weight, form, into) for (weight, _, form), into in zip(matrices, places, strict=True)]
        return [self._matrix(part, bias) for part, (_, bias, _) in zip(packed, matrices, strict=True)]

    def _in_order(self, weights: Weights) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, Format]]:
        """Every matrix with its bias and format, in the order of a step."""
        for layer in weights.layers:
            assert layer.up is not None, "see `decoder.unavailable`"
            assert layer.down is not None, "see `decoder.unavailable`"
            up = _take_turns(layer.up) if self._spec.gated else (layer.up.weight, layer.up.bias)
            yield layer.qkv.weight, layer.qkv.bias, self._formats.attention
            yield layer.out.weight, layer.out.bias, self._formats.attention
            yield (*up, self._formats.mlp)
            yield layer.down.weight, layer.down.bias, self._formats.mlp
        yield weights.head, None, self._formats.head

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
        layers = (structs.Layer * len(weights.layers))()
        for number, layer in enumerate(weights.layers):
            qkv, out, up, down = self._matrices[4 * number : 4 * number + 4]
            norms = [None if norm is None else self._floats(norm.weight) for norm in (layer.q_norm, layer.k_norm)]
            layers[number] = structs.Layer(self._norm(layer.norm1), qkv, out, self._norm(layer.norm2), up, down, *norms)
        return layers

    def _norm(self, norm: Affine | None) -> structs.Norm:
        if norm is None:
            return structs.Norm()
        return structs.Norm(self._floats(norm.weight), None if norm.bias is None else self._floats(norm.bias))

    def _floats(self, tensor: torch.Tensor) -> int:
        """The address of `tensor` as float32, kept for as long as this lives."""
        self._kept.append(tensor.detach().float().contiguous())
        return self._kept[-1].data_ptr()


def matrices_of(layer: LayerWeights) -> tuple[Affine, ...]:
    """In the order of a step."""
    return tuple(affine for affine in (layer.qkv, layer.out, layer.up, layer.down) if affine is not None)


def _is_bfloat16(tensor: torch.Tensor) -> bool:
    import torch

    return tensor.dtype == torch.bfloat16


def _frequencies(spec: Spec) -> torch.Tensor:
    """[head_dim / 2], float32."""
    from claimbench.engine.model.positions import rotary_frequencies

    return rotary_frequencies(spec)


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
