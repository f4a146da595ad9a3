"""Matrices in the order in which the native step reads them, and back.

Decode at batch 1 reads every weight once per token, so bytes are time: bfloat16 halves them, int8 takes 34 bytes for 32
weights and int4 takes 20. A matrix [rows, columns] becomes panels of 16 rows that are read front to back; decode.c has
the layouts. What is lost:

    float32    nothing
    bfloat16   nothing, where the weights are bfloat16
    int8       symmetric, a half-precision scale for 32 columns of a row: a Q8_0 tensor of a GGUF comes back as it was
    int4       16 levels from a minimum, both half precision, for 32 columns: a Q4_1 tensor comes back as it was

Why groups of 32: on SmolLM2-135M, int8 with one scale for 32, 64 and 128 columns and for a whole row is 0.0014, 0.0026,
0.0029 and 0.0047 nats from float32 (mean divergence over a paragraph), for 6 % of bytes between the first and the last.
Its head is worth 8 bits: in int4 it is 0.06 nats away, where int4 layers, which were Q4_1, are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch

Format = Literal["float32", "bfloat16", "int8", "int4"]
FORMATS: tuple[Format, ...] = get_args(Format)
LANES = 16
"""Rows of a panel."""
GROUP = 32
"""Columns that share a scale."""
COLUMN_MULTIPLE: dict[Format, int] = {"float32": 4, "bfloat16": 4, "int8": 2 * GROUP, "int4": GROUP}
ROWS_AT_A_TIME = 4096
"""Packing works in float32 copies of this many rows, so that a large head is not held several times."""


@dataclass(frozen=True)
class Packed:
    """A matrix as the step reads it."""

    format: Format
    rows: int
    columns: int
    data: torch.Tensor
    """uint8 [panels, bytes of a panel], contiguous, aligned to 64 bytes."""

    @property
    def padded_columns(self) -> int:
        return _round_up(self.columns, COLUMN_MULTIPLE[self.format])


def packed_bytes(rows: int, columns: int, format: Format) -> int:
    """Bytes of a packed matrix, its padding included."""
    values = _round_up(rows, LANES) * _round_up(columns, COLUMN_MULTIPLE[format])
    groups = values // GROUP
    return {"float32": 4 * values, "bfloat16": 2 * values, "int8": 34 * groups, "int4": 20 * groups}[format]


def pack(weight: torch.Tensor, format: Format, into: torch.Tensor | None = None) -> Packed:
    """`weight` [rows, columns] in panels; written to `into`, uint8 of `packed_bytes`, where that is given."""
    import torch

    rows, columns = weight.shape
    panels = _round_up(rows, LANES) // LANES
    size = packed_bytes(rows, columns, format)
    data = (torch.empty(size, dtype=torch.uint8) if into is None else into).view(panels, size // panels)
    for begin in range(0, rows, ROWS_AT_A_TIME):
        part = _PACK[format](weight[begin : begin + ROWS_AT_A_TIME])
        data[begin // LANES : begin // LANES + len(part)] = part
    return Packed(format, rows, columns, data)


def unpack(packed: Packed) -> torch.Tensor:
    """The matrix that the step computes with, float32 [rows, columns]."""
    import torch

    some_panels = torch.split(packed.data, ROWS_AT_A_TIME // LANES)
    parts = [_UNPACK[packed.format](part, packed.padded_columns) for part in some_panels]
    return torch.cat(parts)[: packed.rows, : packed.columns].contiguous()


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _padded(weight: torch.Tensor, multiple: int, mode: str = "constant") -> torch.Tensor:
    """Rows and columns up to whole panels; columns with zeros, or with the last one, which adds no new extreme."""
    from torch.nn import functional

    rows, columns = weight.shape
    wide = functional.pad(weight[None], (0, _round_up(columns, multiple) - columns), mode=mode)[0]
    return functional.pad(wide, (0, 0, 0, _round_up(rows, LANES) - rows))


def _bytes(values: torch.Tensor) -> torch.Tensor:
    """[panels, ...] -> uint8 [panels, bytes of a panel]."""
    import torch

    return values.contiguous().view(torch.uint8).flatten(1)


def _pack_float32(weight: torch.Tensor) -> torch.Tensor:
    wide = _padded(weight.float(), 4)
    return _bytes(wide.view(-1, LANES, wide.shape[1]).transpose(1, 2))  # [panels, columns, 16]


def _unpack_float32(data: torch.Tensor, columns: int) -> torch.Tensor:
    import torch

    return data.view(torch.float32).view(-1, columns, LANES).transpose(1, 2).reshape(-1, columns)


def _pack_bfloat16(weight: torch.Tensor) -> torch.Tensor:
    wide = _padded(weight.float(), 4).bfloat16()
    return _bytes(wide.view(-1, LANES, wide.shape[1] // 2, 2).transpose(1, 2))  # [panels, column pairs, 16, 2]


def _unpack_bfloat16(data: torch.Tensor, columns: int) -> torch.Tensor:
    import torch

    pairs = data.view(torch.bfloat16).view(-1, columns // 2, LANES, 2)
    return pairs.transpose(1, 2).reshape(-1, columns).float()


def _pack_int8(weight: torch.Tensor) -> torch.Tensor:
    import torch

    wide = _padded(weight.float(), 2 * GROUP)
    groups = wide.view(len(wide), -1, GROUP)
    scale = (groups.abs().amax(-1, keepdim=True) / 127).half()
    codes = (groups / _nonzero(scale)).round().clamp(-127, 127) + 128
    blocks = wide.shape[1] // (2 * GROUP)
    lines = codes.to(torch.uint8).view(-1, LANES, blocks, 2 * GROUP // 4, 4).permute(0, 2, 3, 1, 4)
    scales = scale.view(-1, LANES, blocks, 2).permute(0, 2, 3, 1)  # [panels, blocks, 2, 16]
    block = [scales.contiguous().view(torch.uint8).flatten(2), lines.flatten(2)]
    return torch.cat(block, 2).flatten(1)


def _unpack_int8(data: torch.Tensor, columns: int) -> torch.Tensor:
    import torch

    blocks = columns // (2 * GROUP)
    block = data.view(len(data), blocks, -1)
    scale = block[..., :64].contiguous().view(torch.float16).view(-1, blocks, 2, LANES).permute(0, 3, 1, 2)
    codes = block[..., 64:].reshape(-1, blocks, 2 * GROUP // 4, LANES, 4).permute(0, 3, 1, 2, 4)
    values = codes.reshape(-1, LANES, blocks, 2, GROUP).float() - 128
    return (values * scale.float()[..., None]).reshape(-1, columns)


def _pack_int4(weight: torch.Tensor) -> torch.Tensor:
    import torch

    wide = _padded(weight.float(), GROUP, mode="replicate")
    groups = wide.view(len(wide), -1, GROUP)
    minimum = groups.amin(-1, keepdim=True).half()
    scale = ((groups.amax(-1, keepdim=True) - minimum.float()) / 15).clamp(min=0).half()
    codes = ((groups - minimum.float()) / _nonzero(scale)).round().clamp(0, 15).to(torch.uint8)
    blocks = wide.shape[1] // GROUP
    eights = codes.view(-1, LANES, blocks, GROUP // 8, 8).permute(0, 2, 3, 1, 4)
    lines = eights[..., :4] | eights[..., 4:] << 4  # [panels, blocks, 4 lines, 16, 4]
    numbers = [part.view(-1, LANES, blocks).transpose(1, 2) for part in (scale, minimum)]
    heads = [part.contiguous().view(torch.uint8) for part in numbers]  # [panels, blocks, 32]
    return torch.cat([*heads, lines.flatten(2)], 2).flatten(1)


def _unpack_int4(data: torch.Tensor, columns: int) -> torch.Tensor:
    import torch

    blocks = columns // GROUP
    block = data.view(len(data), blocks, -1)
    numbers = block[..., :64].contiguous().view(torch.float16).view(-1, blocks, 2, LANES).float()
    scale, minimum = numbers.permute(2, 0, 3, 1)[..., None]
    lines = block[..., 64:].reshape(-1, blocks, GROUP // 8, LANES, 4)
    codes = torch.cat([lines & 15, lines >> 4], -1).permute(0, 3, 1, 2, 4).reshape(-1, LANES, blocks, GROUP)
    values: torch.Tensor = codes.float() * scale + minimum
    return values.reshape(-1, columns)


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    """Where all of a group is one value the scale is 0, and its codes may be any number."""
    return scale.float().where(scale > 0, 1.0)


_PACK = {"float32": _pack_float32, "bfloat16": _pack_bfloat16, "int8": _pack_int8, "int4": _pack_int4}
_UNPACK = {"float32": _unpack_float32, "bfloat16": _unpack_bfloat16, "int8": _unpack_int8, "int4": _unpack_int4}
