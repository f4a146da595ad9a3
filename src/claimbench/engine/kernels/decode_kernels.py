"""The kernels of a decode step with their arguments: made once for a model, launched at every step.

Everything that a launch is told stays the same from step to step, addresses included:
so a step of them can be captured in a graph, and nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from claimbench.engine.kernels.decode_matrix import WARPS, Matrix, NormWeights, cover_of, power_of_two
from claimbench.engine.kernels.launches import Touched, launch
from claimbench.engine.model.positions import Rotary
from claimbench.engine.model.spec import Spec

Slots = tuple[Tensor, Tensor]
"""Keys and values of a layer, [batch, kv_heads, slots, head_dim] each, contiguous."""
End = Literal["store", "add", "gate"]
SPLITS = 32
"""Parts of the keys at most."""
KEYS_A_PART = 128
"""For which a part is worth its program."""
WAVES_OF_ATTENTION = 2
"""Programs for each processor that keys are split into."""
TILE_BYTES = 1 << 14
"""Of keys in a tile."""


@dataclass(frozen=True)
class On:
    """What the kernels run on."""

    processors: int
    """Of the device: as many programs at least keep it busy."""
    native_fp8: bool
    """It has E4M3."""
    pdl: bool
    """Launched ahead, each kernel waits for the one before by itself (compute capability 9.0 or more)."""
    rows: int = 4
    """Of a matrix in a program: a row a warp, whose 32 lanes lie along the columns."""

    @property
    def options(self) -> dict[str, bool]:
        return {"launch_pdl": True} if self.pdl else {}


def on_device(device: torch.device, pdl: bool) -> On:
    """The device at hand; where it is no GPU, one of few programs, for the interpreter."""
    if device.type != "cuda":
        return On(processors=2, native_fp8=True, pdl=False, rows=64)
    capability = torch.cuda.get_device_capability(device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return On(processors, capability >= (8, 9), pdl and capability >= (9, 0))


@dataclass(frozen=True, eq=False)
class Place:
    """Where a step stands, on the device."""

    past: Tensor
    """Slots that are filled, int64 []."""
    padding: Tensor
    """Slots before each row's first token, int64 [batch]."""


class Gemv:
    """norm(x) W^T + b for [batch, columns], and what its end does with it."""

    def __init__(
        self,
        on: On,
        spec: Spec,
        matrix: Matrix,
        batch: int,
        norm: NormWeights | None = None,
        activation: str = "none",
        cap: float = 0.0,
    ) -> None:
        self.on, self.spec, self.matrix, self.batch, self.norm = on, spec, matrix, batch, norm
        self.activation, self.cap = activation, cap
        self.scratch: dict[bool, tuple[Tensor | None, Tensor | None]] = {}

    def __call__(self, x: Tensor, out: Tensor, end: End = "store", residual: Tensor | None = None) -> None:
        self._launch(x, out, end, residual, None, None, None)

    def heads(self, x: Tensor, q: Tensor, slots: Slots, place: Place, rotary: Rotary | None) -> None:
        """Queries to `q` [batch, heads, head_dim]; keys and values to their slot of the cache."""
        self._launch(x, q, "heads", None, slots, place, rotary)

    def _launch(
        self,
        x: Tensor,
        out: Tensor,
        end: str,
        residual: Tensor | None,
        slots: Slots | None,
        place: Place | None,
        rotary: Rotary | None,
    ) -> None:
        matrix, norm, arch, on = self.matrix, self.norm, self.spec.arch, self.on
        paired = end in ("gate", "heads")
        cover = cover_of(matrix, self.batch, paired, on.processors, on.rows)
        partial, counter = self._scratch(paired, cover.splits, cover.blocks, x)
        gain, shift = (None, None) if norm is None else (norm.weight, norm.bias)
        cos, sin = (None, None) if rotary is None else (rotary.cos, rotary.sin)
        keys, values = slots or (None, None)
        rows_of_tables = () if rotary is None else (rotary.cos[: self.batch], rotary.sin[: self.batch])
        written = () if slots is None else tuple(each[:, :, :1] for each in slots)
        launch(
            "decode_gemv",
            (cover.blocks, cover.splits),
            Touched(
                weights=(*matrix.tensors, gain, shift, *rows_of_tables),
                other=(x, out, residual, *written, *((partial, partial) if cover.splits > 1 else ())),
            ),
            x, matrix.codes, matrix.scale, matrix.minimum, matrix.bias, gain, shift, residual, out, partial, counter,
            cos, sin, keys, values, place and place.past, place and place.padding,
            *((0, 0) if keys is None else keys.stride()[:2]), self.spec.eps, self.cap,
            many=matrix.rows, columns=matrix.columns, per_split=cover.per_split, splits=cover.splits, batch=self.batch,
            rows=on.rows, tile=cover.tile, whole=power_of_two(matrix.columns), form=matrix.form,
            norm="none" if norm is None else self.spec.norm, shifted=shift is not None,
            biased=matrix.bias is not None, end=end, activation=self.activation,
            width=0 if rotary is None else rotary.width, heads=arch.heads, kv_heads=arch.kv_heads,
            head_dim=arch.head_dim, native=on.native_fp8, pdl=on.pdl, num_warps=WARPS, **on.options,
        )  # fmt: skip

    def _scratch(self, paired: bool, splits: int, blocks: int, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Sums of each split, and how many of a block's splits are done: the last one sets that back to zero."""
        if paired not in self.scratch:
            made: tuple[Tensor | None, Tensor | None] = (None, None)
            if splits > 1:
                partial = torch.empty((splits, self.batch, self.matrix.rows), dtype=torch.float32, device=x.device)
                made = partial, torch.zeros(blocks, dtype=torch.int32, device=x.device)
            self.scratch[paired] = made
        return self.scratch[paired]


class Attention:
    """One new token's over the cache, [batch, heads, head_dim]; it reads the filled slots alone."""

    def __init__(self, on: On, spec: Spec, batch: int, slots: int, window: int | None, device: torch.device) -> None:
        arch = spec.arch
        self.on, self.spec, self.batch, self.window = on, spec, batch, window
        reach = min(slots, window) if window else slots
        wanted = -(-WAVES_OF_ATTENTION * on.processors // (batch * arch.kv_heads))
        self.splits = max(1, min(SPLITS, wanted, -(-reach // KEYS_A_PART)))
        self.wide = max(16, power_of_two(arch.head_dim))
        self.parts: tuple[Tensor, ...] = ()
        if self.splits > 1:
            shape = self.splits, batch, arch.heads
            wide = torch.empty((*shape, arch.head_dim), dtype=torch.float32, device=device)
            self.parts = wide, *(torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))

    def __call__(self, q: Tensor, slots: Slots, place: Place, slopes: Tensor | None, out: Tensor) -> None:
        arch, on, (keys, values) = self.spec.arch, self.on, slots
        parts, peaks, sums = self.parts or (out, None, None)
        tile = max(16, min(128, TILE_BYTES // (self.wide * keys.element_size())))
        launch(
            "decode_attention",
            (self.batch * arch.kv_heads, self.splits),
            Touched(weights=(slopes,), cache=slots, window=self.window, other=(q, parts, peaks, sums)),
            q, keys, values, place.past, place.padding, slopes, parts, peaks, sums, self.spec.scale,
            self.spec.score_cap or 0.0, *keys.stride()[:2],
            heads=arch.heads, kv_heads=arch.kv_heads, head_dim=arch.head_dim,
            shared=max(16, power_of_two(arch.heads // arch.kv_heads)), wide=self.wide, tile=tile, splits=self.splits,
            window=self.window or 0, sloped=slopes is not None, pdl=on.pdl, num_warps=WARPS, **on.options,
        )  # fmt: skip
        if self.splits > 1:
            launch(
                "decode_combine",
                (self.batch * arch.heads,),
                Touched(other=(parts, peaks, sums, out)),
                parts, peaks, sums, out, head_dim=arch.head_dim, wide=self.wide, splits=self.splits,
                many=power_of_two(self.splits), pdl=on.pdl, num_warps=WARPS, **on.options,
            )  # fmt: skip


class Embed:
    """Token ids [batch, 1] -> [batch, hidden]."""

    def __init__(
        self, on: On, spec: Spec, table: Tensor, places: Tensor | None, factor: float | None, norm: NormWeights | None
    ) -> None:
        self.on, self.spec, self.table, self.places, self.norm = on, spec, table, places, norm
        self.factor = 1.0 if factor is None else factor

    def __call__(self, tokens: Tensor, place: Place, out: Tensor) -> None:
        gain, shift = (None, None) if self.norm is None else (self.norm.weight, self.norm.bias)
        rows = len(tokens)
        looked_up = self.table[:rows], None if self.places is None else self.places[:rows]
        launch(
            "decode_embed",
            (rows,),
            Touched(weights=(*looked_up, gain, shift), other=(tokens, out)),
            tokens, self.table, self.places, place.past, place.padding, gain, shift, out, self.factor, self.spec.eps,
            columns=out.shape[1], whole=power_of_two(out.shape[1]), placed=self.places is not None,
            norm="none" if gain is None else self.spec.norm, shifted=shift is not None, pdl=self.on.pdl,
            num_warps=WARPS, **self.on.options,
        )  # fmt: skip


class NormAdd:
    """residual + norm(given), [batch, hidden]."""

    def __init__(self, on: On, spec: Spec, norm: NormWeights) -> None:
        self.on, self.spec, self.norm = on, spec, norm

    def __call__(self, given: Tensor, residual: Tensor, out: Tensor) -> None:
        gain, shift = self.norm.weight, self.norm.bias
        launch(
            "decode_norm_add",
            (len(given),),
            Touched(weights=(gain, shift), other=(given, residual, out)),
            given, residual, gain, shift, out, self.spec.eps, columns=out.shape[1], whole=power_of_two(out.shape[1]),
            norm=self.spec.norm, shifted=shift is not None, pdl=self.on.pdl, num_warps=WARPS, **self.on.options,
        )  # fmt: skip


class Heads:
    """Norms of queries and keys, for families that have them: [batch, all heads * head_dim] -> their places."""

    def __init__(self, on: On, spec: Spec, q_norm: NormWeights, k_norm: NormWeights) -> None:
        self.on, self.spec, self.q_norm, self.k_norm = on, spec, q_norm, k_norm

    def __call__(self, mixed: Tensor, q: Tensor, slots: Slots, place: Place, rotary: Rotary | None) -> None:
        spec, arch, q_norm, k_norm, (keys, values) = self.spec, self.spec.arch, self.q_norm, self.k_norm, slots
        cos, sin = (None, None) if rotary is None else (rotary.cos, rotary.sin)
        norms = (q_norm.weight, q_norm.bias, k_norm.weight, k_norm.bias)
        batch, every = len(q), arch.heads + 2 * arch.kv_heads
        tables = () if rotary is None else (rotary.cos[:batch], rotary.sin[:batch])
        written = (keys[:, :, :1], values[:, :, :1])
        launch(
            "decode_heads",
            (batch * every,),
            Touched(weights=(*norms, *tables), other=(mixed, q, *written)),
            mixed, *norms, cos, sin, q, keys, values, place.past, place.padding, *keys.stride()[:2], spec.eps,
            heads=arch.heads, kv_heads=arch.kv_heads, head_dim=arch.head_dim, wide=power_of_two(arch.head_dim),
            section=power_of_two(arch.heads * arch.head_dim), together=spec.whole_qk_norm,
            own=not spec.whole_qk_norm and q_norm.weight.numel() > arch.head_dim,
            width=0 if rotary is None else rotary.width, centred=spec.norm == "layer",
            shifted=q_norm.bias is not None, pdl=self.on.pdl, num_warps=WARPS, **self.on.options,
        )  # fmt: skip
