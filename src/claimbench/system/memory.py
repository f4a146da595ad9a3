"""What a process holds: resident memory now and at its peak, and the device's allocator; all in bytes."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from claimbench.schema.cell import Device


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def reset_peak() -> None:
    """Make the kernel's high-water mark start anew, so that the peak is of generation and not of loading."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peaks(device: Device) -> dict[str, int]:
    """`rss_peak`, and on a GPU what torch's allocator and the driver say of this process's current device."""
    found = {"rss_peak": _peak_resident()}
    if device == "cuda":
        import torch

        cuda: Any = torch.cuda
        if cuda.is_initialized():
            free, total = cuda.mem_get_info()
            found["device_allocated_peak"] = cuda.max_memory_allocated()
            found["device_reserved_peak"] = cuda.max_memory_reserved()
            found["device_used"] = total - free
    return found


def total(records: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum over processes, by name. Pages that they share (a mapped file) count once in each."""
    sums: dict[str, int] = {}
    for record in records:
        for name, size in record.items():
            sums[name] = sums.get(name, 0) + size
    return sums


def peak_of(process: int | str) -> int:
    """The high-water mark of a process's resident memory; 0 where the kernel does not tell."""
    try:
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _peak_resident() -> int:
    return peak_of("self") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
