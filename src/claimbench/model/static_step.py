"""A decode step whose shapes never change: for code that is compiled once, and for graphs that are captured once.

Where the new tokens stand is a number on the device instead of one in Python, so that nothing is specialised to it.
Keys and values are written by index into tensors that stay where they are, and attention goes over all of the slots
that it is given, with those that hold nothing yet masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_open = False


@contextmanager
def in_the_open() -> Iterator[None]:
    """While it lasts, compiled code runs as the Python that it was made from, and no graph is replayed."""
    import torch

    global _open
    before, _open = _open, True
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _open = before
