"""Stands between the process that measures and a server, so that nothing of the server outlives either of them.

A server starts processes of its own, some in sessions of their own, and a killed parent takes none of them along. The
kernel hands orphans to the nearest "child subreaper": this process. It ends all its descendants, by id, when the server
ends, when it is asked to (SIGTERM), and when the process that measures is gone. `after` is a command that must run
last, such as the removal of a container, which is nobody's descendant.

    python -m claimbench.serving.subreaper '{"parent": 123, "command": [...], "after": null, "grace_s": 10}'
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TypedDict

from claimbench.system.processes import adopt_orphans, die_with_parent, end_descendants

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
REMOVAL_S = 30.0


class KeepRequest(TypedDict):
    parent: int
    command: list[str]
    after: list[str] | None
    grace_s: float


def main() -> int:
    request: KeepRequest = json.loads(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    adopt_orphans()
    die_with_parent(signal.SIGTERM)
    try:
        server = subprocess.Popen(request["command"], stdin=subprocess.DEVNULL, preexec_fn=_prepare)
    except OSError as error:
        print(f"cannot start {request['command'][0]}: {error.strerror}", file=sys.stderr, flush=True)
        return 127
    asked = _wait(server, request["parent"])
    if asked:
        _ask(server, request["grace_s"])
    end_descendants()
    if request["after"]:
        _remove(request["after"])
    status = server.wait()
    return 0 if asked else (128 - status if status < 0 else status)


def _prepare() -> None:
    """What the server does before its program runs."""
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


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


def _remove(command: list[str]) -> None:
    try:
        subprocess.run(command, stdout=subprocess.DEVNULL, timeout=REMOVAL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"could not run {' '.join(command)}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
