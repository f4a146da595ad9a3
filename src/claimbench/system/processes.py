"""Child processes: started so that none outlives its parent, ended with all that they started, heard to the last line.

Only the standard library and psutil are needed here: the processes that keep servers and ranks import this module and
must start at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

import psutil

LOOPBACK = "127.0.0.1"
KEPT_LINES = 40
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.01


def free_port() -> int:
    """A port on the loopback address that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def last_lines(kept: int = KEPT_LINES) -> deque[str]:
    """Holds the newest lines of what a process prints: a failure is explained there, and the rest may be endless."""
    return deque(maxlen=kept)


def die_with_parent(sent: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when its parent is gone.

    A process that is killed outright must not leave what it started on the device.
    """
    _prctl(PR_SET_PDEATHSIG, sent)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that `end_descendants` finds it."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value)


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill each that still lives. psutil compares start times: another process with a number used anew is not hit."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def end_group(process: subprocess.Popen[str], grace_s: float) -> None:
    """Ask the process group that `process` leads to end, and kill what is left of it after `grace_s`."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except (ProcessLookupError, PermissionError):
            break
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace_s if sent == signal.SIGTERM else None)
    process.wait()


def end_descendants() -> None:
    """Kill until none is left: what is killed may have started another in the meantime."""
    own = psutil.Process()
    while alive := [child for child in own.children(recursive=True) if _is_alive(child)]:
        kill_all(alive)
        time.sleep(POLL_S)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
