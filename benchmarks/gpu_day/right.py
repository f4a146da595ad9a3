"""Is every path right? The device and the clock, kernels, the engine's techniques, Transformers' matrix, blocks."""

from __future__ import annotations

from gpu_day import right_blocks, right_cells, right_device, right_kernels
from gpu_day.stage import Check, Context


def checks(context: Context) -> list[Check]:
    """What is quick and what all else rests on comes first."""
    return [
        *right_device.checks(context),
        *right_kernels.checks(context),
        *right_blocks.checks(context),
        *right_cells.checks(context),
    ]
