"""What any proof is made with: the profiler's record, the compiler's own counts, and the words when it does not hold.

`torch.profiler.profile` imports the whole compiler on its way, seconds in a fresh process; what it wraps does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from claimbench.errors import WrongOutput

if TYPE_CHECKING:
    from torch import Tensor


COMPILED_REGION = "Torch-Compiled Region"
GRAPH_LAUNCH = "cudaGraphLaunch"

Findings = dict[str, object]
"""What a proof found, by name: each is a value of JSON."""


@dataclass(frozen=True)
class Compiled:
    """The compiler's work so far."""

    graphs: int = 0
    recompiles: int = 0
    """Compilations of code that was compiled before, for other shapes or values."""
    graph_breaks: int = 0


def expect(technique: str, held: bool, expected: str, seen: object) -> None:
    """
    Raises:
        WrongOutput: the proof of `technique` did not hold.
    """
    if not held:
        raise WrongOutput(f"{technique} did not run: expected {expected}, saw {seen}")


class Compilations:
    """Counts what the compiler does from now on."""

    def __init__(self) -> None:
        from torch._dynamo.utils import clear_compilation_metrics, set_compilation_metrics_limit

        set_compilation_metrics_limit(4096)
        clear_compilation_metrics()
        self.before = self._totals()

    @staticmethod
    def _totals() -> Compiled:
        from torch._dynamo.utils import counters, get_compilation_metrics

        frames = [metrics for metrics in get_compilation_metrics() if metrics.co_name]
        return Compiled(
            graphs=counters["stats"]["unique_graphs"],
            recompiles=sum(1 for frame in frames if frame.recompile_reason),
            graph_breaks=sum(counters["graph_break"].values()),
        )

    def so_far(self) -> Compiled:
        now = self._totals()
        return Compiled(
            graphs=now.graphs - self.before.graphs,
            recompiles=now.recompiles - self.before.recompiles,
            graph_breaks=now.graph_breaks - self.before.graph_breaks,
        )


def check_finite(logits: Tensor) -> None:
    """
    Raises:
        WrongOutput: the model emits NaN or infinity.
    """
    expect_finite(logits.numel(), int((~logits.isfinite()).sum()))


def expect_finite(numbers: int, bad: int) -> None:
    """Judge `numbers` logits of which `bad` are not finite; raises as `check_finite` does."""
    if bad or not numbers:
        raise WrongOutput(f"expected finite logits, but {bad} of {numbers} are NaN or infinite")


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
