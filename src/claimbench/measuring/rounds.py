"""Measures rounds, each with the device to itself, and seals each as soon as it is over.

One process serves many rounds, so that libraries are imported once: it only imports and forks, see round_process.py.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from claimbench.errors import ClaimbenchError
from claimbench.measuring.device_lock import device_lock
from claimbench.measuring.round_process import RoundRequest
from claimbench.measuring.supervisor import GRACE_S, environment_of
from claimbench.planning.result_key import expect_unchanged
from claimbench.schema import round as round_file
from claimbench.schema.cell import Cell
from claimbench.schema.round import Round
from claimbench.system import gpus, scratch
from claimbench.system.processes import end_group, last_lines

Lines = queue.SimpleQueue[str | None]
"""None: there will be no more."""


def measure_round(request: RoundRequest, output: Path, python: str = sys.executable) -> Round:
    """Measure one round in a process of its own; see `RoundServer.measure`."""
    with RoundServer(python) as server:
        return server.measure(request, output)


class RoundServer:
    """Starts the process that rounds are forked from, and starts it anew where it is lost."""

    def __init__(self, python: str = sys.executable) -> None:
        self.python = python
        self.side_by_side = False
        """Whether others may measure meanwhile on other GPUs of this machine."""
        self.waited_s = 0.0
        """For other measurements on the same device."""
        self._running: _Running | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def measure(self, request: RoundRequest, output: Path) -> Round:
        """Measure the round that `request` asks for, and write it to `output`.

        Every arm ends in an outcome of its own. A round that is interrupted leaves no process and no file.

        Raises:
            FileExistsError: a round is there already, and stays.
            ResultError: what a cell runs was changed after its key was made.
            ClaimbenchError: the process ended without a round, or gave none in the time that its arms have together.
        """
        cells = [arm.block.cell for arm in request.arms]
        keys = [arm.key for arm in request.arms]
        expect_unchanged(zip(cells, keys, strict=True))
        asked = time.monotonic()
        devices = max(cell.devices for cell in cells)
        with device_lock(cells[0].device, devices, side_by_side=self.side_by_side) as beside:
            self.waited_s += time.monotonic() - asked
            try:
                said = self._serving(cells[0]).ask(request, sum(cell.protocol.timeout_s for cell in cells))
            except BaseException:
                self._end()
                raise
            met = beside()
        expect_unchanged(zip(cells, keys, strict=True))
        record = Round.model_validate_json(said)
        record = record.model_copy(update={"conditions": record.conditions | met})
        round_file.write_new(output, record)
        return record

    def _serving(self, cell: Cell) -> _Running:
        """Threads and visible GPUs are variables of the environment, which libraries read once."""
        wanted = (cell.protocol.threads, os.environ.get(gpus.VISIBLE))
        if self._running and self._running.started_for != wanted:
            self._end()
        self._running = self._running or _Running(self.python, cell)
        return self._running

    def _end(self) -> None:
        if self._running:
            self._running.end()
        self._running = None


class _Running:
    def __init__(self, python: str, cell: Cell) -> None:
        self.started_for = (cell.protocol.threads, os.environ.get(gpus.VISIBLE))
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
