"""Folders for what is kept on a disk while a block runs, such as offloaded weights: gone afterwards, however it ended.

Each holds a lock on a file in it, which the kernel frees when its holder dies. Whoever comes next removes the folders
whose lock nobody holds.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from claimbench.errors import ClaimbenchError

PREFIX = "claimbench-scratch-"
OWNER = "owner"


def temporary() -> Path:
    """The folder for temporary files.

    Raises:
        ClaimbenchError: none can be written to; a disk without room is the common cause.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise ClaimbenchError(f"{error.strerror}: make room in one of them, or set TMPDIR to another") from error


def refusal(parent: Path, needed_bytes: int) -> str | None:
    """Why `needed_bytes` cannot be kept under `parent`, or None; asked by writing there."""
    try:
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(b"x")
    except OSError as error:
        return f"cannot write to the offload folder {parent} ({error.strerror}): name another"
    remove_abandoned(parent)
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        return (
            f"the weights to offload take {needed_bytes / 1e9:.3g} GB, and the offload folder {parent} has "
            f"{free / 1e9:.3g} GB free: free some, or name another"
        )
    return None


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove what holders left that died; the folders that were removed."""
    removed = []
    for folder in parent.glob(f"{PREFIX}*"):
        if _is_abandoned(folder):
            _remove(folder)
            removed.append(folder)
    return removed


def _remove(folder: Path) -> None:
    """The lock's file goes last: without it nobody would finish what is cut off here."""
    with suppress(OSError):
        for path in [path for path in folder.iterdir() if path.name != OWNER]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    try:
        with (folder / OWNER).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Scratch:
    """A folder of one process, under `parent`, which must be there: a misspelled disk is not made up."""

    def __init__(self, parent: Path) -> None:
        remove_abandoned(parent)
        unnamed = Path(tempfile.mkdtemp(prefix=".", dir=parent))
        self._lock: IO[bytes] = (unnamed / OWNER).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.folder = unnamed.rename(parent / f"{PREFIX}{unnamed.name[1:]}")  # it is never seen without its lock

    def stored(self) -> dict[str, int]:
        """Name -> bytes that the disk holds, of every file but the lock."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.name != OWNER]
        return {str(path.relative_to(self.folder)): path.stat().st_blocks * 512 for path in files}

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        _remove(self.folder)
        self._lock.close()
