"""PyTorch's record of the operators, regions and kernels that ran.

`torch.profiler.profile` imports the whole compiler on its way, seconds in a fresh process; what it wraps does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def recorded(device: str, shapes: bool = False) -> Iterator[Any]:
    """Records what runs while it lasts, on the host and on `device`; with `shapes`, of every operator's inputs too.

    Yields the `torch.autograd.profiler.profile`, to be read afterwards.
    """
    from torch.autograd.profiler import profile

    with profile(use_device="cuda" if device == "cuda" else None, record_shapes=shapes, use_kineto=True) as profiler:
        yield profiler
