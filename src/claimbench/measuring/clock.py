"""The clock: one generation, timed from outside the backend as its steps appear.

On a CPU a monotonic host time is read as each step is yielded. On a GPU an event is recorded on the stream instead, and
the device is waited for once, at the end, so that the clock adds no synchronisation of its own.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from claimbench.backends import Column
from claimbench.errors import WrongOutput
from claimbench.schema.cell import Device, Workload
from claimbench.schema.result import Sample

GPU_THROTTLED = 0x8 | 0x20 | 0x40 | 0x80  # hardware slow-down, thermal (software, hardware), power brake


def time_generation(steps: Iterator[Column], workload: Workload, device: Device) -> tuple[Sample, list[list[int]]]:
    """Run `steps` to their end; the sample and the new token ids, one list a row.

    Raises:
        WrongOutput: a row has not exactly `workload.new_tokens` tokens.
    """
    sample_clock = _device_clock if device == "cuda" else _host_clock
    wall_ns, step_ns, columns = sample_clock(steps)
    rows = rows_of(columns)
    if len(rows) != workload.batch or any(len(row) != workload.new_tokens for row in rows):
        got = f"{len(rows)} rows of {sorted({len(row) for row in rows})} tokens"
        raise WrongOutput(f"expected {workload.batch} rows of exactly {workload.new_tokens} new tokens, got {got}")
    sample = Sample(
        wall_ns=wall_ns,
        step_ns=tuple(step_ns),
        step_tokens=tuple(len(column[0]) for column in columns),
        tokens_sha256=hash_tokens(rows),
        clock="device" if device == "cuda" else "host",
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


def _host_clock(steps: Iterator[Column]) -> tuple[int, list[int], list[Column]]:
    now = time.perf_counter_ns
    stamps, columns = array("q"), []
    start = now()
    for column in steps:
        stamps.append(now())
        columns.append(column)
    wall_ns = now() - start
    return wall_ns, [after - before for before, after in zip([start, *stamps], stamps, strict=False)], columns


def _device_clock(steps: Iterator[Column]) -> tuple[int, list[int], list[Column]]:
    import torch

    cuda: Any = torch.cuda

    def event() -> Any:
        return cuda.Event(enable_timing=True)

    events, columns = [event()], []
    torch.cuda.synchronize()
    start = time.perf_counter_ns()
    events[0].record()
    for column in steps:
        stamp = event()
        stamp.record()
        events.append(stamp)
        columns.append(column)
    torch.cuda.synchronize()
    wall_ns = time.perf_counter_ns() - start
    return wall_ns, [round(before.elapsed_time(after) * 1e6) for before, after in pairwise(events)], columns
