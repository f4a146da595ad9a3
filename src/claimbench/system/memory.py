"""What a process holds: resident memory now and at its peak, and the device's allocator; all in bytes."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from claimbench.schema.cell import Device
from claimbench.system.unread import Readings


def resident() -> int:
    """0 where the kernel does not tell."""
    return Readings().read("rss", lambda: int(psutil.Process().memory_info().rss)) or 0


def reset_peak() -> None:
    """Make the high-water marks of kernel and allocator start anew: peaks are of generation, and not of loading."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    cuda = _open_cuda()
    if cuda is not None:
        for device in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(device)


def peaks(device: Device) -> dict[str, int]:
    """`rss_peak`, and on GPUs what torch's allocator and the driver say of those that this process has tensors on.

    A process that has none, as a server's client, says nothing of them.
    """
    found = {"rss_peak": _peak_resident()}
    cuda = _open_cuda() if device == "cuda" else None
    if cuda is not None:
        used = [number for number in range(cuda.device_count()) if cuda.max_memory_reserved(number)]
        free_and_total = [cuda.mem_get_info(number) for number in used]
        if used:
            found["device_allocated_peak"] = sum(map(cuda.max_memory_allocated, used))
            found["device_reserved_peak"] = sum(map(cuda.max_memory_reserved, used))
            found["device_used"] = sum(total - free for free, total in free_and_total)
    return found


def _open_cuda() -> Any:
    """torch.cuda where this process has opened a GPU; None elsewhere, where asking would open one."""
    torch: Any = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


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
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _peak_resident() -> int:
    return peak_of("self") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
