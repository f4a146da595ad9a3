"""A seat in a round: the process of one arm, what is asked of it, what is heard of it, and how it ends."""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from uuid import uuid4

import psutil

from claimbench.measuring import arm
from claimbench.measuring.arm import ArmRequest
from claimbench.measuring.messages import Message
from claimbench.measuring.rank_protocol import receive, send
from claimbench.measuring.supervisor import facts_in, kernel_oom_kills
from claimbench.schema.outcome import Outcome
from claimbench.schema.result import Result
from claimbench.schema.round import Arm, Turn
from claimbench.system import machine
from claimbench.system.processes import kill_all

SHORTEST_TURN_S = 0.25
"""A faster cell generates several times when it is its turn: a turn is to be longer than the scheduler's noise."""
MOST_GENERATIONS = 16
GRACE_S = 5.0


class Ended(Exception):
    """An arm is not there any more; the text is the reason."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


@dataclass
class Seat:
    """An arm's process, and what was heard of it."""

    request: ArmRequest
    number: int
    process: ForkProcess
    line: Connection
    log: Path
    oom_kills: int
    left_s: float
    """Of its own time: that of the others does not count."""
    phase: str = "start"
    messages: list[Message] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    outcome: Outcome | None = None
    reason: str | None = None
    spent_s: float = 0.0
    ready_s: float = 0.0
    """What it had spent when it was warm."""
    begun: float = 0.0
    is_slow: bool = False

    @property
    def is_here(self) -> bool:
        return self.outcome is None

    @property
    def samples(self) -> int:
        return sum(message["event"] == "sample" for message in self.messages)

    def warm_up(self) -> None:
        self.call("warm up", "warm-up")
        self.ready_s = self.spent_s

    @cached_property
    def generation_s(self) -> float:
        """By the warm-up."""
        last = next(message for message in reversed(self.messages) if message["event"] == "warmed up")
        return max(last["generation_s"], 1e-4)

    @property
    def generations(self) -> int:
        """In one turn."""
        return max(1, min(MOST_GENERATIONS, math.ceil(SHORTEST_TURN_S / self.generation_s)))

    @property
    def turn_s(self) -> float:
        return self.generations * self.generation_s

    @property
    def throttled(self) -> bool:
        return any(message["event"] == "throttled" for message in self.messages)

    def turns_in(self, passes: int) -> int:
        """Of `passes`, those in which it generates."""
        wanted = max(2, (passes + 1) // 2) if self.is_slow else passes
        return min(self.request.turns or wanted, passes)

    def has_turn(self, number: int, passes: int) -> bool:
        """Whether it generates in this pass of `passes`: its turns are spread evenly, the first in the first pass."""
        turns = self.turns_in(passes)
        return number * turns // passes != (number - 1) * turns // passes

    def call(self, call: str | None, phase: str, **arguments: object) -> None:
        """Have it do something, and listen until it is ready; what goes wrong becomes its outcome."""
        self.begin(call, phase, **arguments)
        self.finish()

    def begin(self, call: str | None, phase: str, **arguments: object) -> None:
        self.phase, self.begun = phase, time.monotonic()
        if call:
            with suppress(OSError):  # it is dead: whoever listens finds the end of the line
                send(self.line, {"call": call, **arguments})

    def finish(self) -> None:
        try:
            self._listen(self.begun + self.left_s)
        except (EOFError, OSError):
            self._died()
        except Ended as end:
            self.end(end.outcome, str(end))
        took = time.monotonic() - self.begun
        self.left_s, self.spent_s = self.left_s - took, self.spent_s + took

    def _listen(self, until: float) -> None:
        while True:
            if not self.line.poll(max(0.0, until - time.monotonic())):
                limit = self.request.block.cell.protocol.timeout_s
                raise Ended(Outcome.TIMEOUT, f"over {limit:g} s of its own, during: {self.phase}")
            message: Message = receive(self.line)
            match message["event"]:
                case "ready":
                    return
                case "done":
                    self.end(Outcome.OK, None)
                    return
                case "phase":
                    self.phase = message["name"]
                case "refused":
                    raise Ended(Outcome(message["outcome"]), message["reason"])
                case _:
                    self.messages.append(message)

    def _died(self) -> None:
        self.process.join(GRACE_S)
        code = self.process.exitcode
        if code == -signal.SIGKILL and kernel_oom_kills() > self.oom_kills:
            self.end(Outcome.OOM, f"killed by the kernel for memory, during: {self.phase}")
            return
        how = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with status {code}"
        self.end(Outcome.ERROR, f"its process was {how}, during: {self.phase}")

    def end(self, outcome: Outcome, reason: str | None) -> None:
        """Record how it ended, and see to it that nothing of it is left."""
        self.outcome, self.reason = outcome, reason
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            started = own.children(recursive=True)
            if outcome != Outcome.OK:
                own.kill()
            else:
                self.process.join(GRACE_S)
            kill_all([own, *started])
        self.process.join()
        self.line.close()

    def cpu_s(self) -> float:
        """CPU time that its process has taken."""
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)

    def record(self, started: datetime) -> Arm:
        """What it came to."""
        facts = facts_in(self.messages)
        if not times_load(self.request) and "load_ns" in facts:
            del facts["load_ns"]  # it may have loaded beside another
        outcome, reason = self.outcome or Outcome.ERROR, self.reason
        hashes = {one["tokens_sha256"] for one in (*facts["warmup"], *facts["samples"])}
        if outcome == Outcome.OK and len(hashes) > 1:
            outcome, reason = Outcome.WRONG, "generations of one round, warm-up included, differ in their tokens"
        lines = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        facts |= {
            "outcome": outcome,
            "reason": reason,
            "detail": None if outcome == Outcome.OK else lines[-4000:] or None,
            "machine": machine.identify(),
        }
        result = Result(
            cell=self.request.block.cell,
            block=self.number,
            key=self.request.key,
            started_at=started.isoformat(timespec="seconds"),
            duration_s=round(self.spent_s, 3),
            **facts,
        )
        return Arm(
            name=self.request.name,
            slowdown=self.request.slowdown,
            result=result,
            ready_s=round(self.ready_s, 3),
            turns=tuple(self.turns),
        )


def times_load(one: ArmRequest) -> bool:
    """Whether it loads alone: where it has not been timed before, and where memory is a device's."""
    return one.proves or one.block.cell.device != "cpu"


def start(one: ArmRequest, number: int, folder: Path) -> Seat:
    """A process that begins to load the arm's cell, for round `number` of its group; its log goes to `folder`."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    log = folder / f"{uuid4().hex}.log"
    process = context.Process(target=arm.serve, args=(theirs, one.model_dump_json(), str(log)))
    process.start()
    theirs.close()
    limit_s = one.block.cell.protocol.timeout_s
    seat = Seat(one, number, process, ours, log, kernel_oom_kills(), limit_s)
    seat.begin(None, "load")
    return seat
