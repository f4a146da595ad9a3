"""Kernels in Triton; imported only where Triton is."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor


@triton.jit(do_not_specialize=["keys", "of_batch", "of_head", "of_new"])  # type: ignore[untyped-decorator, unused-ignore]
def softmax_of_row(  # type: ignore[no-untyped-def]
    scores, bias, out, scale, heads, new, keys, of_batch, of_head, of_new, masked: tl.constexpr, width: tl.constexpr
):
    """One program a row: scale, add the bias, subtract the largest, exponentiate, divide; read and written once."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, width)
    inside = column < keys
    x = tl.load(scores + row * keys + column, mask=inside, other=-float("inf")).to(tl.float32) * scale
    if masked:
        batch, head, query = row // (heads * new), row // new % heads, row % new
        start = bias + batch * of_batch + head * of_head + query * of_new
        x += tl.load(start + column, mask=inside, other=0.0).to(tl.float32)
    x = tl.exp(x - tl.max(x, 0))
    tl.store(out + row * keys + column, (x / tl.sum(x, 0)).to(out.dtype.element_ty), mask=inside)


def softmax(scores: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Probabilities of the scores' type, [batch, heads, new, keys], computed in float32."""
    scores = scores.contiguous()
    batch, heads, new, keys = scores.shape
    out = torch.empty_like(scores)
    strides: tuple[int, ...] = (0, 0, 0)
    if bias is not None:
        strides = bias.expand(batch, heads, new, keys).stride()
        bias = bias if strides[3] == 1 or keys == 1 else bias.contiguous()
        strides = bias.expand(batch, heads, new, keys).stride()[:3]
    width = triton.next_power_of_2(keys)
    softmax_of_row[(batch * heads * new,)](
        scores, scores if bias is None else bias, out, scale, heads, new, keys, *strides,
        masked=bias is not None, width=width, num_warps=min(max(width // 512, 1), 16),
    )  # fmt: skip
    return out
