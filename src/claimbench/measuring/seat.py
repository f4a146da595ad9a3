"""A seat in a round: the process of one arm, what is asked of it, what is heard of it, and how it ends."""

from __future__ import annotations

import math
import multiprocessing
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import psutil

from claimbench import backends
from claimbench.measuring import arm
from claimbench.measuring.arm import ArmRequest
from claimbench.measuring.messages import Message
from claimbench.measuring.rank_protocol import receive, send
from claimbench.measuring.supervisor import facts_in, kernel_oom_kills
from claimbench.schema.outcome import Outcome
from claimbench.schema.result import Result
from claimbench.schema.round import Arm, Turns
from claimbench.system import machine
from claimbench.system.processes import kill_all
from claimbench.system.redaction import redacted_result

SHORTEST_TURN_S = 0.1
"""A faster cell takes several steps in its turn, or generates several times: turns that are about as long cost every
cell about the same share of its time, whatever a wait costs."""
MOST_GENERATIONS = 16
"""In one turn."""
GRACE_S = 5.0


class Ended(Exception):
    """An arm is not there any more; the text is the reason."""

    def __init__(self, outcome: Outcome, reason: str, passing: bool = False) -> None:
        super().__init__(reason)
        self.outcome, self.passing = outcome, passing


class Turn(NamedTuple):
    """A stretch in which one arm computes. Nanoseconds since the round began."""

    place: int
    begun_ns: int
    ended_ns: int


class Spawned:
    """A process of another interpreter, asked what a forked one is asked."""

    def __init__(self, python: str, line: Connection, log: Path) -> None:
        descriptor = line.fileno()
        command = [python, "-m", "claimbench.measuring.arm", str(descriptor), str(log)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[descriptor])
        self.pid = self._process.pid

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def join(self, timeout: float | None = None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def kill(self) -> None:
        self._process.kill()


@dataclass
class Seat:
    """An arm's process, and what was heard of it."""

    request: ArmRequest
    number: int
    process: ForkProcess | Spawned
    line: Connection
    log: Path
    oom_kills: int
    left_s: float
    """Of its own time: that of the others does not count."""
    phase: str = "start"
    messages: list[Message] = field(default_factory=list)
    turns: list[Turns] = field(default_factory=list)
    outcome: Outcome | None = None
    passing: bool = False
    reason: str | None = None
    spent_s: float = 0.0
    ready_s: float = 0.0
    """Of the round, until it was warm."""
    begun: float = 0.0
    is_slow: bool = False
    laps: int = 1
    """Of a pass: as many as the round has."""
    family: list[psutil.Process] = field(default_factory=list)
    """Its process and, from when it is warm, all that it started: servers and ranks compute elsewhere."""
    waited_s: float = 0.0
    """While others had their turn, in the laps that are watched."""
    waiting_cpu_s: float = 0.0
    """CPU time that it took meanwhile."""

    @property
    def is_here(self) -> bool:
        return self.outcome is None

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    @property
    def samples(self) -> int:
        return sum(message["event"] == "sample" for message in self.messages)

    def note_pass(self, number: int, turns: Sequence[Turn]) -> None:
        """What it generated in a pass; the generation in which it ended is not there."""
        made = self.samples - sum(each.samples for each in self.turns)
        if made:
            places = tuple(turn.place for turn in turns)
            first, last = turns[0].begun_ns, turns[-1].ended_ns
            self.turns.append(Turns(number=number, places=places, begun_ns=first, ended_ns=last, samples=made))

    def note_ready(self, took_s: float) -> None:
        """It is warm, or has ended; its start took `took_s` of the round."""
        self.ready_s = took_s
        with suppress(Exception):  # psutil's own kinds, and others where /proc is hidden or says nonsense
            own = psutil.Process(self.pid)
            self.family = [own, *own.children(recursive=True)]

    @cached_property
    def generation_s(self) -> float:
        """By an earlier round, or by the warm-up."""
        if self.request.generation_s:
            return self.request.generation_s
        last = next(message for message in reversed(self.messages) if message["event"] == "warmed up")
        return max(last["generation_s"], 1e-4)

    @property
    def most_parts(self) -> int:
        """Of one generation, a power of two."""
        cell = self.request.block.cell
        return floor_to_power(cell.workload.new_tokens) if backends.stands_still(cell) else 1

    @property
    def turn_generations(self) -> int:
        """In one turn, a power of two: one, or a part of one, unless it is over before a turn is."""
        return min(MOST_GENERATIONS, ceil_to_power(SHORTEST_TURN_S / self.generation_s))

    @property
    def parts(self) -> int:
        """That a generation is cut into, each a turn."""
        return min(self.laps, self.most_parts, floor_to_power(self.generation_s / SHORTEST_TURN_S))

    @property
    def pass_generations(self) -> int:
        """In one pass: a fast cell has so many that it has a turn in every second lap."""
        wanted, fitting = self.laps // 2 // self.parts, floor_to_power(self.laps * SHORTEST_TURN_S / self.generation_s)
        return self.turn_generations * max(1, min(wanted, fitting if self.turn_generations == 1 else wanted))

    @property
    def pass_turns(self) -> int:
        return self.pass_generations // self.turn_generations * self.parts

    @property
    def pass_s(self) -> float:
        return self.pass_generations * self.generation_s

    def turns_in(self, passes: int) -> int:
        """Of `passes`, those in which it generates."""
        wanted = max(2, (passes + 1) // 2) if self.is_slow else passes
        return min(self.request.turns or wanted, passes)

    def has_turn(self, number: int, passes: int) -> bool:
        """Whether it generates in this pass of `passes`: its turns are spread evenly, the first in the first pass."""
        turns = self.turns_in(passes)
        return number * turns // passes != (number - 1) * turns // passes

    def has_lap(self, lap: int) -> bool:
        """Whether it computes in this lap of a pass: its turns are spread evenly."""
        turns = self.pass_turns
        return any((2 * turn + 1) * self.laps // (2 * turns) == lap for turn in range(turns))

    def turn(self, number: int) -> None:
        """Compute, for pass `number`, until the turn is over."""
        self.call("turn", f"pass {number + 1}", generations=self.turn_generations, parts=self.parts)

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
            self.end(end.outcome, str(end), end.passing)
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
                    raise Ended(Outcome(message["outcome"]), message["reason"], message.get("passing", False))
                case _:
                    self.messages.append(message)

    def _died(self) -> None:
        self.process.join(GRACE_S)
        code = self.process.exitcode
        if code == -signal.SIGKILL and kernel_oom_kills() > self.oom_kills:
            self.end(Outcome.OOM, f"killed by the kernel for memory, during: {self.phase}")
            return
        how = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with status {code}"
        self.end(Outcome.ERROR, f"its process was {how}, during: {self.phase}", passing=True)

    def end(self, outcome: Outcome, reason: str | None, passing: bool = False) -> None:
        """Record how it ended, and see to it that nothing of it is left."""
        self.outcome, self.reason, self.passing = outcome, reason, passing
        with suppress(Exception):  # see `note_ready`
            own = psutil.Process(self.pid)
            started = own.children(recursive=True)
            if outcome != Outcome.OK:
                own.kill()
            else:
                self.process.join(GRACE_S)
            kill_all([own, *started])
        kill_all(self.family)  # whoever outlives an arm that has gone already is nobody's child
        if outcome != Outcome.OK:
            self.process.kill()  # where psutil could not
        self.process.join()
        self.line.close()

    def cpu_s(self) -> float:
        """CPU time that its processes have taken."""
        spent = 0.0
        for process in self.family:
            with suppress(Exception):  # see above
                times = process.cpu_times()
                spent += times.user + times.system
        return spent

    def record(self, started: datetime, unread: dict[str, str]) -> Arm:
        """What it came to; `unread`: which conditions of its round could not be read, and why."""
        facts = facts_in(self.messages)
        if not times_start(self.request) and "load_ns" in facts:
            del facts["load_ns"]  # it may have loaded beside another
        outcome, reason = self.outcome or Outcome.ERROR, self.reason
        hashes = {one["tokens_sha256"] for one in (*facts["warmup"], *facts["samples"])}
        if outcome == Outcome.OK and len(hashes) > 1:
            outcome, reason = Outcome.WRONG, "generations of one round, warm-up included, differ in their tokens"
        lines = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        facts |= {
            "outcome": outcome,
            "passing": self.passing and outcome == Outcome.ERROR,
            "reason": reason,
            "detail": None if outcome == Outcome.OK else lines[-4000:] or None,
            "machine": machine.identify(),
            "telemetry": {"unread": unread} if unread else {},
        }
        result = Result(
            cell=self.request.block.cell,
            block=self.number,
            key=self.request.key,
            started_at=started.isoformat(timespec="seconds"),
            duration_s=round(self.spent_s, 3),
            **redacted_result(facts),
        )
        return Arm(
            name=self.request.name,
            slowdown=self.request.slowdown,
            result=result,
            ready_s=round(self.ready_s, 3),
            bound_threads=next((one["count"] for one in self.messages if one["event"] == "bound"), 0),
            waiting_cpu=round(self.waiting_cpu_s / self.waited_s, 4) if self.waited_s else 0.0,
            turns=tuple(self.turns),
        )


def floor_to_power(value: float) -> int:
    """The largest power of two that is not above `value`; 1 below it."""
    return int(2 ** math.floor(math.log2(max(1.0, value))))


def ceil_to_power(value: float) -> int:
    """The smallest power of two that is not below `value`; 1 below it."""
    return int(2 ** math.ceil(math.log2(max(1.0, value))))


def times_start(one: ArmRequest) -> bool:
    """Whether it loads and warms up alone: where that has not been timed before, and where memory is a device's."""
    return one.proves or one.times_first_call or one.block.cell.device != "cpu"


def start(one: ArmRequest, number: int, folder: Path) -> Seat:
    """A process that begins to load the arm's cell, for round `number` of its group; its log goes to `folder`."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    log = folder / f"{uuid4().hex}.log"
    process: ForkProcess | Spawned
    if one.python:
        process = Spawned(one.python, theirs, log)
        send(ours, {"request": one.model_dump_json()})
    else:
        process = context.Process(target=arm.serve, args=(theirs, one.model_dump_json(), str(log)))
        process.start()
    theirs.close()
    limit_s = one.block.cell.protocol.timeout_s
    seat = Seat(one, number, process, ours, log, kernel_oom_kills(), limit_s)
    seat.begin(None, "load")
    return seat
