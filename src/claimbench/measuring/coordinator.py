"""Runs a cell that has several ranks: starts the launcher, relays between the ranks, ends all when one fails.

It is the worker that the supervisor started, so its messages are those of any block; rank 0's pass through. Every rank
has two lines here: its own and its keeper's (see rank_process.py).
"""

from __future__ import annotations

import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

import psutil

from claimbench.errors import Unavailable
from claimbench.measuring import rank_protocol
from claimbench.measuring.messages import RankMessage, Say
from claimbench.measuring.rank_protocol import Hello, RankEnded, RankRequest
from claimbench.schema.cell import Cell
from claimbench.schema.outcome import Outcome
from claimbench.system import launchers
from claimbench.system.processes import LOOPBACK, die_with_parent, kill_all, last_lines

SETTLE_S = 1.0  # after the first bad news: a dead peer makes others fail as well, and may be heard of second
LEAVE_S = 5.0
LONGEST_PATH = 100  # of a socket, in bytes; the kernel's limit is 107
WORST_FIRST = ("killed", Outcome.OOM, Outcome.UNAVAILABLE, Outcome.WRONG, Outcome.ERROR, "ended", "launcher")


class Joined(NamedTuple):
    """A rank or a keeper has opened its line."""

    hello: Hello
    line: Connection


class FromRank(NamedTuple):
    """A message of a rank; None is the end of its line."""

    rank: int
    message: RankMessage | None


class FromKeeper(NamedTuple):
    """How a keeper's rank ended; None is the end of the keeper's line."""

    rank: int
    ending: RankEnded | None


class LauncherEnded(NamedTuple):
    status: int


class FromRound(NamedTuple):
    """What the round asks of an arm, for rank 0; None is the end of its line."""

    call: RankMessage | None


RankEvent = Joined | FromRank | FromKeeper | LauncherEnded | FromRound


class Failure(NamedTuple):
    rank: int
    kind: str
    """One of WORST_FIRST."""
    reason: str
    signal: str | None = None


class RankConnections:
    """The lines to all ranks, and what is known of each."""

    def __init__(self, listener: Listener) -> None:
        self.events: queue.SimpleQueue[RankEvent] = queue.SimpleQueue()
        self.lines: dict[tuple[str, int], Connection] = {}
        self.processes: list[psutil.Process] = []
        self.size: int | None = None
        self.answers: dict[int, object] = {}
        self.printed: dict[int, list[str]] = {}
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: Listener) -> None:
        while True:
            try:
                line = listener.accept()
                hello: Hello = rank_protocol.receive(line)
            except (AuthenticationError, EOFError, ValueError):
                continue  # not one of ours
            except OSError:
                return
            self.events.put(Joined(hello, line))

    def pass_on(self, calls: Connection) -> None:
        """Hear what the round asks of this arm."""
        threading.Thread(target=self._listen, args=(lambda _, call: FromRound(call), 0, calls), daemon=True).start()

    def admit(self, hello: Hello, line: Connection, request: RankRequest) -> None:
        """Take a line in; with the last one there, every rank gets the request."""
        role, rank = hello["role"], hello["RANK"]
        self.size = hello["WORLD_SIZE"]
        self.lines[role, rank] = line
        if hello["host"] == socket.gethostname():
            with suppress(psutil.NoSuchProcess):
                self.processes.append(psutil.Process(hello["pid"]))
        heard = FromKeeper if role == "keeper" else FromRank
        threading.Thread(target=self._listen, args=(heard, rank, line), daemon=True).start()
        if sum(role == "rank" for role, _ in self.lines) == self.size and role == "rank":
            for each in range(self.size):
                self.send(each, request.model_dump(mode="json"))

    def _listen(self, heard: Callable[[int, Any], RankEvent], rank: int, line: Connection) -> None:
        while True:
            try:
                message = rank_protocol.receive(line)
            except (OSError, EOFError, ValueError):
                self.events.put(heard(rank, None))
                return
            self.events.put(heard(rank, message))

    def send(self, rank: int, message: Mapping[str, object], role: str = "rank") -> None:
        with suppress(OSError):  # its end is an event of its own
            rank_protocol.send(self.lines[role, rank], message)

    def relay(self, call: RankMessage) -> None:
        """Tell rank 0's call to the others; with nobody else there, it is answered at once."""
        self.answers = {}
        for rank in range(1, self.size or 1):
            self.send(rank, call)
        self._release()

    def answer(self, rank: int, answer: object) -> None:
        self.answers[rank] = answer
        self._release()

    def _release(self) -> None:
        others = range(1, self.size or 1)
        if len(self.answers) == len(others):
            for rank in others:
                self.send(rank, {"go": True})
            self.send(0, {"answers": [self.answers[rank] for rank in others]})

    def end(self) -> None:
        """End every rank, by id, and wait until it is gone; keepers elsewhere see their line close."""
        kill_all(self.processes)
        for line in self.lines.values():
            line.close()
        psutil.wait_procs(self.processes, timeout=LEAVE_S)


def run_ranks(request: RankRequest, command: list[str], say: Say, calls: Connection | None = None) -> None:
    """Run the cell's ranks and say what rank 0 says; or how the first of them failed.

    `calls` is where the round asks, of an arm.

    Raises:
        Unavailable: the launcher is not installed.
    """
    cell = request.block.cell
    say("phase", name="launch")
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:  # made 0700
        secret = secrets.token_bytes(32)
        with _listener(cell.nodes, Path(folder), secret) as (listener, address):
            connections = RankConnections(listener)
            if calls:
                connections.pass_on(calls)
            with _launched(cell, [*command, address], secret, connections) as last_lines, _ended(connections):
                failure = RankMonitor(connections, request, say, last_lines).run()
    if failure:
        detail = "".join(connections.printed.get(failure.rank, last_lines))
        passing = failure.kind in ("killed", "ended", "launcher")
        outcome = Outcome.ERROR if passing else failure.kind
        said = {"reason": failure.reason, "signal": failure.signal, "detail": detail, "passing": passing}
        say("refused", outcome=outcome, **said)


@contextmanager
def _listener(nodes: int, folder: Path, secret: bytes) -> Iterator[tuple[Listener, str]]:
    """A socket in `folder`; a port of this machine where its name is too long, or one for ranks on several nodes."""
    path = str(folder / "line")
    in_folder = nodes == 1 and len(os.fsencode(path)) <= LONGEST_PATH
    host = LOOPBACK if nodes == 1 else launchers.address()
    where: str | tuple[str, int] = path if in_folder else (host, 0)
    with Listener(where, family="AF_UNIX" if in_folder else "AF_INET", authkey=secret, backlog=64) as listener:
        bound = listener.address
        yield listener, bound if isinstance(bound, str) else f"{host}:{bound[1]}"


@contextmanager
def _launched(cell: Cell, command: list[str], secret: bytes, connections: RankConnections) -> Iterator[deque[str]]:
    """The launcher, while it runs; yields the last lines of its standard error."""
    threads = str(launchers.threads(cell.devices // cell.nodes, cell.protocol.threads))
    names = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, rank_protocol.SECRET: secret.hex()}
    try:
        launcher = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **names},
            preexec_fn=die_with_parent,
        )
    except OSError as error:
        raise Unavailable(f"the launcher {command[0]} does not start ({error.strerror}): is it installed?") from error
    assert launcher.stderr is not None
    lines = last_lines()
    threading.Thread(target=_pass_on, args=(launcher, launcher.stderr, lines, connections), daemon=True).start()
    try:
        yield lines
    finally:
        with suppress(subprocess.TimeoutExpired):
            launcher.wait(LEAVE_S)
        launcher.kill()
        launcher.wait()


def _pass_on(launcher: subprocess.Popen[str], stream: IO[str], lines: deque[str], connections: RankConnections) -> None:
    for line in stream:
        lines.append(line)
        sys.stderr.write(line)
    connections.events.put(LauncherEnded(launcher.wait()))


@contextmanager
def _ended(connections: RankConnections) -> Iterator[None]:
    """Whatever happens inside, no rank outlives it; a polite end asked for by the supervisor included."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(1)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        connections.end()


class RankMonitor:
    """What the ranks have said and done so far, and which of them failed."""

    def __init__(self, connections: RankConnections, request: RankRequest, say: Say, last_lines: deque[str]) -> None:
        self.connections = connections
        self.request = request
        self.say = say
        self.last_lines = last_lines
        self.phase = "launch"
        self.failures: list[Failure] = []
        self.codes: dict[int, int] = {}
        """Exit codes of ranks, from their keepers."""
        self.silent: set[int] = set()
        """Ranks whose own line has ended: all that they said has been heard."""
        self.done = False
        self.closing = False

    def run(self) -> Failure | None:
        """Serve the ranks until all have ended well, or until it is clear which one failed."""
        deadline: float | None = None
        while not (self.done and len(self.codes) == self.connections.size):
            wait_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                self.handle(self.connections.events.get(timeout=wait_s))
            except queue.Empty:
                break
            if deadline is None and (self.failures or self.done):
                deadline = time.monotonic() + (SETTLE_S if self.failures else LEAVE_S)
        return min(self.failures, key=lambda failure: WORST_FIRST.index(failure.kind), default=None)

    def handle(self, event: RankEvent) -> None:
        if isinstance(event, LauncherEnded):
            if not self.done:
                self.failures.append(_launcher_ended(event.status, self.connections, self.last_lines))
        elif isinstance(event, Joined):
            self.connections.admit(event.hello, event.line, self.request)
        elif isinstance(event, FromKeeper):
            self.handle_keeper(event.rank, event.ending)
        elif isinstance(event, FromRound):
            if event.call is None:
                raise EOFError("the round has ended")
            self.connections.send(0, event.call)
        else:
            self.handle_message(event.rank, event.message)

    def handle_message(self, rank: int, message: RankMessage | None) -> None:
        if message is None:
            self.silent.add(rank)
            self.judge_end(rank)
        elif "call" in message:
            self.closing = message["call"] == "close"
            self.connections.relay(message)
        elif "answer" in message:
            self.connections.answer(rank, message["answer"])
        elif message["event"] == "refused":
            self.failures.append(Failure(rank, message["outcome"], f"rank {rank}: {message['reason']}"))
        elif rank == 0:
            self.phase = message["name"] if message["event"] == "phase" else self.phase
            self.done = message["event"] == "done"
            self.say(message["event"], **{name: value for name, value in message.items() if name != "event"})

    def handle_keeper(self, rank: int, ending: RankEnded | None) -> None:
        if ending:
            self.codes[rank] = ending["ended"]
            self.connections.printed[rank] = ending["lines"]
            self.connections.send(rank, {"heard": True}, role="keeper")
            self.judge_end(rank)
        elif rank not in self.codes:
            reason = f"rank {rank} vanished with its keeper, during: {self.phase}"
            self.failures.append(Failure(rank, "killed", reason))

    def judge_end(self, rank: int) -> None:
        """Once all that a rank said has been heard, and how it ended: was it meant to end here?"""
        if rank not in self.codes or rank not in self.silent:
            return
        code = self.codes[rank]
        if code < 0:
            name = signal.Signals(-code).name
            reason = f"rank {rank} was killed by {name}, during: {self.phase}"
            kind = "launcher" if name == "SIGTERM" else "killed"  # how a launcher ends the others after a failure
            self.failures.append(Failure(rank, kind, reason, name))
        elif code or not (self.done or (self.closing and rank)):
            reason = f"rank {rank} ended with status {code}, during: {self.phase}"
            self.failures.append(Failure(rank, "ended", reason))


def _launcher_ended(status: int, connections: RankConnections, last_lines: deque[str]) -> Failure:
    """A launcher that ends first has its reason in what it printed; a port that is taken is the common one."""
    text = "".join(last_lines)
    here = sum(role == "rank" for role, _ in connections.lines)
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        return Failure(
            -1, Outcome.ERROR, "the launcher's rendezvous port is in use: choose another, or let it find a free one"
        )
    errors = [line.strip() for line in text.splitlines() if "error" in line.lower()]
    why = f": {errors[-1]}" if errors else ""
    return Failure(-1, "launcher", f"the launcher ended with status {status}, {here} ranks having started{why}"[:500])
