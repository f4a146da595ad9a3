"""Reads a file that others may have put there: a regular one, no larger than is meant, and UTF-8 where it is text."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_bytes(path: Path, at_most: int) -> bytes:
    """The content of the regular file at `path`.

    A FIFO or a device would be waited for without end, so it is opened without waiting and never read.

    Raises:
        OSError: it is missing, is not a regular file, or has more than `at_most` bytes; `strerror` says which.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_size > at_most:
        os.close(handle)
        if stat.S_ISREG(found.st_mode):
            raise OSError(errno.EFBIG, f"larger than {at_most} bytes", str(path))
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    with os.fdopen(handle, "rb") as file:
        return file.read(found.st_size)  # room for `at_most` would be taken at once


def read_text(path: Path, at_most: int) -> str:
    """`read_bytes` as text.

    Raises:
        OSError: see `read_bytes`.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_bytes(path, at_most).decode("utf-8")
