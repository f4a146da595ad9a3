"""Each kernel of the engine against the same arithmetic in float64 on the CPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from gpu_day import right_decode
from gpu_day.record import Json
from gpu_day.right_device import expect
from gpu_day.stage import Check, Context

ROUNDINGS = 8
"""Errors of a result, in units of its type's rounding, relative to the largest value of its row."""
HEADS, NEW, KEYS, WIDTH = 4, 3, 37, 64


def checks(context: Context) -> list[Check]:
    """A row for each kernel and type."""
    dtypes = ("float32", "bfloat16") if context.cuda else ("float32",)
    found = []
    for name, (run, needs, only) in table(context).items():
        for dtype in dtypes:
            takes_long = context.tiny and "compile" in name
            if (only is None or dtype in only) and not takes_long:
                made = functools.partial(against_float64, run=run, dtype=dtype)
                found.append(Check(f"kernel/{name} {dtype}", made, needs))
    return found


Kernel = Callable[[str, Any], tuple[Any, Any]]
"""(device, dtype) -> what the kernel gives, and the same in float64 on the CPU."""


def table(context: Context) -> dict[str, tuple[Kernel, tuple[str, ...], tuple[str, ...] | None]]:
    part = functools.partial
    half = ("bfloat16",) if context.cuda else None
    found: dict[str, tuple[Kernel, tuple[str, ...], tuple[str, ...] | None]] = {
        "softmax triton": (part(softmax, how="triton"), ("cuda", "triton"), None),
        "attention flash, one token": (part(attention, new=1), (), half),
        "attention flash, a prompt": (part(attention, new=KEYS), (), half),
        "attention flash, tokens behind a past": (part(attention, new=NEW), ("cuda",), half),
        "matrix [in, out]": (fast_linear, (), None),
        "norm native": (part(norm, how="native"), (), None),
        "norm compiled": (part(norm, how="compile"), (), None),
        "gelu native": (part(gelu, how="native"), (), None),
    }
    for name, run in right_decode.table().items():
        found[name] = (run, ("cuda", "triton"), None)
    for how in ("jit", "compile"):
        found[f"softmax {how}"] = (part(softmax, how=how), (), None)
        found[f"gelu {how}"] = (part(gelu, how=how), (), None)
    for bits in (8, 4):
        for compiled in (False, True):
            name = f"matrix of {bits}-bit codes{', compiled' if compiled else ''}"
            found[name] = (part(codes, bits=bits, compiled=compiled), (), None)
    return found


def against_float64(context: Context, run: Kernel, dtype: str) -> Json:
    import torch

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    with torch.inference_mode():
        ours, exact = run(context.device, kind)
    expect(bool(ours.isfinite().all()), "finite values", "some that are not")
    far = (ours.double().cpu() - exact).abs() / exact.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    roundings = float(far.max()) / torch.finfo(kind).eps
    least = torch.finfo(kind).eps * ROUNDINGS
    expect(float(far.max()) <= least, f"at most {ROUNDINGS} roundings of {dtype}", f"{roundings:.1f}")
    return {"roundings": round(roundings, 2)}


def drawn(device: str, dtype: Any, *shape: int, scale: float = 1.0) -> tuple[Any, Any]:
    """Values of `dtype` on the device, and exactly those in float64 on the CPU."""
    import torch

    values = (torch.randn(*shape) * scale).to(dtype)
    return values.to(device), values.double()


def softmax(device: str, dtype: Any, how: Any) -> tuple[Any, Any]:
    import torch

    from claimbench.engine.kernels.fused import fused_softmax
    from claimbench.engine.kernels.softmax import triton_softmax

    kernel = triton_softmax() if how == "triton" else fused_softmax(how, wide=True)
    scores, exact = drawn(device, dtype, 2, HEADS, NEW, KEYS)
    hidden = torch.arange(KEYS) > KEYS - 5
    bias = torch.zeros(2, 1, NEW, KEYS, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    scale = 0.25  # exact in any type, so that the kernel's order of scaling and masking decides nothing
    ours = torch.cat([kernel(scores, None, scale), kernel(scores, bias.to(device), scale)])
    masked = (exact * scale).masked_fill(hidden, -math.inf)
    return ours, torch.cat([(exact * scale).softmax(-1), masked.softmax(-1)])


def attention(device: str, dtype: Any, new: int) -> tuple[Any, Any]:
    import torch

    from claimbench.engine.kernels.flash import attention_on, check_device
    from claimbench.engine.model.parts import PassContext, plain_softmax

    check_device(torch.device(device))
    q, exact_q = drawn(device, dtype, 2, HEADS, new, WIDTH)
    k, exact_k = drawn(device, dtype, 2, 2, KEYS, WIDTH)
    v, exact_v = drawn(device, dtype, 2, 2, KEYS, WIDTH)
    past, scale = KEYS - new, 1 / math.sqrt(WIDTH)
    positions = torch.arange(past, KEYS, device=device)[None]
    ours = attention_on(torch.device(device))(q, k, v, PassContext(past, positions, None), scale, plain_softmax)
    exact_k, exact_v = (each.repeat_interleave(HEADS // 2, 1) for each in (exact_k, exact_v))
    future = torch.arange(KEYS) > torch.arange(past, KEYS)[:, None]
    scores = (exact_q @ exact_k.transpose(-1, -2) * scale).masked_fill(future, -math.inf)
    return ours, scores.softmax(-1) @ exact_v


def fast_linear(device: str, dtype: Any) -> tuple[Any, Any]:
    from claimbench.engine.kernels.fused import FastLinear
    from claimbench.engine.model.shards import Affine

    weight, exact_weight = drawn(device, dtype, 96, WIDTH, scale=1 / math.sqrt(WIDTH))
    bias, exact_bias = drawn(device, dtype, 96)
    x, exact_x = drawn(device, dtype, 1, NEW, WIDTH)
    return FastLinear(Affine(weight, bias), copied=True)(x), exact_x @ exact_weight.t() + exact_bias


def spec_of(architecture: str) -> Any:
    from claimbench.cost_model import cost
    from claimbench.engine.model.read_spec import read_spec

    return read_spec(cost.config(architecture))


def norm(device: str, dtype: Any, how: str) -> tuple[Any, Any]:
    """An RMS norm and a layer norm, one after the other."""
    import torch

    from claimbench.engine.kernels.fused import NORMS
    from claimbench.engine.model.shards import Affine

    x, exact = drawn(device, dtype, 2, NEW, WIDTH)
    weight, exact_weight = drawn(device, dtype, WIDTH)
    bias, exact_bias = drawn(device, dtype, WIDTH)
    rms: Any = NORMS[how](Affine(weight), spec_of("tiny-llama"))
    layer: Any = NORMS[how](Affine(weight, bias), spec_of("tiny-bigcode"))
    centred = exact - exact.mean(-1, keepdim=True)
    expected = [
        exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + rms.eps) * exact_weight,
        centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + layer.eps) * exact_weight + exact_bias,
    ]
    return torch.cat([rms(x), layer(x)]), torch.cat(expected)


def gelu(device: str, dtype: Any, how: str) -> tuple[Any, Any]:
    """After a matrix that changes nothing, so that the activation alone is looked at."""
    import torch

    from claimbench.engine.kernels.fused import FusedGelu
    from claimbench.engine.model.parts import PlainLinear
    from claimbench.engine.model.shards import Affine

    x, exact = drawn(device, dtype, 1, NEW, WIDTH)
    same = PlainLinear(Affine(torch.eye(WIDTH, dtype=dtype, device=device)))
    ours = FusedGelu(same, spec_of("tiny-bigcode"), how)(x)
    return ours, torch.nn.functional.gelu(exact, approximate="tanh")


def codes(device: str, dtype: Any, bits: int, compiled: bool) -> tuple[Any, Any]:
    """One row and several, against the matrix that the codes stand for."""
    import torch

    from claimbench.engine.kernels.quantized import GroupLinear
    from claimbench.engine.model.shards import Affine

    weight, _ = drawn(device, dtype, 96, 4 * WIDTH, scale=1 / math.sqrt(4 * WIDTH))
    layer = GroupLinear(Affine(weight), bits, compiled).to(device)
    x, exact = drawn(device, dtype, 1, 1, 4 * WIDTH)
    held = layer.dequantized(torch.float64).cpu()
    return layer(x), exact @ held.t()
