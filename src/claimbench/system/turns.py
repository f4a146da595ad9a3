"""Waiting for one's turn: a lock on a file that the kernel frees when its holder dies, and who holds it, for a person.

What is locked on one machine is so for every user and every TMPDIR: two that time at once would time each other.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from claimbench.errors import ClaimbenchError

EVERYONE = Path("/tmp")  # noqa: S108 - a lock is of use only where every user looks for it
VARIABLE = "CLAIMBENCH_LOCKS"
"""Names another folder for locks of the machine: for tests, and for containers that share a device and a folder."""
LOOKS_EVERY_S = 0.2


def of_machine(name: str) -> Path:
    """The file that everyone on this machine locks for `name`."""
    return Path(os.environ.get(VARIABLE) or EVERYONE) / f"claimbench-{name}.lock"


@contextmanager
def alone(path: Path, what: str, *, shared: bool = False) -> Iterator[bool]:
    """Hold the lock at `path` while `what` is done; whether another had to be waited for, which is said.

    Those that are `shared` hold it together, and whoever wants it alone waits for them all.

    Raises:
        ClaimbenchError: the lock cannot be opened, or something else lies in its place.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    handle = _opened(path)
    try:
        waited = not _taken(handle, kind)
        if waited:
            _say_for_whom(what, [handle])
            fcntl.flock(handle, kind)
        _sign(handle)
        yield waited
    finally:
        os.close(handle)


@contextmanager
def first_free(paths: Sequence[Path], what: str) -> Iterator[int]:
    """Hold one of the locks at `paths`, the first that is free or else the next to become so; which of them it is.

    Raises:
        ClaimbenchError: a lock cannot be opened, or something else lies in its place.
    """
    with ExitStack() as opened:
        handles = []
        for path in paths:
            handles.append(_opened(path))
            opened.callback(os.close, handles[-1])
        which, waits = _free_one(handles), False
        while which is None:
            if not waits:
                _say_for_whom(what, handles)
            waits = True
            time.sleep(LOOKS_EVERY_S)  # no system call waits for several locks at once
            which = _free_one(handles)
        _sign(handles[which])
        yield which


def _say_for_whom(what: str, held: Sequence[int]) -> None:
    holders = [os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "another process" for handle in held]
    does = "does" if len(holders) == 1 else "do"
    print(f"claimbench: waiting for {what}, which {' and '.join(holders)} {does}", file=sys.stderr, flush=True)


def _free_one(handles: Sequence[int]) -> int | None:
    return next((number for number, handle in enumerate(handles) if _taken(handle, fcntl.LOCK_EX)), None)


def is_held(path: Path) -> bool:
    """Whether anyone holds the lock at `path` at this moment."""
    if not path.exists():
        return False
    handle = _opened(path)
    try:
        return not _taken(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def _taken(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(handle: int) -> None:
    with suppress(OSError):  # of another user that lets nobody write: it is locked all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} of {_user()}\n".encode(), 0)


def _opened(path: Path) -> int:
    """Opened by whoever made it; one's own is made for everyone, whatever the umask.

    Opening another user's file in a folder with a sticky bit is refused where it asks to create it.
    """
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for attempt in (os.O_RDWR, os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR, os.O_RDONLY):
        try:
            handle = os.open(path, attempt | flags, 0o666)
        except OSError as error:
            refusal = error
            continue
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise ClaimbenchError(f"{path}: expected a lock, which is a regular file: remove what lies there")
        if attempt & os.O_CREAT:
            os.fchmod(handle, 0o666)
        return handle
    raise ClaimbenchError(f"{path}: the lock cannot be opened ({refusal.strerror}): remove it, or set {VARIABLE}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
