"""Each kernel of the decode step, interpreted, against the same arithmetic in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.model

ROUNDINGS = 8
"""Errors of a result, in units of its type's rounding, relative to the largest value."""
HEADS = SimpleNamespace(heads=4, kv_heads=2, head_dim=16)


def spec(**changed: Any) -> Any:
    usual = {"eps": 1e-5, "norm": "rms", "arch": HEADS, "scale": 0.0625, "score_cap": None, "whole_qk_norm": False}
    return SimpleNamespace(**usual | changed)


def on(**changed: Any) -> Any:
    import torch

    from claimbench.engine.kernels.decode_kernels import on_device

    return replace(on_device(torch.device("cpu"), pdl=False), **changed)


def drawn(dtype: Any, *shape: int) -> Any:
    import torch

    return torch.randn(*shape).to(dtype)


def held(form: str, rows: int, columns: int, dtype: Any) -> tuple[Any, Any]:
    """A module that keeps a matrix in the format `form`, and the matrix that it stands for, in float64."""
    import torch

    from claimbench.engine.kernels.float8 import Float8Linear
    from claimbench.engine.kernels.quantized import GroupLinear
    from claimbench.engine.model.parts import PlainLinear
    from claimbench.engine.model.shards import Affine

    affine = Affine(drawn(dtype, rows, columns) / math.sqrt(columns), drawn(dtype, rows))
    if form == "plain":
        return PlainLinear(affine), affine.weight.double()
    if form == "fp8":
        module = Float8Linear(affine, compiled=False)
        return module, module.codes.double() * module.scale.double()[:, None]
    coded = GroupLinear(affine, 8 if form == "int8" else 4, compiled=False)
    return coded, coded.dequantized(torch.float64)


def close(ours: Any, exact: Any) -> None:
    import torch

    assert bool(ours.isfinite().all())
    far = float((ours.double() - exact).abs().max() / exact.abs().max()) / torch.finfo(ours.dtype).eps
    assert far <= ROUNDINGS, f"{far:.1f} roundings"


def normed(x: Any, norm: str, gain: Any, shift: Any) -> Any:
    if norm == "none":
        return x
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain.double()
    return x + shift.double() if norm == "layer" else x


@pytest.mark.parametrize("form", ["plain", "int8", "int4", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("batch", "norm", "processors"), [(1, "rms", 1), (2, "layer", 1), (4, "none", 1), (1, "rms", 9)]
)
def test_a_product_behind_a_norm(form: str, dtype: str, batch: int, norm: str, processors: int) -> None:
    """Rows that are no whole number of programs; with many processors, columns are split, and twice give the same."""
    import torch

    from claimbench.engine.kernels.decode_kernels import Gemv
    from claimbench.engine.kernels.decode_matrix import NormWeights, cover_of, matrix_of

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    module, weight = held(form, 70, 352, kind)
    gain, shift, x = drawn(kind, 352), drawn(kind, 352), drawn(kind, batch, 352)
    weights = None if norm == "none" else NormWeights(gain, shift if norm == "layer" else None)
    here = on(processors=processors, native_fp8=batch != 2)
    gemv = Gemv(here, spec(norm="rms" if norm == "none" else norm), matrix_of(module), batch, weights)
    assert (cover_of(gemv.matrix, batch, False, processors, here.rows).splits > 1) is (processors == 9)
    out, again = torch.empty(batch, 70, dtype=kind), torch.empty(batch, 70, dtype=kind)
    gemv(x, again)
    gemv(-2 * x, out)  # leaves other sums behind, which must not be taken for those of the next
    gemv(x, out)
    assert torch.equal(out, again)
    close(out, normed(x.double(), norm, gain, shift) @ weight.t() + module.bias.double())


@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh_gelu", "relu", "squared_relu"])
@pytest.mark.parametrize("end", ["gate", "store", "add"])
def test_what_comes_behind_a_product(activation: str, end: Any) -> None:
    import torch
    from torch.nn import functional

    from claimbench.engine.kernels.decode_kernels import Gemv
    from claimbench.engine.kernels.decode_matrix import matrix_of

    known = {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "tanh_gelu": lambda y: functional.gelu(y, approximate="tanh"),
        "relu": functional.relu,
        "squared_relu": lambda y: functional.relu(y).square(),
    }
    torch.manual_seed(0)
    module, weight = held("plain", 48, 64, torch.float32)
    x, residual = drawn(torch.float32, 2, 64), drawn(torch.float32, 2, 48)
    out = torch.empty(2, 24 if end == "gate" else 48)
    Gemv(on(), spec(), matrix_of(module), 2, activation=activation)(x, out, end, residual if end == "add" else None)
    y = x.double() @ weight.t() + module.bias.double()
    exact = known[activation](y)
    if end == "gate":
        exact = known[activation](y[:, :24]) * y[:, 24:]
    close(out, exact + residual.double() if end == "add" else exact)


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_logits_are_held_by_a_cap(cap: float) -> None:
    import torch

    from claimbench.engine.kernels.decode_kernels import Gemv
    from claimbench.engine.kernels.decode_matrix import matrix_of

    torch.manual_seed(0)
    module, weight = held("int8", 33, 64, torch.float32)
    x, out = drawn(torch.float32, 1, 64) * 3, torch.empty(1, 33)
    Gemv(on(), spec(), matrix_of(module), 1, cap=cap)(x, out)
    y = x.double() @ weight.t() + module.bias.double()
    close(out, cap * (y / cap).tanh() if cap else y)


def attended(q: Any, k: Any, v: Any, seen: Any, bias: Any, cap: float | None) -> Any:
    """Queries [batch, heads, width] over keys [batch, kv_heads, slots, width], of which each row sees `seen`."""
    shared = q.shape[1] // k.shape[1]
    k, v = (each.double().repeat_interleave(shared, 1) for each in (k, v))
    scores = (q.double()[:, :, None] @ k.transpose(2, 3))[:, :, 0] * 0.0625
    if cap:
        scores = cap * (scores / cap).tanh()
    scores = (scores + bias).masked_fill(~seen[:, None], -math.inf)
    return (scores.softmax(-1)[:, :, None] @ v)[:, :, 0]


@pytest.mark.parametrize(
    ("width", "heads", "kv_heads", "window", "past", "processors"),
    [
        (64, 4, 4, None, 299, 9),
        (80, 4, 2, 150, 280, 9),
        (128, 8, 1, None, 5, 9),
        (128, 6, 2, 40, 299, 1),
        (256, 4, 2, None, 150, 9),
        (256, 2, 1, None, 0, 1),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_attention_over_what_is_filled(
    width: int, heads: int, kv_heads: int, window: int | None, past: int, processors: int, dtype: str
) -> None:
    """Of 300 slots, past padding and within a window; what lies behind the token, and is no number, is never read.

    The interpreter multiplies matrices of bfloat16 as if they were integers: that type is for a GPU to try.
    """
    import torch

    from claimbench.engine.kernels.decode_kernels import Attention, Place

    torch.manual_seed(0)
    kind, slots, batch = getattr(torch, dtype), 300, 2
    padding = torch.tensor([0, min(past, 3)])
    q = drawn(kind, batch, heads, width)
    k, v = drawn(kind, batch, kv_heads, slots, width), drawn(kind, batch, kv_heads, slots, width)
    arch = SimpleNamespace(heads=heads, kv_heads=kv_heads, head_dim=width)
    alibi, cap = width == 64, 5.0 if heads == 6 else None
    slopes = torch.rand(heads) / 32 if alibi else None
    attention = Attention(on(processors=processors), spec(arch=arch, score_cap=cap), batch, slots, window, k.device)
    assert (attention.splits == 1) is (processors == 1)
    out = torch.empty(batch, heads * width, dtype=kind)
    key = torch.arange(slots)
    seen = (key <= past) & (key >= padding[:, None]) & (key > past - (window or slots))
    bias = (slopes.double()[None, :, None] * (key - padding[:, None])[:, None]) if slopes is not None else 0.0
    exact = attended(q, k, v, seen, bias, cap)
    for tensor in (k, v):
        tensor[:, :, past + 1 :] = math.nan
    attention(q, (k, v), Place(torch.tensor(past), padding), slopes, out)
    close(out.view(exact.shape), exact)


@pytest.mark.parametrize("width", [0, 8, 16])
def test_queries_turn_and_keys_and_values_go_to_their_slot(width: int) -> None:
    """The turn of a whole head, of its first half, and of none; every other slot stays as it was."""
    import torch

    from claimbench.engine.kernels.decode_kernels import Gemv, Place
    from claimbench.engine.kernels.decode_matrix import matrix_of

    torch.manual_seed(0)
    module, weight = held("plain", 8 * 16, 64, torch.float32)
    x, padding, past = drawn(torch.float32, 2, 64), torch.tensor([0, 3]), 7
    rotary: Any = SimpleNamespace(width=width, cos=torch.randn(20, width), sin=torch.randn(20, width))
    for table in (rotary.cos, rotary.sin):
        table[:, width // 2 :] = table[:, : width // 2]
    keys, values, q = torch.zeros(2, 2, 12, 16), torch.zeros(2, 2, 12, 16), torch.empty(2, 4, 16)
    gemv = Gemv(on(), spec(), matrix_of(module), 2)
    gemv.heads(x, q, (keys, values), Place(torch.tensor(past), padding), rotary if width else None)
    mixed = (x.double() @ weight.t() + module.bias.double()).view(2, 8, 16)
    turning = mixed[:, :6, :width]
    first, second = turning.chunk(2, -1)
    cos, sin = (table[past - padding][:, None].double() for table in (rotary.cos, rotary.sin))
    turned = torch.cat((turning * cos + torch.cat((-second, first), -1) * sin, mixed[:, :6, width:]), -1)
    close(q, turned[:, :4])
    close(keys[:, :, past], turned[:, 4:])
    close(values[:, :, past], mixed[:, 6:])
    for cache in (keys, values):
        cache[:, :, past] = 0
        assert not cache.any()
