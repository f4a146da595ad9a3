"""Folders on a disk that a study names, for weights that are kept there while a block runs, and gone when it ends.

A block may be killed, so each folder has a lock that the kernel frees with its holder: the next block on the same disk
removes what dead ones left.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from claimbench.errors import Unavailable

PREFIX = "claimbench-offload-"


class Scratch:
    """A folder of its own under `parent`, with room for `needed_bytes`.

    Raises:
        Unavailable: `parent` is no folder that can be written to, or has too little space.
    """

    def __init__(self, parent: Path, needed_bytes: int) -> None:
        try:
            _sweep(parent)
            free = shutil.disk_usage(parent).free
            if free < needed_bytes:
                raise Unavailable(
                    f"offload folder {parent}: {needed_bytes / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB are free"
                    ": free some, or name another folder"
                )
            handle, name = tempfile.mkstemp(prefix=PREFIX, suffix=".lock", dir=parent)
            self._lock: IO[bytes] = os.fdopen(handle, "wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.folder = _folder_of(Path(name))
            self.folder.mkdir(mode=0o700)
        except OSError as error:
            raise Unavailable(
                f"offload folder {parent}: expected a folder that can be written to ({error.strerror}): name another"
            ) from error

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        Path(f"{self.folder}.lock").unlink(missing_ok=True)
        self._lock.close()


def _folder_of(lock: Path) -> Path:
    return lock.with_suffix("")


def _sweep(parent: Path) -> None:
    """Remove the folders whose holders are dead."""
    for path in parent.glob(f"{PREFIX}*.lock"):
        with suppress(OSError), path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(_folder_of(path), ignore_errors=True)
            path.unlink(missing_ok=True)
