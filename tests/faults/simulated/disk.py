"""A disk that forgets what was not flushed: it stands in for `os` and `fcntl` where durable.py calls them.

Files lie in a real folder, so whoever reads them needs nothing. What is kept beside is what a power cut would leave: of
each file what was flushed last, of each folder the names that were flushed last, and the changes of names since.
A cut keeps any number of those changes, in their order, as a journal does, and of a file that was not flushed a part.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

Names = dict[str, int | None]
"""Of a folder: the file that a name means, by its number; None: a folder."""


class Change(NamedTuple):
    """Of a folder's names: those that are removed, and those that are set."""

    removed: tuple[str, ...]
    set: tuple[tuple[str, int | None], ...]


class Killed(BaseException):
    """The process is dead: nothing that it does has an effect any more."""


class Disk:
    """`before(operation, path)` is called before anything changes: to count, to switch, to fail, to die."""

    def __init__(self, before: Callable[[str, Path], None], stamp: Callable[[], int]) -> None:
        self.before, self.stamp = before, stamp
        self.flushed_names: dict[Path, Names] = {}
        self.changes: dict[Path, list[Change]] = {}
        self.flushed: dict[int, bytes] = {}
        """Content on the disk, by the number of the file."""
        self.open: dict[int, Path] = {}
        self.made = 0
        self.numbers: dict[int, int] = {}
        """Of each file, by the number that the system has for it, which it gives to another file later."""

    def stand_in(self) -> SimpleNamespace:
        """What durable.py takes for `os`."""
        mine = {name[1:]: getattr(self, name) for name in dir(self) if name.startswith("_") and name[1:2].isalpha()}
        return SimpleNamespace(**{**vars(os), **mine})

    def forget(self) -> None:
        """All that is there now is on the disk."""
        self.flushed_names.clear()
        self.changes.clear()
        self.flushed.clear()

    def _known(self, folder: Path) -> list[Change]:
        """The changes of a folder since it was flushed; what is in it when it is first touched was flushed before."""
        if folder not in self.changes:
            self.changes[folder] = []
            names: Names = {}
            for path in folder.iterdir():
                names[path.name] = self._number(path)
                if path.is_file():
                    self.flushed.setdefault(self._number(path) or 0, path.read_bytes())
            self.flushed_names[folder] = names
        return self.changes[folder]

    def _number(self, path: Path) -> int | None:
        if path.is_dir():
            return None
        return self.numbers.setdefault(path.stat().st_ino, 1 + len(self.numbers))

    def _note(self, path: Path, removed: tuple[str, ...], to: Path | None = None) -> None:
        named = () if to is None else ((to.name, self._number(to)),)
        self.changes[path.parent].append(Change(removed, named))
        if to is not None:
            os.utime(to, ns=(self.stamp(), self.stamp()))

    # What durable.py calls, by the names that `os` has for it.

    def _open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        path = Path(path).absolute()
        if flags & os.O_CREAT:
            self.before("create", path)
            self._known(path.parent)
        handle = os.open(path, flags, mode)
        self.open[handle] = path
        if flags & os.O_CREAT:
            self.made += 1
            self.numbers[os.fstat(handle).st_ino] = -self.made
            self._note(path, (), path)
        return handle

    def _write(self, handle: int, content: memoryview) -> int:
        """Less at first than it was given, as a system may."""
        self.before("write", self.open[handle])
        first = os.lseek(handle, 0, os.SEEK_CUR) == 0
        return os.write(handle, content[: max(1, len(content) // 2)] if first else content)

    def _fsync(self, handle: int) -> None:
        path = self.open[handle]
        self.before("fsync", path)
        if path.is_dir():
            self._known(path)
            self.flushed_names[path] = self._names(path, len(self.changes[path]))
            self.changes[path] = []
        else:
            self.flushed[self._number(path) or 0] = path.read_bytes()

    def _close(self, handle: int) -> None:
        self.open.pop(handle, None)
        os.close(handle)

    def _replace(self, path: Path, to: Path) -> None:
        path, to = Path(path).absolute(), Path(to).absolute()
        self.before("replace", to)
        self._known(to.parent)
        os.replace(path, to)
        self._note(to, (path.name,), to)

    def _rename(self, path: Path, to: Path) -> None:
        self._replace(path, to)

    def _link(self, path: Path, to: Path) -> None:
        path, to = Path(path).absolute(), Path(to).absolute()
        self.before("link", to)
        self._known(to.parent)
        os.link(path, to)
        self._note(to, (), to)

    def _unlink(self, path: Path) -> None:
        path = Path(path).absolute()
        self.before("unlink", path)
        self._known(path.parent)
        os.unlink(path)
        self._note(path, (path.name,))

    def _mkdir(self, path: Path) -> None:
        path = Path(path).absolute()
        self.before("mkdir", path)
        self._known(path.parent)
        os.mkdir(path)
        self._note(path, (), path)

    def _utime(self, path: Path) -> None:
        self.before("utime", Path(path).absolute())
        os.utime(path, ns=(self.stamp(), self.stamp()))

    # A power cut.

    def _names(self, folder: Path, kept: int) -> Names:
        names = dict(self.flushed_names[folder])
        for change in self.changes[folder][:kept]:
            for name in change.removed:
                names.pop(name, None)
            names.update(change.set)
        return names

    def cut_power(self, chance: random.Random) -> list[str]:
        """Leave what was flushed, and of the rest what chance keeps; what was lost, for a person."""
        lost = []
        for folder in sorted(self.changes, key=lambda one: len(one.parts)):
            if not folder.exists():
                continue
            kept = chance.randint(0, len(self.changes[folder]))
            lost += [f"{folder.name}: {change}" for change in self.changes[folder][kept:]]
            self._leave(folder, self._names(folder, kept), chance)
        self.forget()
        return lost

    def _leave(self, folder: Path, names: Names, chance: random.Random) -> None:
        content = {name: self._content(folder, number, chance) for name, number in names.items() if number is not None}
        stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        for path in folder.iterdir():
            if path.is_dir() and path.name not in names:
                shutil.rmtree(path)
            elif not path.is_dir():
                path.unlink()
        for name, text in content.items():
            (folder / name).write_bytes(text)
            stamp = stamps.get(name, self.stamp())
            os.utime(folder / name, ns=(stamp, stamp))
        for name, number in names.items():
            if number is None:
                (folder / name).mkdir(exist_ok=True)

    def _content(self, folder: Path, number: int, chance: random.Random) -> bytes:
        if number in self.flushed:
            return self.flushed[number]
        now = next((path.read_bytes() for path in folder.iterdir() if self._number(path) == number), b"")
        return now[: chance.randint(0, len(now))]  # torn


def full(path: Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def broken(path: Path) -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO), str(path))


class Locks:
    """Stands in for `fcntl`: whoever waits lets the other processes of the simulation go on."""

    LOCK_EX, LOCK_NB = fcntl.LOCK_EX, fcntl.LOCK_NB

    def __init__(self, wait: Callable[[], None]) -> None:
        self.wait = wait

    def flock(self, handle: int, how: int) -> Any:
        while True:
            try:
                return fcntl.flock(handle, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if how & fcntl.LOCK_NB:
                    raise
                self.wait()
