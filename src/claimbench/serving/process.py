"""A server's process: started on the loopback address, waited for until healthy, ended with all that it started.

Whatever goes wrong is a `Refusal` with one line of reason, and the server's last lines go to standard error, where the
supervisor of a block picks them up. Secrets reach no line and no record, see system/redaction.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from claimbench.errors import ServerFailed
from claimbench.serving.subreaper import KeepRequest
from claimbench.system import memory
from claimbench.system.processes import LOOPBACK, kill_all, last_lines
from claimbench.system.redaction import redact, secrets_of

if TYPE_CHECKING:
    import psutil

KEPT_LINES = 60
GRACE_S = 10.0
POLL_S = 0.1


@dataclass(frozen=True)
class Launch:
    """How a server is started: `environment` is set on top of what it inherits, which is all but what is `removed`.

    `after` is a command that must run when it has ended.
    """

    command: tuple[str, ...]
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    health: str = "/health"
    healthy_s: float = 300.0
    after: tuple[str, ...] = ()


def check_port(port: int) -> None:
    """Raises ServerFailed if somebody listens on `port`: requests would reach another server than the one started."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ServerFailed(
                f"port {port} of {LOOPBACK} is in use: choose another, or stop what listens there"
            ) from error


class LaunchRecord(TypedDict):
    command: list[str]
    environment: dict[str, str]


def record_of(launch: Launch) -> LaunchRecord:
    """Command and environment as they were given, secrets left out."""
    secrets = secrets_of({**os.environ, **launch.environment})
    return {
        "command": [redact(word, secrets) for word in launch.command],
        "environment": {name: redact(value, secrets) for name, value in sorted(launch.environment.items())},
    }


class Server:
    """A running server. `address` is where it listens; `stop` may be called twice."""

    def __init__(self, launch: Launch) -> None:
        """Start it and wait until it is healthy.

        Raises:
            ServerFailed: the port is taken, the server ended, or its time to become healthy is over.
        """
        check_port(launch.port)
        self.launch = launch
        self.address = f"http://{LOOPBACK}:{launch.port}"
        self.lines = last_lines(KEPT_LINES)
        inherited = {name: value for name, value in os.environ.items() if name not in launch.removed}
        environment = {**inherited, **launch.environment}
        self._secrets = secrets_of(environment)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "claimbench.serving.subreaper", self._request()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,  # the keeper must survive what ends its parent's group, to end the server
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise

    def _request(self) -> str:
        launch = self.launch
        request: KeepRequest = {
            "parent": os.getpid(),
            "command": list(launch.command),
            "after": list(launch.after) or None,
            "grace_s": GRACE_S,
        }
        return json.dumps(request)

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(redact(line.rstrip("\n"), self._secrets) for line in self._process.stdout)

    def _wait_until_healthy(self) -> None:
        import httpx2

        end = time.monotonic() + self.launch.healthy_s
        last = "it did not answer"
        with httpx2.Client(base_url=self.address, timeout=2.0, trust_env=False) as client:
            while time.monotonic() < end:
                self.check()
                try:
                    status = client.get(self.launch.health).status_code
                except httpx2.TransportError as error:
                    last = f"{self.launch.health} gave {type(error).__name__}"
                else:
                    if status == 200:
                        return
                    last = f"{self.launch.health} gave status {status}"
                time.sleep(POLL_S)
        raise self.failure(f"not healthy within {self.launch.healthy_s:g} s: {last}")

    def check(self) -> None:
        """Raises ServerFailed if the server has ended."""
        status = self._process.poll()
        if status is not None:
            self._reader.join(timeout=2.0)
            how = (
                f"was killed by {signal.Signals(status - 128).name}" if status > 128 else f"ended with status {status}"
            )
            raise self.failure(f"it {how}{_quoted(self.lines)}")

    def wait(self, seconds: float) -> None:
        """Give a server that may be dying the time to do so."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)

    def failure(self, what: str) -> ServerFailed:
        """The refusal that says `what`; the last lines of the server go to standard error on the way."""
        print("The server's last lines:", *self.lines, sep="\n", file=sys.stderr, flush=True)
        return ServerFailed(f"the server failed: {what}")

    def descendants(self) -> list[psutil.Process]:
        """Processes of the server and of all that it started."""
        import psutil

        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def resident_bytes(self) -> int:
        """Resident memory of the server's processes, pages that they share counted once in each."""
        import psutil

        total = 0
        for process in self.descendants():
            try:
                total += process.memory_info().rss
            except (psutil.Error, OSError):
                continue
        return total

    def peak_bytes(self) -> int:
        """Sum of the peaks of resident memory of the server's processes, as the kernel keeps them."""
        return sum(memory.peak_of(process.pid) for process in self.descendants())

    def stop(self) -> None:
        """End the server and everything that it started."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=GRACE_S + 5)
            except subprocess.TimeoutExpired:
                kill_all(self.descendants())
                self._process.kill()
                self._process.wait()
        self._reader.join(timeout=2.0)


def _quoted(lines: deque[str]) -> str:
    """The last line that says something, as the end of a sentence."""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last[:300]}" if last else ""
