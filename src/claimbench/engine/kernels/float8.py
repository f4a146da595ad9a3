"""Matrices of 8-bit floating-point weights (E4M3), with a scale for each row; widened where they are multiplied.

    fp8    value = scale * code, where code is a number of E4M3, of 3 bits behind the point:  8 bits a weight

The largest value of a row becomes 448, the largest number that the type has. Small weights keep their precision, which
a group's common scale takes from 8-bit integers; large ones lose half of a 16th, where integers lose a 254th of the
largest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from claimbench.engine.model.shards import Affine

LARGEST = 448.0


class Float8Linear(nn.Module):
    """y = x W^T + b with W as E4M3."""

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, affine: Affine, compiled: bool) -> None:
        super().__init__()
        wide = affine.weight.float()
        scale = wide.abs().amax(1) / LARGEST
        scale = scale.where(scale > 0, 1.0)
        self.register_buffer("codes", (wide / scale[:, None]).to(torch.float8_e4m3fn))  # [rows, columns]
        self.register_buffer("scale", scale)  # float32 [rows]
        self.register_buffer("bias", affine.bias)
        self.multiply = _compiled_product() if compiled else product

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1]:
            y = self.multiply(x.reshape(-1), self.codes, self.scale).view(*x.shape[:-1], -1)
            return y if self.bias is None else y + self.bias
        return functional.linear(x, self.dequantized(x.dtype), self.bias)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The matrix that is multiplied with, [rows, columns]."""
        return (self.codes.float() * self.scale[:, None]).to(dtype)


def product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x [columns] -> y [rows], as a sum over products: a compiler makes one loop of it, which reads codes alone."""
    return ((codes.float() * x.float()).sum(-1) * scale).to(x.dtype)


_COMPILED: list[Callable[..., Tensor]] = []


def _compiled_product() -> Callable[..., Tensor]:
    """One compilation for matrices of every size."""
    if not _COMPILED:
        _COMPILED.append(torch.compile(product, dynamic=True))
    return _COMPILED[0]
