"""Threads that compute, each on a core of its own.

A process that waits for its turn wakes on whichever core is free, and the kernel may put its second thread beside the
first: a step then takes up to twice as long, until the kernel moves one of them, which can be later than the turn ends.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from claimbench.system import machine

THREADS = Path("/proc/self/task")
COMPUTES_S = 0.02
"""CPU time by which a thread that computes is known from those that only start something."""


def cpu_ns() -> dict[int, int]:
    """CPU time of each thread of this process; none where the kernel does not say."""
    found = {}
    with suppress(OSError):
        for thread in THREADS.iterdir():
            with suppress(OSError, ValueError, IndexError):
                found[int(thread.name)] = int((thread / "schedstat").read_text(encoding="ascii").split()[0])
    return found


def spread(before: dict[int, int]) -> dict[int, int]:
    """Bind every thread that has computed since `before` to a core of its own; which, by thread.

    None where there is only one, nor where a quota has the cores shared with whoever else is on them. They are the
    first ones, so those of several processes in turn are the same.
    """
    if not hasattr(os, "sched_setaffinity") or machine.is_quota_bound():
        return {}
    spent = {thread: now - before.get(thread, 0) for thread, now in cpu_ns().items()}
    computing = sorted((each for each in spent if spent[each] > COMPUTES_S * 1e9), key=spent.__getitem__, reverse=True)
    cores = sorted(os.sched_getaffinity(0))
    bound = dict(zip(sorted(computing[: len(cores)]), cores, strict=False))
    if len(bound) < 2:
        return {}
    for thread, core in bound.items():
        with suppress(OSError):
            os.sched_setaffinity(thread, {core})
    return bound


def release(bound: dict[int, int], cores: set[int]) -> None:
    """Let threads that were bound run on all of `cores` again: those that the process had before."""
    for thread in bound:
        with suppress(OSError):
            os.sched_setaffinity(thread, cores)
