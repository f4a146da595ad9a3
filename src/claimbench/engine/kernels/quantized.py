"""Matrices of 8-bit and 4-bit weights: rounded in groups, widened again where they are multiplied.

The groups and their rounding are those of a GGUF's Q8_0 and Q4_1 tensors (32 columns of a row share their numbers, in
half precision), so that a model which was stored that way comes back as it was:

    int8   value = scale * code,             -127 <= code <= 127:  8.5 bits a weight
    int4   value = minimum + scale * code,      0 <= code <= 15:   5 bits a weight
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from claimbench.engine.model.shards import Affine
from claimbench.errors import Unavailable

GROUP = 32


class GroupLinear(nn.Module):
    """y = x W^T + b with W in groups. At one row a step it is a matrix-vector product that reads codes alone."""

    codes: Tensor
    scale: Tensor
    minimum: Tensor | None
    bias: Tensor | None

    def __init__(self, affine: Affine, bits: int, compiled: bool) -> None:
        """
        Raises:
            Unavailable: the rows of the matrix are not whole groups.
        """
        super().__init__()
        rows, columns = affine.weight.shape
        if columns % GROUP:
            raise Unavailable(f"a matrix of {columns} columns: groups of {GROUP} do not divide it")
        groups = affine.weight.float().view(rows, columns // GROUP, GROUP)
        codes, scale, minimum = _int8(groups) if bits == 8 else _int4(groups)
        self.register_buffer("codes", codes)  # [rows, groups, 32], or [rows, groups, 16] with two codes a byte
        self.register_buffer("scale", scale)  # [rows, groups, 1]
        self.register_buffer("minimum", minimum)
        self.register_buffer("bias", affine.bias)
        self.multiply = _compiled_product() if compiled else product

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[-1]:
            y = self.multiply(x.reshape(-1), self.codes, self.scale, self.minimum).view(*x.shape[:-1], -1)
            return y if self.bias is None else y + self.bias
        return functional.linear(x, self.dequantized(x.dtype), self.bias)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The matrix that is multiplied with, [rows, columns]."""
        return widen(self.codes, self.scale, self.minimum, dtype).flatten(1)


def widen(codes: Tensor, scale: Tensor, minimum: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Codes and their groups' numbers -> values [rows, groups, 32]."""
    if minimum is None:
        return codes.to(dtype) * scale.to(dtype)
    halves = torch.cat((codes & 15, codes >> 4), -1)
    return halves.to(dtype) * scale.to(dtype) + minimum.to(dtype)


def product(x: Tensor, codes: Tensor, scale: Tensor, minimum: Tensor | None) -> Tensor:
    """x [columns] -> y [rows], as a sum over products: a compiler makes one loop of it, which reads codes alone."""
    groups = x.float().view(1, -1, GROUP)
    if minimum is None:
        summed = (codes.float() * groups).sum(-1, keepdim=True) * scale.float()
    else:
        low, high = torch.split(groups, GROUP // 2, -1)
        coded = ((codes & 15).float() * low + (codes >> 4).float() * high).sum(-1, keepdim=True)
        summed = coded * scale.float() + groups.sum(-1, keepdim=True) * minimum.float()
    return summed.sum((1, 2)).to(x.dtype)


_COMPILED: list[Callable[..., Tensor]] = []


def _compiled_product() -> Callable[..., Tensor]:
    """One compilation for matrices of every size."""
    if not _COMPILED:
        _COMPILED.append(torch.compile(product, dynamic=True))
    return _COMPILED[0]


def _int8(groups: Tensor) -> tuple[Tensor, Tensor, None]:
    scale = (groups.abs().amax(-1, keepdim=True) / 127).half()
    return (groups / _nonzero(scale)).round().clamp(-127, 127).to(torch.int8), scale, None


def _int4(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    minimum = groups.amin(-1, keepdim=True).half()
    scale = ((groups.amax(-1, keepdim=True) - minimum.float()) / 15).clamp(min=0).half()
    codes = ((groups - minimum.float()) / _nonzero(scale)).round().clamp(0, 15).to(torch.uint8)
    low, high = torch.split(codes, GROUP // 2, -1)
    return low | high << 4, scale, minimum


def _nonzero(scale: Tensor) -> Tensor:
    """A group of one value has scale 0, and its codes may be any number."""
    return scale.float().where(scale > 0, 1.0)
