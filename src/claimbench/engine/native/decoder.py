"""NativeDecoder: a decode step as one call of decode.c, so that Python is left with one call per token."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING

from claimbench.engine.native import build, structs
from claimbench.engine.native.packed_model import Formats, PackedModel
from claimbench.engine.native.packing import LANES, Format
from claimbench.errors import Unavailable
from claimbench.system import machine

if TYPE_CHECKING:
    import torch

    from claimbench.engine.model.spec import Spec
    from claimbench.engine.model.weights import Weights

IDLE_SPIN_NS = 100_000
"""How long a thread looks for the next token before it sleeps: waking takes longer than Python does between two."""
OUT_OF_MEMORY, OUT_OF_RANGE = -1, -2
LONGEST_HEAD = 256


def unavailable(spec: Spec | None = None) -> str | None:
    """Why the native step cannot run here, or for this decoder; cheap, builds nothing."""
    reason = build.unavailable()
    if reason or spec is None:
        return reason
    if spec.odd:
        return f"the native step has no {spec.odd[0]}"
    head_dim = spec.arch.head_dim
    if head_dim % LANES or head_dim > LONGEST_HEAD:
        return f"heads of {head_dim}: the native step knows multiples of {LANES} up to {LONGEST_HEAD}"
    return None


class NativeDecoder:
    """One decoder, ready to take new tokens for each row of a batch.

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
        """Pack `weights`; `flags` build for other instructions than all of this CPU's (`instruction_sets.flags_of`).

        Raises:
            Unavailable: there is no compiler, or the step does not know this decoder.
            MemoryError: there is no room, or no thread to be had.
        """
        reason = unavailable(spec)
        if reason:
            raise Unavailable(reason)
        self.spec, self.threads = spec, threads or machine.usable_cores()
        formats = format if isinstance(format, Formats) else Formats(format, format, format)
        self._library = build.library(flags)
        if self._library.model_bytes() != ctypes.sizeof(structs.Model):
            raise Unavailable(f"decode.c and decoder.py disagree: {self._library.model_bytes()} bytes of a model")
        self._packed = PackedModel(spec, weights, formats)
        model = self._packed.described(self.threads, IDLE_SPIN_NS)
        handle = self._library.decoder_open(ctypes.byref(model))
        if not handle:
            raise MemoryError(f"no memory or threads for a native decoder with {self.threads} threads")
        self._handle: int = handle
        self.close = weakref.finalize(self, self._library.decoder_close, handle)
        self._lock = threading.Lock()
        self._step = structs.Step()
        self._bound: list[torch.Tensor] = []
        self._logits: dict[tuple[int, int], torch.Tensor] = {}

    def step(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        starts: torch.Tensor,
        length: int,
        logits_to_keep: int | None = None,
        layers: int | None = None,
        hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits, float32 [batch, kept, vocabulary], of one pass over new tokens; the next pass overwrites them.

        The weights are read once for all tokens of all rows.

        Args:
            tokens: int64 [batch, new].
            positions: int64 [batch, new], each token's position in its own row.
            keys, values: per layer [batch, kv_heads, capacity, head_dim], float32 or bfloat16; written behind `length`.
            starts: int64 [batch], the first slot of the cache that is not padding. A new token before it sees nothing.
            length: slots of the cache that are filled.
            logits_to_keep: the last new tokens of each row that logits are wanted after; all of them by default.
            layers: how many run, from the first; all of them by default. The last norm and the head follow.
            hidden: float32 [batch, new, hidden], where what the head would read is written, of every new token.

        Raises:
            ValueError: shapes, types or numbers that do not fit.
        """
        with self._lock:
            step = self._step
            held = len(keys) + len(values) == len(self._bound)
            if not held or not all(map(is_, chain(keys, values), self._bound)):
                self._bind(list(keys), list(values))
            step.new, step.length, step.layers = tokens.shape[-1], length, layers or self.spec.arch.layers
            step.logits_to_keep = step.new if logits_to_keep is None else logits_to_keep
            self._give("tokens", tokens, (step.batch, step.new))
            self._give("positions", positions, (step.batch, step.new))
            self._give("starts", starts, (step.batch,))
            step.hidden = None if hidden is None else self._room_for_hidden(hidden)
            logits = self._logits_of(step.batch, step.logits_to_keep)
            step.logits = logits.data_ptr()
            status = self._library.decoder_step(self._opened(), ctypes.byref(step))
            if status == OUT_OF_RANGE:
                wanted = f"tokens under {self.spec.arch.vocabulary}, starts up to {length}, up to {len(keys)} layers"
                raise ValueError(
                    f"expected {wanted}, logits of up to {step.new} tokens and a length up to {step.capacity}, got "
                    f"{tokens.tolist()} at {positions.tolist()}, {starts.tolist()}, {step.layers}, "
                    f"{step.logits_to_keep} and "
                    f"{length + step.new}"
                )
            self._check(status)
            return logits

    def _room_for_hidden(self, hidden: torch.Tensor) -> int:
        shape = self._step.batch, self._step.new, self.spec.arch.hidden
        if tuple(hidden.shape) != shape or not hidden.is_contiguous() or str(hidden.dtype) != "torch.float32":
            raise ValueError(f"hidden: expected float32 {list(shape)}, got {hidden.dtype} {list(hidden.shape)}")
        return hidden.data_ptr()

    def _give(self, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape or not tensor.is_contiguous() or tensor.dtype.itemsize != 8:
            raise ValueError(f"{name}: expected int64 {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")
        setattr(self._step, name, tensor.data_ptr())

    def multiply(self, matrix: int, x: torch.Tensor, rows: int) -> torch.Tensor:
        """x [lines, columns], float32, times one matrix, plus its bias: float32 [lines, rows].

        Args:
            matrix: by its place in a step; in each layer queries, keys and values, out, up and down, of every expert
                where there are some; after all layers, the head.
            x: contiguous, as wide as the matrix.
            rows: of the matrix as it was before it was packed.

        Raises:
            ValueError: another matrix than that, or x of another shape or type.
        """
        import torch

        shapes = self._packed.shapes
        shape = shapes[matrix] if 0 <= matrix < len(shapes) else None
        if shape != (rows, x.shape[-1]) or x.ndim != 2 or x.dtype != torch.float32 or not x.is_contiguous():
            wanted = f"one of {len(shapes)} matrices" if shape is None else f"{shape[0]} rows of {shape[1]}"
            raise ValueError(f"expected {wanted}, got matrix {matrix}, {rows} rows and {x.dtype} {list(x.shape)}")
        y = torch.empty(len(x), rows)
        halves = self._packed.halves[matrix]
        product = structs.Product(matrix, halves, len(x), x.shape[1], rows, x.data_ptr(), y.data_ptr())
        with self._lock:
            self._check(self._library.decoder_multiply(self._opened(), ctypes.byref(product)))
        return y

    def _opened(self) -> int:
        if not self.close.alive:
            raise ValueError("expected an open decoder, this one was closed")
        return self._handle

    def _check(self, status: int) -> None:
        if status == OUT_OF_MEMORY:
            raise MemoryError("no memory, or no threads, for a pass of the native decoder")

    def _logits_of(self, batch: int, logits_to_keep: int) -> torch.Tensor:
        """[batch, logits_to_keep, vocabulary] where the last pass of that shape wrote them."""
        import torch

        logits = self._logits.get((batch, logits_to_keep))
        if logits is None:
            logits = self._logits[batch, logits_to_keep] = torch.empty(batch, logits_to_keep, self.spec.arch.vocabulary)
        return logits

    @property
    def instructions(self) -> str:
        """The instructions that products are made of, by the name that the built code has for them."""
        name: bytes = self._library.instructions()
        return name.decode()

    @property
    def held(self) -> dict[str, int]:
        """How many matrices are stored in each format, as the native code reads them."""
        return self._packed.held

    def weight_bytes(self) -> int:
        """Bytes of weights that one step of batch 1 reads: packed matrices, norms, biases and one row looked up."""
        return self._packed.weight_bytes()

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor that is held, the embedding included."""
        return self._packed.tensors()

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
        self._bound = caches
