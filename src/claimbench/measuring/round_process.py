"""Rounds, in a process that only imports and forks.

The arms of a round are loaded one after the other, then generate in turn, pass by pass.

1. It imports what the arms' backends need, once, and starts no thread and touches no device itself. Each arm is forked
   from it, so that a round pays for Python's and the libraries' start once.
2. Arms are loaded and warmed up one by one, or two at a time where nothing about their start is timed.
3. In each pass every arm generates, once or more. A pass is cut into laps, and in each lap every arm has one turn: a
   part of a generation, which stands still until its next turn, or a whole one. So what is compared is spread over the
   same seconds, and a minute in which the machine is slow slows all arms alike. The orders of laps are rows of a
   Williams design, so that each arm comes at every place, and after every other arm, equally often: a cache or a clock
   that the last turn left favours no one.
   Two arms that do not fit in memory together (`in_company` false) are alone: the first, the second, and the first
   again, back to back (ABBA), so that a drift that is steady in between favours neither.
4. How many passes there are is fixed before the first: by whoever asks, or by the time that the turns may take and the
   last warm-up of each arm. Nothing here looks at what is timed.

An arm that fails, dies or hangs is ended and recorded, and the others go on. Each request comes as a line of JSON on
standard input, its round goes as a line to what was standard output; a round that is killed leaves nothing.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, NoReturn

import psutil
from pydantic import Field

from claimbench import backends
from claimbench.measuring import worker
from claimbench.measuring.arm import ArmRequest
from claimbench.measuring.gauge import Gauge, Rates
from claimbench.measuring.seat import Seat, Turn, floor_to_power, start, times_start
from claimbench.schema.cell import Device
from claimbench.schema.frozen import Frozen
from claimbench.schema.round import Round
from claimbench.system import machine
from claimbench.system.gpu_watch import GpuWatch
from claimbench.system.processes import die_with_parent
from claimbench.system.unread import Readings

TURN_S = 0.1
"""Of a usual arm. A shared machine changes its pace within a second: with turns of 0.1 s ratios varied from pass to
pass a quarter as much as with turns of 1.5 s, and half as much as with turns of 0.4 s."""
MOST_LAPS = 256


class RoundRequest(Frozen):
    arms: tuple[ArmRequest, ...]
    passes: int = Field(ge=1, description="at most")
    fewest: int = Field(default=1, ge=1, description="and at least, where `turns_s` gives fewer")
    spares_slow: bool = False
    """An arm that takes over twice the median time in a pass generates in every second pass only."""
    most_laps: int = Field(default=MOST_LAPS, ge=1, description="of a pass, a power of two")
    in_company: bool = True
    """False: of three arms, of which the last is the first once more, each is alone."""
    turns_s: float | None = Field(default=None, gt=0, description="for all turns together; None: whatever they take")
    seed: int
    number: int = 0
    """Of the round among those of its group."""
    group: str = ""
    protocol: str = ""


def orders(arms: int, laps: int, seed: int) -> list[list[int]]:
    """For each lap the order of the arms: rows of a Williams design, shuffled, used up before any comes again.

    With an even number of arms the design has as many rows, with an odd one twice as many (Williams 1949).
    """
    shuffle = random.Random(seed)  # noqa: S311 - an order, not a secret
    zigzag = [(place + 1) // 2 if place % 2 else (arms - place // 2) % arms for place in range(arms)]
    rows = [[(number + row) % arms for number in zigzag] for row in range(arms)]
    if arms % 2:
        rows += [row[::-1] for row in rows]
    named = shuffle.sample(range(arms), k=arms)
    found: list[list[int]] = []
    while len(found) < laps:
        found += [[named[number] for number in row] for row in shuffle.sample(rows, k=len(rows))]
    return found[:laps]


def run(request: RoundRequest, folder: Path) -> Round:
    """Measure one round; the arms' standard error goes to files in `folder`."""
    started, begun_ns = datetime.now(UTC), time.perf_counter_ns()
    _import_for(request.arms)
    sit = _sit_together if request.in_company else _sit_alone
    seats, passes, seen, unread, rates = sit(request, folder, begun_ns)
    for seat in seats:
        if seat.is_here:
            seat.call("close", "end")  # one at a time: with two, each would wait for the other's threads
    return Round(
        started_at=started.isoformat(timespec="seconds"),
        duration_s=round((time.perf_counter_ns() - begun_ns) / 1e9, 3),
        number=request.number,
        group=request.group,
        seed=request.seed,
        passes=passes,
        laps=max((seat.laps for seat in seats), default=1),
        in_company=request.in_company,
        protocol=request.protocol,
        arms=tuple(seat.record(started, unread) for seat in seats),
        rates=tuple({name: round(rate) for name, rate in each.items()} for each in rates if each),
        conditions={name: round(value, 4) for name, value in seen.items()},
    )


class Seating(NamedTuple):
    """A round whose turns are over."""

    seats: list[Seat]
    passes: int
    conditions: dict[str, float]
    """Of the machine meanwhile."""
    unread: dict[str, str]
    """Why a condition is absent, by its name."""
    rates: list[Rates] = []


def _sit_together(request: RoundRequest, folder: Path, begun_ns: int) -> Seating:
    """All arms, loaded and warmed up, in turn."""
    seats = _seated(request, folder)
    ready = [seat for seat in seats if seat.is_here]
    laps = _laps(request, ready)
    for seat in seats:
        seat.laps = laps
    _spare_slow(request, ready)
    passes = _passes(request, ready)
    rates: list[Rates] = []
    gauge = _gauge_for(ready)
    order = iter(orders(len(seats), passes * laps, request.seed))
    turns = _TurnGiver(seats, _device(request), begun_ns)
    for number in range(passes):
        if gauge:
            rates.append(gauge.read())
        sitting = [seat for seat in ready if seat.has_turn(number, passes)]
        for lap in range(laps):
            for place, which in enumerate(next(order)):
                if seats[which] in sitting and seats[which].has_lap(lap):
                    turns.give(seats[which], number, place, watches=lap == 0)
        turns.end_pass(number)
    if gauge:
        gauge.end()
    return Seating(seats, passes, turns.conditions(), turns.readings.unread, rates)


def _sit_alone(request: RoundRequest, folder: Path, begun_ns: int) -> Seating:
    """ABBA: the first arm has the first half of the passes, then the second has all, then the first has the rest.

    The second's passes are as far from those that they are paired with on either side, on the whole.
    """
    seats: list[Seat] = []
    turns = _TurnGiver(seats, _device(request), begun_ns)
    passes = max(2, request.passes)
    for place, one in enumerate(request.arms):
        seat = start(one, request.number, folder)
        seat.finish()
        seats.append(seat)
        if seat.is_here:
            seat.call("warm up", "warm-up")
        seat.note_ready(seat.spent_s)
        if seat.is_here and place == 0 and request.turns_s:
            passes = max(2, request.fewest, min(passes, int(request.turns_s / (len(request.arms) * seat.pass_s))))
        middle = (passes + 1) // 2
        for number in (range(middle), range(passes), range(middle, passes))[place]:
            turns.give(seat, number, 0, watches=True)
            turns.end_pass(number)
        if seat.is_here:
            seat.call("close", "end")
    return Seating(seats, passes, turns.conditions(), turns.readings.unread)


def _device(request: RoundRequest) -> Device:
    return request.arms[0].block.cell.device


def _seated(request: RoundRequest, folder: Path) -> list[Seat]:
    """All arms, loaded and warmed up, those that start together at the same time."""
    seats: dict[int, Seat] = {}
    for some in _starting_together(request.arms):
        begun = time.monotonic()
        new = {number: start(request.arms[number], request.number, folder) for number in some}
        for seat in new.values():
            seat.finish()
        for seat in new.values():
            if seat.is_here:
                seat.begin("warm up", "warm-up")
        for seat in new.values():
            if seat.is_here:
                seat.finish()
            seat.note_ready((time.monotonic() - begun) / len(new))
        seats |= new
    return [seats[number] for number in range(len(request.arms))]


def _starting_together(arms: Sequence[ArmRequest]) -> list[tuple[int, ...]]:
    """Numbers of arms. Each starts alone where something about its start is timed; the others two at a time, on a CPU.

    Those that take longest are with each other: a start is Python's work for the most part, on one core.
    """
    alone = [number for number, one in enumerate(arms) if times_start(one)]
    others = [number for number in range(len(arms)) if number not in alone]
    others.sort(key=lambda number: arms[number].ready_s or 0.0, reverse=True)
    pairs = [tuple(others[first : first + 2]) for first in range(0, len(others), 2)]
    return [*((number,) for number in alone), *pairs]


def _gauge_for(seats: Sequence[Seat]) -> Gauge | None:
    """None where no arm reads weights."""
    cells = [seat.request.block.cell for seat in seats if backends.find(seat.request.block.cell.backend).LIBRARIES]
    return Gauge(cells[0].device, list(dict.fromkeys(cell.dtype for cell in cells))) if cells else None


def _laps(request: RoundRequest, seats: Sequence[Seat]) -> int:
    """Of a pass, a power of two: the turn of a usual arm takes `TURN_S`, as far as generations can be cut."""
    if not seats:
        return 1
    usual_s = statistics.median(seat.generation_s for seat in seats)
    return min(request.most_laps, floor_to_power(usual_s / TURN_S), max(seat.most_parts for seat in seats))


def _spare_slow(request: RoundRequest, seats: Sequence[Seat]) -> None:
    if request.spares_slow and len(seats) > 1:
        usual_s = statistics.median(seat.pass_s for seat in seats)
        for seat in seats:
            seat.is_slow = seat.pass_s > 2 * usual_s


def _passes(request: RoundRequest, seats: Sequence[Seat]) -> int:
    """As many as fit in the time for turns, by the last warm-up of each arm."""
    if request.turns_s is None or not seats:
        return request.passes

    def takes_s(passes: int) -> float:
        return sum(seat.turns_in(passes) * seat.pass_s for seat in seats)

    fitting = (passes for passes in range(request.passes, request.fewest, -1) if takes_s(passes) <= request.turns_s)
    return next(fitting, min(request.fewest, request.passes))


class _TurnGiver:
    """Gives turns to seats, and notes what the machine is like meanwhile; analysis/validity.py says what follows."""

    def __init__(self, seats: Sequence[Seat], device: Device, begun_ns: int) -> None:
        self.seats, self.begun_ns = seats, begun_ns
        self.given: dict[int, list[Turn]] = {}
        """In this pass, by the process."""
        self.readings = Readings()
        self.ticks, self.begun = machine.cpu_ticks(), time.perf_counter()
        self.asleep_s, self.swapped = self.readings.read("slept_s", _asleep_s), self._swapped()
        own = [process.pid for seat in seats for process in seat.family]
        self.watch = self.readings.read("gpu", lambda: GpuWatch(own)) if device == "cuda" else None

    def give(self, seat: Seat, number: int, place: int, watches: bool) -> None:
        """Have it compute until its turn is over, unless it has ended.

        `watches`: whether the others do nothing meanwhile is looked up, which takes milliseconds. A machine that idles
        for so long may take as long to wake, which would count as the next arm's time.
        """
        if not seat.is_here:
            return
        before = self._cpu_s(seat) if watches else {}
        begun_ns = time.perf_counter_ns()
        seat.turn(number)
        ended_ns = time.perf_counter_ns()
        turn = Turn(place, begun_ns - self.begun_ns, ended_ns - self.begun_ns)
        self.given.setdefault(seat.pid, []).append(turn)
        if watches:
            after = self._cpu_s(seat)
            for other in self.seats:
                if other.pid in before and other.pid in after:
                    other.waiting_cpu_s += after[other.pid] - before[other.pid]
                    other.waited_s += (ended_ns - begun_ns) / 1e9

    def end_pass(self, number: int) -> None:
        for seat in self.seats:
            seat.note_pass(number, self.given.pop(seat.pid, []))

    def conditions(self) -> dict[str, float]:
        """Those that can be read; `unread` then says of the others why."""
        ticks, swapped, asleep_s = machine.cpu_ticks(), self._swapped(), self.readings.read("slept_s", _asleep_s)
        found = worker.neighbours(self.ticks, ticks, time.perf_counter() - self.begun)
        self.readings.unread |= self.ticks["unread"] | ticks["unread"]
        if self.swapped is not None and swapped is not None:
            found["swapped_mb"] = (swapped - self.swapped) / 1e6
        if self.asleep_s is not None and asleep_s is not None:
            found["slept_s"] = max(0.0, asleep_s - self.asleep_s)
        return found | (worker.of_gpu(self.watch.end()) if self.watch else {})

    def _swapped(self) -> int | None:
        """Bytes that came back from disk, since the machine started."""
        return self.readings.read("swapped_mb", lambda: int(psutil.swap_memory().sin))

    def _cpu_s(self, computes: Seat) -> dict[int, float]:
        """CPU time that each of the other arms has taken."""
        return {seat.pid: seat.cpu_s() for seat in self.seats if seat.is_here and seat is not computes}


def _asleep_s() -> float:
    """Since the machine started: one clock goes on while it sleeps, the other does not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def _import_for(arms: Sequence[ArmRequest]) -> None:
    """What the arms that are forked would import each for itself.

    Techniques' libraries may touch a GPU when they are imported. What cannot be imported is left to the arm that needs
    it: it fails alone, and says why.
    """
    for each in arms:
        cell, checkpoint = each.block.cell, each.block.checkpoint
        if each.python or backends.launch(cell):
            continue
        with suppress(Exception):
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


def leave() -> NoReturn:
    """Serve, and end with all arms: Python would wait for them, and they wait for their next turn."""
    status = 1
    try:
        status = main()
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave()
