"""The kernels of `triton_step` on the device, at the sizes of a model of 7 billion weights, against float64."""

from __future__ import annotations

import functools
import math
from typing import Any

FORMS = ("plain", "int8", "int4", "fp8")
ROWS = (1, 2, 4)
WIDTHS = (64, 80, 128, 256)
COLUMNS, MANY, SLOTS, PAST = 4096, 1024, 2048, 1500


def table() -> dict[str, Any]:
    """Name of a check -> (device, type) -> what the kernel gives, and the same in float64 on the CPU."""
    found: dict[str, Any] = {}
    for form in FORMS:
        for rows in ROWS:
            found[f"decode product, {form}, {rows} rows"] = functools.partial(product, form=form, rows=rows)
        found[f"decode product, {form}, launched ahead"] = functools.partial(product, form=form, rows=1, pdl=True)
    for width in WIDTHS:
        for window in (None, 300):
            name = f"decode attention, heads of {width}{', a window' if window else ''}"
            found[name] = functools.partial(attention, width=width, window=window)
    return found


def spec_with(**changed: Any) -> Any:
    from types import SimpleNamespace

    heads = SimpleNamespace(heads=8, kv_heads=2, head_dim=128)
    return SimpleNamespace(**{"eps": 1e-5, "norm": "rms", "arch": heads, "scale": 0.0625, "score_cap": None} | changed)


def product(device: str, dtype: Any, form: str, rows: int, pdl: bool = False) -> tuple[Any, Any]:
    """An RMS norm and a product, with few rows, so that columns are split; twice, since the first leaves scratch."""
    import torch

    from claimbench.engine.kernels.decode_kernels import Gemv, on_device
    from claimbench.engine.kernels.decode_matrix import NormWeights, matrix_of
    from claimbench.engine.kernels.float8 import Float8Linear
    from claimbench.engine.kernels.quantized import GroupLinear
    from claimbench.engine.model.parts import PlainLinear
    from claimbench.engine.model.shards import Affine

    weight, gain, x = (torch.randn(*shape).to(dtype) for shape in ((MANY, COLUMNS), (COLUMNS,), (rows, COLUMNS)))
    affine = Affine((weight / math.sqrt(COLUMNS)).to(device))
    modules = {
        "plain": lambda: PlainLinear(affine),
        "int8": lambda: GroupLinear(affine, 8, compiled=False),
        "int4": lambda: GroupLinear(affine, 4, compiled=False),
        "fp8": lambda: Float8Linear(affine, compiled=False),
    }
    module = modules[form]()
    held = affine.weight.double() if form == "plain" else module.dequantized(torch.float64)
    norm = NormWeights(gain.to(device), None)
    gemv = Gemv(on_device(torch.device(device), pdl), spec_with(), matrix_of(module), rows, norm)
    ours = torch.empty(rows, MANY, dtype=dtype, device=device)
    for factor in (-2, 1):
        gemv(factor * x.to(device), ours)
    wide = x.double()
    wide = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain.double()
    return ours, wide @ held.cpu().t()


def attention(device: str, dtype: Any, width: int, window: int | None) -> tuple[Any, Any]:
    """Behind padding in one of two rows; slots that hold nothing yet hold no number either."""
    import torch

    from claimbench.engine.kernels.decode_kernels import Attention, Place, on_device

    spec = spec_with()
    spec.arch.head_dim = width
    padding, past = torch.tensor([0, 7]), torch.tensor(PAST)
    q = torch.randn(2, 8, width).to(dtype)
    k, v = (torch.randn(2, 2, SLOTS, width).to(dtype) for _ in range(2))
    key = torch.arange(SLOTS)
    seen = (key <= PAST) & (key >= padding[:, None]) & (key > PAST - (window or SLOTS))
    wide_k, wide_v = (each.double().repeat_interleave(4, 1) for each in (k, v))
    scores = (q.double()[:, :, None] @ wide_k.transpose(2, 3))[:, :, 0] * spec.scale
    exact = (scores.masked_fill(~seen[:, None], -math.inf).softmax(-1)[:, :, None] @ wide_v)[:, :, 0]
    for tensor in (k, v):
        tensor[:, :, PAST + 1 :] = math.nan
    on = on_device(torch.device(device), False)
    out = torch.empty(2, 8 * width, dtype=dtype, device=device)
    place = Place(past.to(device), padding.to(device))
    Attention(on, spec, 2, SLOTS, window, torch.device(device))(
        q.to(device), (k.to(device), v.to(device)), place, None, out
    )
    return out.view(2, 8, width), exact
