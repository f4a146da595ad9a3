"""A matrix and a norm as the decode step's kernels read them, whatever holds them, and how a grid covers one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from claimbench.engine.kernels.float8 import Float8Linear
from claimbench.engine.kernels.quantized import GROUP, GroupLinear
from claimbench.engine.model.parts import PlainLinear
from claimbench.errors import Unavailable

Form = Literal["plain", "int8", "int4", "fp8"]
WARPS = 4
COLUMNS: dict[Form, int] = {"plain": 1024, "fp8": 2048, "int8": 2048, "int4": 4096}
"""In a tile at one row of x, plain ones in halves: 2 KiB of each row, 64 bytes a thread in flight."""
WAVES = 2
"""Programs for each processor, below which columns are split."""
MOST_SPLITS = 8


@dataclass(frozen=True, eq=False)
class Matrix:
    """W [rows, columns] of y = x W^T + b."""

    form: Form
    codes: Tensor
    scale: Tensor | None
    minimum: Tensor | None
    bias: Tensor | None
    rows: int
    columns: int

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.codes, self.scale, self.minimum, self.bias


def matrix_of(module: object) -> Matrix:
    """
    Raises:
        Unavailable: the kernels do not know how the module keeps its matrix.
    """
    while isinstance(getattr(module, "dense", None), nn.Module):  # an activation behind the matrix
        module = module.dense  # type: ignore[attr-defined]
    if type(module) is PlainLinear:
        weight = module.weight.detach().contiguous()
        bias = None if module.bias is None else module.bias.detach()
        return Matrix("plain", weight, None, None, bias, *weight.shape)
    if isinstance(module, GroupLinear):
        rows, groups = module.codes.shape[:2]
        form: Form = "int8" if module.minimum is None else "int4"
        return Matrix(form, module.codes, module.scale, module.minimum, module.bias, rows, groups * GROUP)
    if isinstance(module, Float8Linear):
        return Matrix("fp8", module.codes.view(torch.uint8), module.scale, None, module.bias, *module.codes.shape)
    raise Unavailable(f"the kernels do not know how {type(module).__name__} keeps a matrix")


@dataclass(frozen=True, eq=False)
class NormWeights:
    weight: Tensor
    bias: Tensor | None


def norm_of(module: Callable[[Tensor], Tensor] | None) -> NormWeights | None:
    """
    Raises:
        Unavailable: the kernels do not know how the module keeps its weights.
    """
    if module is None:
        return None
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor):
        raise Unavailable(f"the kernels do not know how {type(module).__name__} keeps a norm")
    return NormWeights(weight.detach().contiguous(), None if bias is None else bias.detach().contiguous())


def power_of_two(number: int) -> int:
    """The least that is not below `number`."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class Cover:
    """How programs share a matrix."""

    blocks: int
    """Of rows."""
    splits: int
    """Of columns."""
    per_split: int
    tile: int
    """Columns that a program takes at a time."""


def cover_of(matrix: Matrix, batch: int, paired: bool, processors: int, rows: int) -> Cover:
    """Enough programs for `processors`, of `rows` each, and tiles that fit in registers at `batch` rows of x."""
    halves = 2 if paired else 1
    blocks = -(-matrix.rows // halves // rows)
    wanted = min(MOST_SPLITS, -(-WAVES * processors // blocks))
    tile = COLUMNS[matrix.form]
    if matrix.form == "plain":
        tile = tile * 2 // matrix.codes.element_size()
    tile //= power_of_two(batch) * halves
    least = 32 * (2 if matrix.form == "int4" else 1)
    while tile > least and tile >= 2 * matrix.columns // wanted:
        tile //= 2
    tiles = -(-matrix.columns // tile)
    per_split = -(-tiles // min(wanted, tiles)) * tile
    return Cover(blocks, -(-matrix.columns // per_split), per_split, tile)
