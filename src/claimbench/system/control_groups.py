"""What control groups let this process use: containers, systemd's slices and SLURM's jobs are made of them.

A group and all groups above it hold at once, so the tightest of their limits counts. Cores that a cpuset takes away are
missing from the process's affinity already; a share of time (a quota) and a limit of memory are not seen anywhere else.
Groups above a container's own are hidden from it. Sources: Linux, admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst,
scheduler/sched-bwc.rst; proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

PROC = Path("/proc/self")
USUAL_MOUNT = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60
"""Version 1 says the largest page-aligned number instead of nothing."""
EVICTABLE = ("inactive_file", "active_file")
"""Of memory.stat: the page cache, which makes room where a process asks for it."""


class Group(NamedTuple):
    """One group that this process is in, by its folder."""

    folder: Path
    version: int

    def text(self, name: str) -> str:
        """Of one of its files; empty where it has none, or does not let it be read."""
        try:
            return (self.folder / name).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            return ""

    def number(self, name: str) -> int | None:
        """None where the file holds no number, as `max` is none."""
        text = self.text(name)
        return int(text) if re.fullmatch(r"-?\d{1,20}", text) else None

    def fields(self, name: str) -> dict[str, int]:
        pairs = (line.split() for line in self.text(name).splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def cpu_quota() -> float | None:
    """Seconds of CPU time that this process gets in a second; None where only its affinity bounds it."""
    return min((quota for group in groups("cpu") if (quota := _quota(group))), default=None)


def memory_limit() -> int | None:
    """Bytes above which it is slowed down or killed; None where only the machine's memory bounds it."""
    return min((limit for group in groups("memory") for limit in _memory_limits(group)), default=None)


def memory_left() -> int | None:
    """Bytes that it may still take, page cache that can be dropped included; None where nothing limits it."""
    return min((left for group in groups("memory") for left in _memory_left(group)), default=None)


def oom_kills() -> int:
    """Processes of its own group, or of one below, that the kernel has killed for memory."""
    own = {group.version: group for group in reversed([*groups("memory")])}.values()  # the first of each is its own
    return sum(group.fields(_BY_VERSION[group.version].events).get("oom_kill", 0) for group in own)


def _quota(group: Group) -> float | None:
    if group.version == 2:
        allowed, _, period = group.text("cpu.max").partition(" ")
    else:
        allowed, period = group.text("cpu.cfs_quota_us"), group.text("cpu.cfs_period_us")
    known = allowed.isdecimal() and period.isdecimal() and int(allowed) and int(period)
    return int(allowed) / int(period) if known else None


class _Files(NamedTuple):
    """What a version calls them."""

    limits: tuple[str, ...]
    usage: str
    stat_prefix: str
    """Of the figures that count the groups below, too."""
    events: str


_BY_VERSION = {
    1: _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_", "memory.oom_control"),
    2: _Files(("memory.max", "memory.high"), "memory.current", "", "memory.events"),
}


def _memory_limits(group: Group) -> list[int]:
    found = [group.number(name) for name in _BY_VERSION[group.version].limits]
    if group.version == 1:  # what the groups above say, those above a container included
        found.append(group.fields("memory.stat").get("hierarchical_memory_limit"))
    return [limit for limit in found if limit is not None and 0 < limit < NO_LIMIT]


def _memory_left(group: Group) -> list[int]:
    files, limits = _BY_VERSION[group.version], _memory_limits(group)
    usage = group.number(files.usage)
    if usage is None:
        return limits
    stat = group.fields("memory.stat")
    evictable = sum(stat.get(files.stat_prefix + name, 0) for name in EVICTABLE)
    return [max(0, limit - max(0, usage - evictable)) for limit in limits]


def groups(controller: str) -> Iterator[Group]:
    """Those that limit this process by `controller`, its own first, up to the highest one that can be seen."""
    paths = dict(_paths())
    for mount in _mounts():
        held = "" if mount.version == 2 else controller
        if held not in paths or (mount.version == 1 and controller not in mount.controllers):
            continue
        folder = mount.folder_of(paths[held])
        for above in (folder, *folder.parents):
            yield Group(above, mount.version)
            if above == mount.point:
                break


def _paths() -> Iterator[tuple[str, PurePosixPath]]:
    """By controller, where in its tree this process is; the tree of version 2 has no controller's name."""
    for line in _lines("cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(","):
            yield controller, PurePosixPath(path)


class _Mount(NamedTuple):
    """A tree of groups, or the part of one that a container is shown."""

    version: int
    root: PurePosixPath
    """What of the tree is at `point`."""
    point: Path
    controllers: frozenset[str]

    def folder_of(self, path: PurePosixPath) -> Path:
        """Of the group at `path` of the tree; the highest one there is where it lies outside."""
        inside = path.is_relative_to(self.root) and ".." not in path.parts
        folder = self.point / path.relative_to(self.root) if inside else self.point
        return folder if folder.is_dir() else self.point


def _mounts() -> list[_Mount]:
    found = [mount for line in _lines("mountinfo") if (mount := _mount(line))]
    return found or [_Mount(2, PurePosixPath("/"), USUAL_MOUNT, frozenset())]


def _mount(line: str) -> _Mount | None:
    before, separator, after = line.partition(" - ")
    fields, behind = before.split(), after.split()
    if not separator or len(fields) < 5 or len(behind) < 3 or behind[0] not in ("cgroup", "cgroup2"):
        return None
    root, point = (re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), field) for field in fields[3:5])
    version = 2 if behind[0] == "cgroup2" else 1
    return _Mount(version, PurePosixPath(root), Path(point), frozenset(behind[2].split(",")))


def _lines(name: str) -> list[str]:
    try:
        return (PROC / name).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
