"""Measures rounds, each with the device to itself, and seals each as soon as it is over.

One process serves many rounds, so that libraries are imported once: it only imports and forks, see round_process.py.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from claimbench.errors import ClaimbenchError
from claimbench.measuring.measure import device_lock
from claimbench.measuring.round_process import RoundRequest
from claimbench.measuring.supervisor import GRACE_S, environment_of
from claimbench.schema import round as round_file
from claimbench.schema.cell import Cell
from claimbench.schema.round import Round
from claimbench.system import scratch
from claimbench.system.processes import end_group, last_lines

Lines = queue.SimpleQueue[str | None]
"""None: there will be no more."""


def measure_round(request: RoundRequest, output: Path, python: str = sys.executable) -> Round:
    """Measure one round in a process of its own; see `RoundServer.measure`."""
    with RoundServer(python) as server:
        return server.measure(request, output)


class NoLongerDue(Exception):
    """Another run in the same folder has measured while this one waited for its turn."""


class RoundServer:
    """Starts the process that rounds are forked from, and starts it anew where it is lost."""

    def __init__(self, python: str = sys.executable) -> None:
        self.python = python
        self.waited_s = 0.0
        """For other measurements on the same device."""
        self.is_due: Callable[[], bool] = lambda: True
        """Asked once the device is free: another run in the same folder may have had it until then."""
        self._running: _Running | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def measure(self, request: RoundRequest, output: Path) -> Round:
        """Measure the round that `request` asks for, and write it to `output`, if it `is_due` once it has its turn.

        Every arm ends in an outcome of its own. A round that is interrupted leaves no process and no file.

        Raises:
            NoLongerDue: it is not.
            ClaimbenchError: the process ended without a round, or gave none in the time that its arms have together.
        """
        cells = [arm.block.cell for arm in request.arms]
        asked = time.monotonic()
        with device_lock(cells[0].device):
            self.waited_s += time.monotonic() - asked
            if not self.is_due():
                raise NoLongerDue
            try:
                said = self._serving(cells[0]).ask(request, sum(cell.protocol.timeout_s for cell in cells))
            except BaseException:
                self._end()
                raise
            record = Round.model_validate_json(said)
            round_file.write(output, record)  # before another run has its turn, which looks for it
        return record

    def _serving(self, cell: Cell) -> _Running:
        """Threads are a variable of the environment, which libraries read once."""
        if self._running and self._running.threads != cell.protocol.threads:
            self._end()
        self._running = self._running or _Running(self.python, cell)
        return self._running

    def _end(self) -> None:
        if self._running:
            self._running.end()
        self._running = None


class _Running:
    def __init__(self, python: str, cell: Cell) -> None:
        self.threads = cell.protocol.threads
        self.own = scratch.Scratch(scratch.temporary())
        self.process = subprocess.Popen(
            [python, "-m", "claimbench.measuring.round_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment_of(cell, self.own.folder),
            start_new_session=True,
        )
        self.complaints = last_lines()
        self.said: Lines = queue.SimpleQueue()
        self.readers = [
            threading.Thread(target=_put_all, args=(self.process.stdout, self.said), daemon=True),
            threading.Thread(target=self.complaints.extend, args=(self.process.stderr,), daemon=True),
        ]
        for reader in self.readers:
            reader.start()

    def ask(self, request: RoundRequest, limit_s: float) -> str:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(request.model_dump_json() + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        limit_s += GRACE_S * len(request.arms)
        try:
            said = self.said.get(timeout=limit_s)
        except queue.Empty:
            raise ClaimbenchError(f"a round did not end within the {limit_s:g} s that its arms have together") from None
        if said is None:
            status = self.process.wait()
            self.readers[1].join(GRACE_S)
            last = [line.strip() for line in self.complaints if line.strip()][-1:] or ["it said nothing"]
            raise ClaimbenchError(f"the process of a round ended with status {status}: {last[0]}")
        return said

    def end(self) -> None:
        """End it with all that it started."""
        with closing(self.own):
            end_group(self.process, GRACE_S)
            for reader in self.readers:
                reader.join(GRACE_S)


def _put_all(stream: IO[str], lines: Lines) -> None:
    for line in stream:
        if line.endswith("\n"):  # one that is cut short was not whole when the process died
            lines.put(line)
    lines.put(None)
