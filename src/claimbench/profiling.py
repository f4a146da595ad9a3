"""PyTorch's record of the operators, regions and kernels that ran.

`torch.profiler.profile` imports the whole compiler on its way, seconds in a fresh process; what it wraps does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

UTILITIES = frozenset(
    {
        "[memory]", "[OutOfMemory]", "profiler::_record_function_enter", "profiler::_record_function_enter_new",
        "profiler::_record_function_exit", "aten::is_leaf", "aten::output_nr", "aten::_version",
    }
)  # fmt: skip
"""Events that PyTorch's own tables leave out."""


class Event(NamedTuple):
    name: str
    """Of an operator, a compiled region or a launch."""
    shapes: tuple[tuple[int, ...], ...]
    """Of its tensor inputs, where they were recorded."""


@contextmanager
def recorded(device: str, shapes: bool = False) -> Iterator[Any]:
    """Records what runs while it lasts, on the host and on `device`; with `shapes`, of every operator's inputs too.

    Yields the `torch.autograd.profiler.profile`, to be read afterwards.
    """
    from torch.autograd.profiler import profile

    with profile(use_device="cuda" if device == "cuda" else None, record_shapes=shapes, use_kineto=True) as profiler:
        yield profiler


def events_of(profiler: Any) -> list[Event]:
    """What was recorded, in order; from the raw record, since the profiler's own list takes ten times as long."""
    import torch

    raw = [event for event in profiler.kineto_results.events() if event.name() not in UTILITIES]
    raw = sorted((event for event in raw if not event.is_hidden_event()), key=lambda event: event.start_ns())
    names = {name: str(torch._C._demangle(name)) for name in {event.name() for event in raw}}
    return [Event(names[event.name()], tuple(tuple(shape) for shape in event.shapes() if shape)) for event in raw]
