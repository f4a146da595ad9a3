"""A full disk is found before the work where it can be, and said in one sentence where it cannot."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from claimbench.errors import SourceError

FULL = (errno.ENOSPC, errno.EDQUOT)


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raises SourceError where the disk of `folder`, which need not exist yet, has less than `needed_bytes` free."""
    standing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(standing).free
    if free < needed_bytes:
        raise SourceError(
            f"{folder}: expected {needed_bytes / 1e6:,.1f} MB of free space, found {free / 1e6:,.1f} MB: "
            "make room, or put the folder on a larger disk"
        )


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turns the operating system's 'no space left' into the same kind of sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise SourceError(
            f"{folder}: the disk is full ({error.strerror}); what was half written has been removed: "
            "make room and run again"
        ) from error
