"""The clock: one generation, timed from outside the backend as its steps appear.

Which clock it is follows from what a step yields. For token ids, and for a CPU's tensors, a monotonic host time is read
as each step is yielded. For a GPU's tensors an event is recorded on the stream instead, and the device is waited for
once, at the end, so that the clock adds no synchronisation of its own. A server's answers are timed by the host,
whatever device it computes on: this process has no part in that device's work.

A generation may stand still between two steps, while others have their turn (`Waits`): no step and no wall time holds
that. On a GPU the device has done what it was asked before it waits.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from claimbench.backends import Column
from claimbench.errors import WrongOutput
from claimbench.schema.cell import Workload
from claimbench.schema.result import Sample

Clocked = tuple[int, list[int], list[Column], list[int]]
"""Nanoseconds of the generation and of each step, what the steps made, and before which of them it waited."""


class Waits:
    """Where a generation stands still: after the step with each of `marks`, counted in new tokens of a row."""

    def __init__(self, marks: Iterable[int], wait: Callable[[], None]) -> None:
        self.marks, self.wait = deque(marks), wait
        self.tokens = 0

    def is_due(self, column: Column) -> bool:
        """Whether the step that made `column` [batch, n] has reached a mark."""
        self.tokens += len(column[0])
        return bool(self.marks) and self.tokens >= self.marks[0]

    def stand(self) -> None:
        """Wait, once for each mark that was reached: a step that speculates may reach several."""
        while self.marks and self.tokens >= self.marks[0]:
            self.marks.popleft()
            self.wait()


def time_generation(
    steps: Iterator[Column], workload: Workload, waits: Waits | None = None
) -> tuple[Sample, list[list[int]]]:
    """Run `steps` to their end; the sample and the new token ids, one list a row.

    Raises:
        WrongOutput: a row has not exactly `workload.new_tokens` tokens.
    """
    begin = _event_on_device()
    start = time.perf_counter_ns()
    first = next(steps, None)
    arrived = time.perf_counter_ns()
    on_device = begin is not None and bool(getattr(first, "is_cuda", False))
    rest = steps if first is None else itertools.chain([first], steps)
    clocked = _device_clock(rest, waits, start, begin) if on_device else _host_clock(rest, waits, start, arrived)
    wall_ns, step_ns, columns, resumed = clocked
    rows = rows_of(columns)
    if len(rows) != workload.batch or any(len(row) != workload.new_tokens for row in rows):
        got = f"{len(rows)} rows of {sorted({len(row) for row in rows})} tokens"
        raise WrongOutput(f"expected {workload.batch} rows of exactly {workload.new_tokens} new tokens, got {got}")
    sample = Sample(
        wall_ns=wall_ns,
        step_ns=tuple(step_ns),
        step_tokens=tuple(len(column[0]) for column in columns),
        tokens_sha256=hash_tokens(rows),
        clock="device" if on_device else "host",
        resumed=tuple(step for step in resumed if step < len(step_ns)),
    )
    return sample, rows


def rows_of(columns: list[Column]) -> list[list[int]]:
    """The token ids of each row, from the columns [batch, n] of the steps."""
    blocks: list[list[list[int]]] = [column if isinstance(column, list) else column.tolist() for column in columns]
    return [[token for block in blocks for token in block[row]] for row in range(len(blocks[0]) if blocks else 0)]


def hash_tokens(rows: list[list[int]]) -> str:
    """sha256 over all rows' ids as 64-bit little-endian integers, with each row's length before it."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(array("q", [len(row), *row]).tobytes())
    return hasher.hexdigest()


def _event_on_device() -> Any:
    """An event that is recorded now, where this process has a GPU open and idle; None elsewhere: none is opened."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    torch.cuda.synchronize()
    return _recorded(torch.cuda)


def _recorded(cuda: Any) -> Any:
    event = cuda.Event(enable_timing=True)
    event.record()
    return event


def _host_clock(steps: Iterator[Column], waits: Waits | None, start: int, arrived: int) -> Clocked:
    """`arrived` is when the first of `steps` was there."""
    now = time.perf_counter_ns
    stamps, columns = array("q"), list[Column]()
    resumed: dict[int, int] = {}
    for column in steps:
        stamps.append(now() if columns else arrived)
        columns.append(column)
        if waits and waits.is_due(column):
            waits.stand()
            resumed[len(columns)] = now()
    end = now()
    begins = [start, *stamps]
    waited_ns = sum(at - begins[step] for step, at in resumed.items())
    for step, at in resumed.items():
        begins[step] = at
    step_ns = [after - begin for begin, after in zip(begins, stamps, strict=False)]
    return end - start - waited_ns, step_ns, columns, list(resumed)


def _device_clock(steps: Iterator[Column], waits: Waits | None, start: int, begin: Any) -> Clocked:
    """`begin` was recorded on the stream before the first of `steps` was asked for."""
    import torch

    cuda: Any = torch.cuda
    begins, ends, columns = [begin], [], []
    resumed: list[int] = []
    waited_ns = 0
    for column in steps:
        stamp = _recorded(cuda)
        ends.append(stamp)
        columns.append(column)
        if waits and waits.is_due(column):
            cuda.synchronize()
            stands = time.perf_counter_ns()
            waits.stand()
            waited_ns += time.perf_counter_ns() - stands
            resumed.append(len(columns))
            stamp = _recorded(cuda)
        begins.append(stamp)
    cuda.synchronize()
    wall_ns = time.perf_counter_ns() - start - waited_ns
    step_ns = [round(begin.elapsed_time(end) * 1e6) for begin, end in zip(begins, ends, strict=False)]
    return wall_ns, step_ns, columns, resumed
