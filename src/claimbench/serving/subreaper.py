"""Stands between the process that measures and a server, so that nothing of the server outlives either of them.

A server starts processes of its own, some in sessions of their own, and a killed parent takes none of them along. The
kernel hands orphans to the nearest "child subreaper": this process. It ends all its descendants, by id, when the server
ends, when it is asked to (SIGTERM), and when the process that measures is gone. `after` is a command that must run
last, such as the removal of a container, which is nobody's descendant.

    python -m claimbench.serving.subreaper '{"parent": 123, "command": [...], "after": null, "grace_s": 10}'
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
REMOVAL_S = 30.0


def main() -> int:
    request: dict[str, Any] = json.loads(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    prepare = _die_with_keeper(libc)
    try:
        server = subprocess.Popen(request["command"], stdin=subprocess.DEVNULL, preexec_fn=prepare)
    except OSError as error:
        print(f"cannot start {request['command'][0]}: {error.strerror}", file=sys.stderr, flush=True)
        return 127
    asked = _wait(server, request["parent"])
    if asked:
        _ask(server, request["grace_s"])
    _end_descendants()
    if request["after"]:
        _remove(request["after"])
    status = server.wait()
    return 0 if asked else (128 - status if status < 0 else status)


def _die_with_keeper(libc: Any) -> Any:
    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    return prepare


def _wait(server: subprocess.Popen[bytes], parent: int) -> bool:
    """Until the server ends (False), or the parent asks for its end (True) or is gone (False)."""
    while server.poll() is None and os.getppid() == parent:
        got = signal.sigtimedwait(WATCHED, 0.5)
        if got is not None and got.si_signo != signal.SIGCHLD and os.getppid() == parent:
            return True
    return False


def _ask(server: subprocess.Popen[bytes], grace_s: float) -> None:
    server.terminate()
    try:
        server.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        return


def _end_descendants() -> None:
    """Kill until none is left: what is killed may have started another in the meantime."""
    own = psutil.Process()
    while alive := [child for child in own.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]:
        for child in alive:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.01)


def _remove(command: list[str]) -> None:
    try:
        subprocess.run(command, stdout=subprocess.DEVNULL, timeout=REMOVAL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"could not run {' '.join(command)}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
