"""Rounds, in a process that only imports and forks.

The arms of a round are loaded one after the other, then generate in turn, pass by pass.

1. It imports what the arms' backends need, once, and starts no thread and touches no device itself. Each arm is forked
   from it, so that a round pays for Python's and the libraries' start once.
2. Arms are loaded and warmed up one by one, in a random order, while the others wait.
3. In each pass every arm has one turn. The orders are rows of a Williams design, so that over the passes each arm comes
   at every place, and after every other arm, equally often: a cache or a clock that the last turn left favours no one.
4. How many passes there are is fixed before the first: by whoever asks, or by the time that the turns may take and the
   last warm-up of each arm. Nothing here looks at what is timed.

An arm that fails, dies or hangs is ended and recorded, and the others go on. Each request comes as a line of JSON on
standard input, its round goes as a line to what was standard output; a round that is killed leaves nothing.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

import psutil
from pydantic import Field

from claimbench import backends
from claimbench.measuring import arm, worker
from claimbench.measuring.arm import ArmRequest
from claimbench.measuring.messages import Message
from claimbench.measuring.rank_protocol import receive, send
from claimbench.measuring.supervisor import facts_in, kernel_oom_kills
from claimbench.schema.cell import Frozen
from claimbench.schema.outcome import Outcome
from claimbench.schema.result import Result, Sample
from claimbench.schema.round import Arm, Round, Turn
from claimbench.system import machine
from claimbench.system.processes import die_with_parent, kill_all

SHORTEST_TURN_S = 0.25
"""A faster cell generates several times when it is its turn: a turn is to be longer than the scheduler's noise."""
MOST_GENERATIONS = 16
IDLE_SHARE = 0.02
"""CPU time of all waiting arms together, as a share of the time of the one that generates."""
GRACE_S = 5.0


class RoundRequest(Frozen):
    arms: tuple[ArmRequest, ...]
    passes: int = Field(ge=1, description="at most")
    fewest: int = Field(default=1, ge=1, description="and at least, where `turns_s` gives fewer")
    turns_s: float | None = Field(default=None, gt=0, description="for all turns together; None: whatever they take")
    seed: int
    number: int = 0
    """Of the round among those of its group."""
    group: str = ""


def orders(arms: int, passes: int, seed: int) -> list[list[int]]:
    """For each pass the order of the arms: rows of a Williams design, shuffled, used up before any comes again.

    With an even number of arms the design has as many rows, with an odd one twice as many (Williams 1949).
    """
    shuffle = random.Random(seed)  # noqa: S311 - an order, not a secret
    zigzag = [(place + 1) // 2 if place % 2 else (arms - place // 2) % arms for place in range(arms)]
    rows = [[(number + row) % arms for number in zigzag] for row in range(arms)]
    if arms % 2:
        rows += [row[::-1] for row in rows]
    named = shuffle.sample(range(arms), k=arms)
    found: list[list[int]] = []
    while len(found) < passes:
        found += [[named[number] for number in row] for row in shuffle.sample(rows, k=len(rows))]
    return found[:passes]


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

    @property
    def is_here(self) -> bool:
        return self.outcome is None

    @property
    def samples(self) -> int:
        return sum(message["event"] == "sample" for message in self.messages)

    @cached_property
    def generation_s(self) -> float:
        """Of the last warm-up."""
        last = next(message for message in reversed(self.messages) if message["event"] == "warmup")
        return max(Sample.model_validate(last["sample"]).wall_ns / 1e9, 1e-4)

    @property
    def generations(self) -> int:
        """In one turn."""
        return max(1, min(MOST_GENERATIONS, math.ceil(SHORTEST_TURN_S / self.generation_s)))

    def has_turn(self, number: int, passes: int) -> bool:
        """Whether it generates in this pass of `passes`: its turns are spread evenly, the first in the first pass."""
        turns = min(self.request.turns or passes, passes)
        return number * turns // passes != (number - 1) * turns // passes

    def call(self, call: str | None, phase: str, **arguments: object) -> None:
        """Have it do something, and listen until it is ready; what goes wrong becomes its outcome."""
        self.phase = phase
        begun = time.monotonic()
        try:
            if call:
                send(self.line, {"call": call, **arguments})
            self._listen(begun + self.left_s)
        except (EOFError, OSError):
            self._died()
        except Ended as end:
            self.end(end.outcome, str(end))
        took = time.monotonic() - begun
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

    def record(self, started: datetime, flags: Sequence[str]) -> Arm:
        """What it came to; `flags` are doubts about the whole round."""
        facts = facts_in(self.messages)
        outcome, reason = self.outcome or Outcome.ERROR, self.reason
        hashes = {one["tokens_sha256"] for one in (*facts["warmup"], *facts["samples"])}
        if outcome == Outcome.OK and len(hashes) > 1:
            outcome, reason = Outcome.WRONG, "generations of one round, warm-up included, differ in their tokens"
        lines = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        facts |= {
            "outcome": outcome,
            "reason": reason,
            "detail": None if outcome == Outcome.OK else lines[-4000:] or None,
            "flags": [*facts["flags"], *flags],
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
        return Arm(name=self.request.name, slowdown=self.request.slowdown, result=result, turns=tuple(self.turns))


def run(request: RoundRequest, folder: Path) -> Round:
    """Measure one round; the arms' standard error goes to files in `folder`."""
    started, begun_ns = datetime.now(UTC), time.perf_counter_ns()
    _import_for(request.arms)
    context = multiprocessing.get_context("fork")
    shuffle = random.Random(request.seed)  # noqa: S311 - an order, not a secret
    seats: list[Seat] = []
    for one in request.arms:
        ours, theirs = context.Pipe()
        log = folder / f"{len(seats)}.log"
        process = context.Process(target=arm.serve, args=(theirs, one.model_dump_json(), str(log)))
        process.start()
        theirs.close()
        limit_s = one.block.cell.protocol.timeout_s
        seats.append(Seat(one, request.number, process, ours, log, kernel_oom_kills(), limit_s))
        seats[-1].call(None, "load")
    for seat in shuffle.sample(seats, k=len(seats)):
        if seat.is_here:
            seat.call("warm up", "warm-up")
    passes = _passes(request, [seat for seat in seats if seat.is_here])
    ticks, turns_begun = machine.cpu_ticks(), time.perf_counter()
    for number, order in enumerate(orders(len(seats), passes, request.seed)):
        for place, which in enumerate(order):
            if seats[which].is_here and seats[which].has_turn(number, passes):
                _take_turn(seats, seats[which], number, place, begun_ns)
    doubts = worker.doubts(ticks, machine.cpu_ticks(), time.perf_counter() - turns_begun)
    for seat in seats:
        if seat.is_here:
            seat.call("close", "end")
    arms = [seat.record(started, doubts) for seat in seats]
    return Round(
        started_at=started.isoformat(timespec="seconds"),
        duration_s=round((time.perf_counter_ns() - begun_ns) / 1e9, 3),
        number=request.number,
        group=request.group,
        seed=request.seed,
        passes=passes,
        arms=tuple(arms),
        flags=(*doubts, *_idle_doubts(arms)),
    )


def _passes(request: RoundRequest, seats: Sequence[Seat]) -> int:
    """As many as fit in the time for turns, by the last warm-up of each arm."""
    if request.turns_s is None or not seats:
        return request.passes
    turns = [(seat.request.turns, seat.generations * seat.generation_s) for seat in seats]

    def takes_s(passes: int) -> float:
        return sum(min(most or passes, passes) * turn_s for most, turn_s in turns)

    fitting = (passes for passes in range(request.passes, request.fewest, -1) if takes_s(passes) <= request.turns_s)
    return next(fitting, min(request.fewest, request.passes))


def _take_turn(seats: list[Seat], seat: Seat, number: int, place: int, begun_ns: int) -> None:
    others = [one for one in seats if one is not seat and one.is_here]
    idle_before, before = sum(one.cpu_s() for one in others), seat.samples
    at_ns = time.perf_counter_ns() - begun_ns
    seat.call("turn", f"pass {number + 1}", generations=seat.generations)
    if seat.samples > before:
        taken = round(max(0.0, sum(one.cpu_s() for one in others) - idle_before), 3)
        turn = Turn(number=number, place=place, begun_ns=at_ns, samples=seat.samples - before, others_cpu_s=taken)
        seat.turns.append(turn)


def _idle_doubts(arms: Sequence[Arm]) -> list[str]:
    taken = sum(turn.others_cpu_s for one in arms for turn in one.turns)
    timed = sum(sample.wall_ns for one in arms for sample in one.result.samples) / 1e9
    if timed and taken > IDLE_SHARE * timed:
        return [f"arms that waited took {taken / timed:.0%} of a core while others generated"]
    return []


def _import_for(arms: Sequence[ArmRequest]) -> None:
    """What the arms would import each for itself. Techniques' libraries may touch a GPU when they are imported."""
    for each in arms:
        cell, checkpoint = each.block.cell, each.block.checkpoint
        if cell.device == "cpu":
            backends.import_libraries(cell, checkpoint)
        else:
            backends.import_model_classes(cell.backend, checkpoint)
    gc.freeze()  # the arms share these objects, and a collection would write to each of them


def main() -> int:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    die_with_parent()
    for line in sys.stdin:
        with tempfile.TemporaryDirectory(prefix="round-") as folder:
            record = run(RoundRequest.model_validate_json(line), Path(folder))
        channel.write(record.model_dump_json() + "\n")
        channel.flush()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
