"""A folder for weights that do not fit: checked before it is used, and gone afterwards, however its user died.

Each user holds a lock on a file in a folder of its own, which the kernel frees when it dies. Whoever comes next removes
the folders whose lock nobody holds.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from pathlib import Path
from typing import IO

PREFIX = "claimbench-offload-"
OWNER = "owner"


def refusal(parent: Path, needed_bytes: int) -> str | None:
    """Why `needed_bytes` cannot be kept under `parent`, or None; asked by writing there."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(b"x")
    except OSError as error:
        return f"cannot write to the offload folder {parent} ({error.strerror}): name another as nvme_path"
    remove_abandoned(parent)
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        return (
            f"the weights to offload take {needed_bytes / 1e9:.3g} GB, and {parent} has {free / 1e9:.3g} GB free: "
            f"name another folder as nvme_path"
        )
    return None


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove what users left that died; the folders that were removed."""
    removed = []
    for folder in parent.glob(f"{PREFIX}*"):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def _is_abandoned(folder: Path) -> bool:
    try:
        with (folder / OWNER).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class SwapFolder:
    """A folder of one process, under `parent`."""

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        unnamed = Path(tempfile.mkdtemp(prefix=".", dir=parent))
        self.lock: IO[bytes] = (unnamed / OWNER).open("wb")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.path = unnamed.rename(parent / f"{PREFIX}{unnamed.name[1:]}")  # it is never seen without its lock

    def stored(self) -> dict[str, int]:
        """Name -> bytes that the disk holds, of every file but the lock."""
        files = [path for path in self.path.rglob("*") if path.is_file() and path.name != OWNER]
        return {str(path.relative_to(self.path)): path.stat().st_blocks * 512 for path in files}

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock.close()
