"""NativeDecoder: a decoder's weights in the native step's order, and its step.

Physics: at batch 1 a token costs the bytes of all weights over the bandwidth of memory, and everything else has to hide
behind that. So the weights lie in one block of memory in the order in which a step reads them, on large pages, and
Python is left with one call per token.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING

from claimbench import machine
from claimbench.errors import Unavailable
from claimbench.native import build
from claimbench.native.packing import LANES, Format, Packed, pack, packed_bytes

if TYPE_CHECKING:
    import torch

    from claimbench.model.spec import Spec
    from claimbench.model.weights import Affine, Weights

FORMAT_CODES: dict[Format, int] = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
NORM_CODES = {"rms": 0, "layer": 1}
POSITION_CODES = {"rotary": 0, "learned": 1, "alibi": 2}
ACTIVATION_CODES = {"silu": 0, "tanh_gelu": 1, "gelu": 2}
IDLE_SPIN_NS = 100_000
"""How long a thread looks for the next token before it sleeps: waking takes longer than Python does between two."""
LARGE_PAGE_BYTES = 1 << 21
LONGEST_HEAD = 256


@dataclass(frozen=True)
class Formats:
    """How each group of matrices is stored."""

    attention: Format = "float32"
    mlp: Format = "float32"
    head: Format = "float32"


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("format", ctypes.c_int64),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("before_attention", _Norm),
        ("qkv", _Matrix),
        ("out", _Matrix),
        ("before_mlp", _Norm),
        ("up", _Matrix),
        ("down", _Matrix),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("vocabulary", "hidden", "heads", "kv_heads", "head_dim", "intermediate")),
        *((name, ctypes.c_int64) for name in ("layers", "norm", "positions", "mlp", "window", "threads")),
        ("idle_spin_ns", ctypes.c_int64),
        ("norm_epsilon", ctypes.c_float),
        ("attention_scale", ctypes.c_float),
        ("inverse_frequencies", ctypes.c_void_p),
        ("slopes", ctypes.c_void_p),
        ("embedding", ctypes.c_void_p),
        ("position_embedding", ctypes.c_void_p),
        ("embedding_bfloat16", ctypes.c_int64),
        ("position_rows", ctypes.c_int64),
        ("embedding_norm", _Norm),
        ("final_norm", _Norm),
        ("layer", ctypes.POINTER(_Layer)),
        ("head", _Matrix),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "length", "capacity", "cache_bfloat16")),
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "starts")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        ("logits", ctypes.c_void_p),
    ]


def unavailable(spec: Spec | None = None) -> str | None:
    """Why the native step cannot run here, or for this decoder; cheap, builds nothing."""
    reason = build.unavailable()
    if reason or spec is None:
        return reason
    head_dim = spec.arch.head_dim
    if head_dim % LANES or head_dim > LONGEST_HEAD:
        return f"heads of {head_dim}: the native step knows multiples of {LANES} up to {LONGEST_HEAD}"
    return None


class NativeDecoder:
    """One decoder, ready to take one token for each row of a batch.

    It holds its own packed copy of the matrices; the embedding is looked up in the tensor that it was given.
    """

    def __init__(
        self,
        spec: Spec,
        weights: Weights,
        format: Format | Formats = "float32",
        threads: int | None = None,
        flags: tuple[str, ...] = (),
    ) -> None:
        """Pack `weights`; `flags` build for another CPU than this one.

        Raises:
            Unavailable: there is no compiler, or the step does not know this decoder.
            MemoryError: there is no room, or no thread to be had.
        """
        reason = unavailable(spec)
        if reason:
            raise Unavailable(reason)
        self.spec, self.threads = spec, threads or machine.usable_cores()
        self.formats = format if isinstance(format, Formats) else Formats(format, format, format)
        self._kept: list[torch.Tensor] = []
        self._library = build.library(flags)
        if self._library.model_bytes() != ctypes.sizeof(_Model):
            raise Unavailable(f"decode.c and decoder.py disagree: {self._library.model_bytes()} bytes of a model")
        model = self._model(weights)
        handle = self._library.decoder_open(ctypes.byref(model))
        if not handle:
            raise MemoryError(f"no memory or threads for a native decoder with {self.threads} threads")
        self._handle = handle
        self.close = weakref.finalize(self, self._library.decoder_close, handle)
        self._lock = threading.Lock()
        self._step = _Step()
        self._bound: list[torch.Tensor] = []
        self._logits: torch.Tensor | None = None

    def step(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        starts: torch.Tensor,
        length: int,
    ) -> torch.Tensor:
        """Logits, float32 [batch, vocabulary], after one more token in each row; the next step overwrites them.

        Args:
            tokens: int64 [batch].
            positions: int64 [batch], each token's position in its own row.
            keys, values: per layer [batch, kv_heads, capacity, head_dim], float32 or bfloat16; written at `length`.
            starts: int64 [batch], the first slot of the cache that is not padding.
            length: slots of the cache that are filled.

        Raises:
            ValueError: shapes, types or numbers that do not fit.
        """
        with self._lock:
            if not self.close.alive:
                raise ValueError("expected an open decoder, this one was closed")
            step = self._step
            held = len(keys) + len(values) == len(self._bound)
            if not held or not all(map(is_, chain(keys, values), self._bound)):
                self._bind(list(keys), list(values))
            for name, given in (("tokens", tokens), ("positions", positions), ("starts", starts)):
                if given.shape != (step.batch,) or not given.is_contiguous() or given.dtype.itemsize != 8:
                    raise ValueError(f"{name}: expected int64 [{step.batch}], got {given.dtype} {list(given.shape)}")
                setattr(step, name, given.data_ptr())
            step.length = length
            status = self._library.decoder_step(self._handle, ctypes.byref(step))
            if status == -1:
                raise MemoryError(f"no memory for a batch of {step.batch}")
            if status == -2:
                raise ValueError(
                    f"expected tokens under {self.spec.arch.vocabulary}, starts up to {length} and a length under "
                    f"{step.capacity}, got {tokens.tolist()}, {starts.tolist()} and {length} at {positions.tolist()}"
                )
            assert self._logits is not None
            return self._logits

    def weight_bytes(self) -> int:
        """Bytes of weights that one step of batch 1 reads: packed matrices, norms, biases and one row looked up."""
        looked_up = self._embedding[0].nbytes + (self._positions[0].nbytes if self._positions is not None else 0)
        return self._block.nbytes + sum(tensor.nbytes for tensor in self._kept) + looked_up

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor that is held, the embedding included."""
        return [self._block, *self._kept, self._embedding, *([] if self._positions is None else [self._positions])]

    def _bind(self, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        """Take the cache's addresses, once for as long as the caller passes the same tensors."""
        import torch

        arch, caches = self.spec.arch, [*keys, *values]
        shape, dtype = tuple(caches[0].shape), caches[0].dtype
        expected = f"{2 * arch.layers} tensors [batch, {arch.kv_heads}, capacity, {arch.head_dim}]"
        if len(keys) != arch.layers or len(values) != arch.layers or len(shape) != 4:
            raise ValueError(f"keys and values: expected {expected}, got {len(caches)} of {list(shape)}")
        if (shape[1], shape[3]) != (arch.kv_heads, arch.head_dim) or dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"keys and values: expected {expected}, float32 or bfloat16, got {dtype} {list(shape)}")
        if any(tuple(t.shape) != shape or t.dtype != dtype or not t.is_contiguous() for t in caches):
            raise ValueError("keys and values: expected contiguous tensors of one shape and type in every layer")
        step = self._step
        step.batch, step.capacity, step.cache_bfloat16 = shape[0], shape[2], dtype == torch.bfloat16
        addresses = [(ctypes.c_void_p * arch.layers)(*(t.data_ptr() for t in part)) for part in (keys, values)]
        self._addresses = addresses
        step.keys, step.values = (ctypes.addressof(array) for array in addresses)
        if self._logits is None or len(self._logits) != shape[0]:
            self._logits = torch.empty(shape[0], arch.vocabulary)
        step.logits = self._logits.data_ptr()
        self._bound = caches

    # ---- the model as decode.c sees it

    def _model(self, weights: Weights) -> _Model:
        import torch

        from claimbench.model.transformer import alibi_slopes

        spec, arch = self.spec, self.spec.arch
        matrices = list(self._matrices(weights))
        sizes = [packed_bytes(len(weight), weight.shape[1], form) for weight, _, form in matrices]
        self._block = large_pages(sum(sizes))
        places = torch.split(self._block, sizes)
        packed = [pack(weight, form, into) for (weight, _, form), into in zip(matrices, places, strict=True)]
        described = [self._matrix(part, bias) for part, (_, bias, _) in zip(packed, matrices, strict=True)]
        layers = (_Layer * arch.layers)()
        for number, layer in enumerate(weights.layers):
            qkv, out, up, down = described[4 * number : 4 * number + 4]
            layers[number] = _Layer(self._norm(layer.norm1), qkv, out, self._norm(layer.norm2), up, down)
        half = torch.arange(0, arch.head_dim, 2, dtype=torch.float32) / arch.head_dim
        frequencies = 1.0 / (spec.rope_theta or 1.0) ** half
        bfloat16 = weights.embedding.dtype == torch.bfloat16
        self._embedding = (weights.embedding if bfloat16 else weights.embedding.float()).contiguous()
        self._positions = None if weights.positions is None else weights.positions.float().contiguous()
        return _Model(
            vocabulary=arch.vocabulary,
            hidden=arch.hidden,
            heads=arch.heads,
            kv_heads=arch.kv_heads,
            head_dim=arch.head_dim,
            intermediate=arch.intermediate,
            layers=arch.layers,
            norm=NORM_CODES[spec.norm],
            positions=POSITION_CODES[spec.positions],
            mlp=ACTIVATION_CODES[spec.activation],
            window=spec.window or 0,
            threads=self.threads,
            idle_spin_ns=IDLE_SPIN_NS,
            norm_epsilon=spec.eps,
            attention_scale=arch.head_dim**-0.5,
            inverse_frequencies=self._floats(frequencies),
            slopes=self._floats(alibi_slopes(arch.heads)) if spec.positions == "alibi" else None,
            embedding=self._embedding.data_ptr(),
            embedding_bfloat16=bfloat16,
            position_embedding=None if self._positions is None else self._positions.data_ptr(),
            position_rows=0 if self._positions is None else len(self._positions),
            embedding_norm=self._norm(weights.embedding_norm),
            final_norm=self._norm(weights.norm),
            layer=layers,
            head=described[-1],
        )

    def _matrices(self, weights: Weights) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, Format]]:
        """Every matrix with its bias and format, in the order of a step."""
        for layer in weights.layers:
            up = _take_turns(layer.up) if self.spec.gated else (layer.up.weight, layer.up.bias)
            yield layer.qkv.weight, layer.qkv.bias, self.formats.attention
            yield layer.out.weight, layer.out.bias, self.formats.attention
            yield (*up, self.formats.mlp)
            yield layer.down.weight, layer.down.bias, self.formats.mlp
        yield weights.head, None, self.formats.head

    def _matrix(self, packed: Packed, bias: torch.Tensor | None) -> _Matrix:
        from torch.nn import functional

        panels = len(packed.data)
        padded = None if bias is None else functional.pad(bias.float(), (0, panels * LANES - len(bias)))
        return _Matrix(
            data=packed.data.data_ptr(),
            bias=None if padded is None else self._floats(padded),
            rows=packed.rows,
            columns=packed.padded_columns,
            format=FORMAT_CODES[packed.format],
        )

    def _norm(self, norm: Affine | None) -> _Norm:
        if norm is None:
            return _Norm()
        return _Norm(self._floats(norm.weight), None if norm.bias is None else self._floats(norm.bias))

    def _floats(self, tensor: torch.Tensor) -> int:
        """The address of `tensor` as float32, kept for as long as the decoder lives."""
        self._kept.append(tensor.detach().float().contiguous())
        return self._kept[-1].data_ptr()


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
