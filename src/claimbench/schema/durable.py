"""Files that outlive a crash: whole or not at all, and on the disk when the call returns.

What is written lies in the kernel's memory for a while, and so does a name that was given to it. Whoever says that a
result is there has had both written to the disk: a power cut undoes no rename that was flushed.

Folders are locked while a file in them is replaced or judged. The lock is on the folder itself, so it leaves no file,
and the kernel frees it when its holder dies. What a dead writer left beside its file is removed by the next one."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

PARTIAL: Final = ".unfinished"
MODE: Final = 0o644
"""Whatever the umask: results are for everyone to read."""
KEPT: Final = set[Path]()
"""Folders whose names this process has flushed."""
NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""How a file system says that a file has one name there, as on FAT, and on folders that some containers share."""
NO_FLUSH: Final = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""How a file system says that it flushes no folders."""


def write(path: Path, content: bytes) -> None:
    """Write beside `path`, flush, rename, flush the folder: a reader sees the old file or the whole new one.

    Raises:
        OSError: it could not be written; what was at `path` before is still there.
    """
    make_folder(path.parent)
    with alone_in(path.parent) as is_alone:
        partial = _write_partial(path, content, is_alone)
        try:
            os.replace(partial, path)
        except BaseException:
            _discard(partial)
            raise
        _flush_folder(path.parent)


def write_new(path: Path, content: bytes) -> None:
    """`write` where nothing is yet.

    Raises:
        FileExistsError: something is, and stays as it is.
        OSError: it could not be written.
    """
    make_folder(path.parent)
    with alone_in(path.parent) as is_alone:
        partial = _write_partial(path, content, is_alone)
        try:
            _name_once(partial, path)
        finally:
            _discard(partial)
        _flush_folder(path.parent)


def _name_once(partial: Path, path: Path) -> None:
    """Name a file that has been written, where no other has that name; the folder is held."""
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(partial, path)


def rename(path: Path, to: Path) -> None:
    """Rename a file within its folder; the caller holds the folder (`alone_in`)."""
    os.rename(path, to)
    _flush_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file that can be made again, if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def touch(path: Path) -> None:
    """It is of now."""
    os.utime(path)


def remove_partial(partial: Path) -> None:
    """Remove what a dead writer left; one that lives is waited for."""
    with alone_in(partial.parent) as is_alone:
        if is_alone:
            _discard(partial)


def make_folder(folder: Path) -> None:
    """With all that it lies in, each on the disk: also what another process made, and may not have flushed."""
    here, folder = Path.cwd(), folder.absolute()
    several = [
        one for one in (folder, *folder.parents) if not one.exists() or (here in one.parents and one not in KEPT)
    ]
    for one in reversed(several):
        if not one.exists():
            with suppress(FileExistsError):
                os.mkdir(one)
        _flush_folder(one.parent)
        KEPT.add(one)


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Hold `folder` while a file in it is replaced, or is read and then renamed. Not for long, and not twice.

    False: the file system has no such locks.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _write_partial(path: Path, content: bytes, is_alone: bool) -> Path:
    """The content on the disk, under another name in the same folder."""
    if is_alone:
        for left in path.parent.glob(f".*{PARTIAL}"):
            _discard(left)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        try:
            os.fchmod(handle, MODE)
            left_to_write = memoryview(content)
            while left_to_write:
                left_to_write = left_to_write[os.write(handle, left_to_write) :]
            os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException:
        _discard(partial)
        raise
    return partial


def _discard(partial: Path) -> None:
    with suppress(OSError):
        os.unlink(partial)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise
    finally:
        os.close(handle)
