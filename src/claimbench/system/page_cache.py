"""Whether a checkpoint's bytes lie in memory already when a block begins to load it: dropped, read ahead, or as it is.

The second load of a file on the same machine comes from the kernel's page cache, ten times as fast as from many disks.
Dropping a file's pages needs no root (`posix_fadvise`); what is left of them is looked up (`mincore`), not believed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import NamedTuple

from claimbench.errors import Unavailable
from claimbench.schema.cell import PageCache

AT_MOST_LEFT = 0.02
AT_LEAST_THERE = 0.98
CHUNK_BYTES = 1 << 24


class Cached(NamedTuple):
    bytes: int
    cached_bytes: int

    @property
    def share(self) -> float:
        return self.cached_bytes / self.bytes if self.bytes else 0.0


def prepare(files: list[Path], wanted: PageCache) -> Cached:
    """Bring the page cache of `files` into the state that a cell asks for; how much of them it holds then.

    Raises:
        Unavailable: the kernel or the file system does not do it.
    """
    for path in files:
        if wanted == "cold":
            drop(path)
        elif wanted == "warm":
            read(path)
    found = cached(files)
    if wanted == "cold" and found.share > AT_MOST_LEFT:
        raise Unavailable(
            f"a cold page cache: {found.share:.0%} of the checkpoint stays in memory, on a file system that is one or "
            "because another process holds it"
        )
    if wanted == "warm" and found.share < AT_LEAST_THERE:
        raise Unavailable(f"a warm page cache: only {found.share:.0%} of the checkpoint fits into memory")
    return found


def drop(path: Path) -> None:
    """Pages that wait to be written cannot be dropped, so they are written first."""
    with path.open("rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> None:
    buffer = bytearray(CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def cached(files: list[Path]) -> Cached:
    sizes = [path.stat().st_size for path in files]
    return Cached(sum(sizes), sum(_cached_bytes(path, size) for path, size in zip(files, sizes, strict=True)))


def _cached_bytes(path: Path, size: int) -> int:
    if not size:
        return 0
    pages = -(-size // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        try:
            if libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), states):
                raise OSError(ctypes.get_errno(), "mincore")
        finally:
            del start
    return min(size, sum(state & 1 for state in bytes(states)) * mmap.PAGESIZE)
