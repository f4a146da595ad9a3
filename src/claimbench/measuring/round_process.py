"""Rounds, in a process that only imports and forks.

The arms of a round are loaded one after the other, then generate in turn, pass by pass.

1. It imports what the arms' backends need, once, and starts no thread and touches no device itself. Each arm is forked
   from it, so that a round pays for Python's and the libraries' start once.
2. Arms are loaded and warmed up one by one, in a random order, while the others wait.
3. In each pass every arm has one turn. The orders are rows of a Williams design, so that over the passes each arm comes
   at every place, and after every other arm, equally often: a cache or a clock that the last turn left favours no one.
   Two arms that do not fit in memory together (`in_company` false) are alone: the first, the second, and the first
   again, back to back (ABBA), so that a drift that is steady in between favours neither.
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
import statistics
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
from uuid import uuid4

import psutil
from pydantic import Field

from claimbench import backends
from claimbench.analysis import validity
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
GRACE_S = 5.0


class RoundRequest(Frozen):
    arms: tuple[ArmRequest, ...]
    passes: int = Field(ge=1, description="at most")
    fewest: int = Field(default=1, ge=1, description="and at least, where `turns_s` gives fewer")
    spares_slow: bool = False
    """An arm whose turn takes over twice the median one generates in every second pass only."""
    in_company: bool = True
    """False: of three arms, of which the last is the first once more, each is alone."""
    turns_s: float | None = Field(default=None, gt=0, description="for all turns together; None: whatever they take")
    seed: int
    number: int = 0
    """Of the round among those of its group."""
    group: str = ""
    protocol: str = ""


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
    begun: float = 0.0
    is_slow: bool = False

    @property
    def is_here(self) -> bool:
        return self.outcome is None

    @property
    def samples(self) -> int:
        return sum(message["event"] == "sample" for message in self.messages)

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
    def timed(self) -> list[Sample]:
        return [Sample.model_validate(one["sample"]) for one in self.messages if one["event"] == "sample"]

    @property
    def walls_s(self) -> list[float]:
        """Of each timed generation."""
        return [sample.wall_ns / 1e9 for sample in self.timed]

    @property
    def timed_s(self) -> float:
        return sum(self.walls_s)

    @property
    def first_excess(self) -> float:
        """By how much its first generation took longer than the median one."""
        walls_s = self.walls_s
        return walls_s[0] / statistics.median(walls_s) - 1

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

    def record(self, started: datetime, flags: Sequence[str]) -> Arm:
        """What it came to; `flags` are doubts about the whole round."""
        facts = facts_in(self.messages)
        if not _times_load(self.request) and "load_ns" in facts:
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
    sit = _sit_together if request.in_company else _sit_alone
    seats, passes, seen = sit(request, folder, begun_ns)
    conditions = {name: round(value, 4) for name, value in seen.items()}
    doubts = validity.sentences(conditions)
    _close([seat for seat in seats if seat.is_here])
    arms = [seat.record(started, doubts) for seat in seats]
    return Round(
        started_at=started.isoformat(timespec="seconds"),
        duration_s=round((time.perf_counter_ns() - begun_ns) / 1e9, 3),
        number=request.number,
        group=request.group,
        seed=request.seed,
        passes=passes,
        in_company=request.in_company,
        protocol=request.protocol,
        arms=tuple(arms),
        conditions=conditions,
        flags=tuple(doubts),
    )


def _sit_together(request: RoundRequest, folder: Path, begun_ns: int) -> tuple[list[Seat], int, dict[str, float]]:
    """All arms, loaded and warmed up, in turn: their seats, the passes, and what the machine was like."""
    shuffle = random.Random(request.seed)  # noqa: S311 - an order, not a secret
    seats: list[Seat] = []
    for some in _loaded_at_once(request.arms):
        new = [_start(one, request, folder) for one in some]
        for seat in new:
            seat.finish()
        seats += new
    for seat in shuffle.sample(seats, k=len(seats)):
        if seat.is_here:
            seat.call("warm up", "warm-up")
    ready = [seat for seat in seats if seat.is_here]
    _spare_slow(request, ready)
    passes = _passes(request, ready)
    around = _Around()
    for number, order in enumerate(orders(len(seats), passes, request.seed)):
        for place, which in enumerate(order):
            if seats[which].is_here and seats[which].has_turn(number, passes):
                _take_turn(seats, seats[which], number, place, begun_ns)
    return seats, passes, around.conditions(seats)


def _sit_alone(request: RoundRequest, folder: Path, begun_ns: int) -> tuple[list[Seat], int, dict[str, float]]:
    """ABBA: the first arm has the first half of the passes, then the second has all, then the first has the rest.

    The second's passes are as far from those that they are paired with on either side, on the whole.
    """
    seats: list[Seat] = []
    around = _Around()
    passes = max(2, request.passes)
    for place, one in enumerate(request.arms):
        seat = _start(one, request, folder)
        seat.finish()
        seats.append(seat)
        if seat.is_here:
            seat.call("warm up", "warm-up")
        if seat.is_here and place == 0 and request.turns_s:
            passes = max(2, request.fewest, min(passes, int(request.turns_s / (len(request.arms) * seat.turn_s))))
        middle = (passes + 1) // 2
        for number in (range(middle), range(passes), range(middle, passes))[place]:
            if seat.is_here:
                _take_turn(seats, seat, number, 0, begun_ns)
        if seat.is_here:
            seat.call("close", "end")
    return seats, passes, around.conditions(seats)


def _loaded_at_once(arms: Sequence[ArmRequest]) -> list[tuple[ArmRequest, ...]]:
    """Each alone while its load is timed; two at a time, on a CPU, where an earlier round has timed it."""
    found: list[tuple[ArmRequest, ...]] = []
    for one in arms:
        if found and len(found[-1]) == 1 and not _times_load(one) and not _times_load(found[-1][0]):
            found[-1] = (*found[-1], one)
        else:
            found.append((one,))
    return found


def _times_load(one: ArmRequest) -> bool:
    return one.proves or one.block.cell.device != "cpu"


def _start(one: ArmRequest, request: RoundRequest, folder: Path) -> Seat:
    """A process that begins to load the arm's cell."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    log = folder / f"{uuid4().hex}.log"
    process = context.Process(target=arm.serve, args=(theirs, one.model_dump_json(), str(log)))
    process.start()
    theirs.close()
    limit_s = one.block.cell.protocol.timeout_s
    seat = Seat(one, request.number, process, ours, log, kernel_oom_kills(), limit_s)
    seat.begin(None, "load")
    return seat


def _close(seats: Sequence[Seat]) -> None:
    """Have each prove what ran and end: nothing is timed any more, so two at a time on a CPU."""
    at_once = 2 if all(seat.request.block.cell.device == "cpu" for seat in seats) else 1
    for first in range(0, len(seats), at_once):
        for seat in seats[first : first + at_once]:
            seat.begin("close", "end")
        for seat in seats[first : first + at_once]:
            seat.finish()


def _spare_slow(request: RoundRequest, seats: Sequence[Seat]) -> None:
    if request.spares_slow and len(seats) > 1:
        usual_s = statistics.median(seat.turn_s for seat in seats)
        for seat in seats:
            seat.is_slow = seat.turn_s > 2 * usual_s


def _passes(request: RoundRequest, seats: Sequence[Seat]) -> int:
    """As many as fit in the time for turns, by the last warm-up of each arm."""
    if request.turns_s is None or not seats:
        return request.passes

    def takes_s(passes: int) -> float:
        return sum(seat.turns_in(passes) * seat.turn_s for seat in seats)

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


def _waiting_cpu(seats: Sequence[Seat]) -> float:
    """CPU time of all waiting arms together, as a share of the time of the one that generates."""
    taken = sum(turn.others_cpu_s for seat in seats for turn in seat.turns)
    timed = sum(seat.timed_s for seat in seats)
    return taken / timed if timed else 0.0


def _first_pass(seats: Sequence[Seat]) -> float:
    """How much longer the arms took in the first pass than later, in the median over those with three turns or more."""
    excess = [seat.first_excess for seat in seats if len(seat.turns) > 2]
    return statistics.median(excess) if excess else 0.0


class _Around:
    """The machine while the arms take turns."""

    def __init__(self) -> None:
        self.ticks, self.begun = machine.cpu_ticks(), time.perf_counter()
        self.awake, self.swapped = _asleep_s(), psutil.swap_memory().sin

    def conditions(self, seats: Sequence[Seat]) -> dict[str, float]:
        found = worker.neighbours(self.ticks, machine.cpu_ticks(), time.perf_counter() - self.begun)
        return found | {
            "waiting_cpu": _waiting_cpu(seats),
            "swapped_mb": (psutil.swap_memory().sin - self.swapped) / 1e6,
            "throttled": float(sum(seat.throttled for seat in seats)),
            "slept_s": max(0.0, _asleep_s() - self.awake),
            "first_pass": _first_pass(seats),
            "clock_gap": worker.clock_gap([sample for seat in seats for sample in seat.timed]),
        }


def _asleep_s() -> float:
    """Since the machine started: one clock goes on while it sleeps, the other does not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


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
