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
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import Field

from claimbench import backends
from claimbench.measuring import worker
from claimbench.measuring.arm import ArmRequest
from claimbench.measuring.seat import Seat, start, times_load
from claimbench.schema.cell import Frozen
from claimbench.schema.round import Round, Turn
from claimbench.system import machine
from claimbench.system.processes import die_with_parent


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


def run(request: RoundRequest, folder: Path) -> Round:
    """Measure one round; the arms' standard error goes to files in `folder`."""
    started, begun_ns = datetime.now(UTC), time.perf_counter_ns()
    _import_for(request.arms)
    sit = _sit_together if request.in_company else _sit_alone
    seats, passes, seen = sit(request, folder, begun_ns)
    _close([seat for seat in seats if seat.is_here])
    return Round(
        started_at=started.isoformat(timespec="seconds"),
        duration_s=round((time.perf_counter_ns() - begun_ns) / 1e9, 3),
        number=request.number,
        group=request.group,
        seed=request.seed,
        passes=passes,
        in_company=request.in_company,
        protocol=request.protocol,
        arms=tuple(seat.record(started) for seat in seats),
        conditions={name: round(value, 4) for name, value in seen.items()},
    )


def _sit_together(request: RoundRequest, folder: Path, begun_ns: int) -> tuple[list[Seat], int, dict[str, float]]:
    """All arms, loaded and warmed up, in turn: their seats, the passes, and what the machine was like."""
    shuffle = random.Random(request.seed)  # noqa: S311 - an order, not a secret
    seats: list[Seat] = []
    for some in _loaded_at_once(request.arms):
        new = [start(one, request.number, folder) for one in some]
        for seat in new:
            seat.finish()
        seats += new
    for seat in shuffle.sample(seats, k=len(seats)):
        if seat.is_here:
            seat.warm_up()
    ready = [seat for seat in seats if seat.is_here]
    _spare_slow(request, ready)
    passes = _passes(request, ready)
    around = _Around()
    for number, order in enumerate(orders(len(seats), passes, request.seed)):
        for place, which in enumerate(order):
            if seats[which].is_here and seats[which].has_turn(number, passes):
                _take_turn(seats, seats[which], number, place, begun_ns)
    return seats, passes, around.conditions(sum(seat.throttled for seat in seats))


def _sit_alone(request: RoundRequest, folder: Path, begun_ns: int) -> tuple[list[Seat], int, dict[str, float]]:
    """ABBA: the first arm has the first half of the passes, then the second has all, then the first has the rest.

    The second's passes are as far from those that they are paired with on either side, on the whole.
    """
    seats: list[Seat] = []
    around = _Around()
    passes = max(2, request.passes)
    for place, one in enumerate(request.arms):
        seat = start(one, request.number, folder)
        seat.finish()
        seats.append(seat)
        if seat.is_here:
            seat.warm_up()
        if seat.is_here and place == 0 and request.turns_s:
            passes = max(2, request.fewest, min(passes, int(request.turns_s / (len(request.arms) * seat.turn_s))))
        middle = (passes + 1) // 2
        for number in (range(middle), range(passes), range(middle, passes))[place]:
            if seat.is_here:
                _take_turn(seats, seat, number, 0, begun_ns)
        if seat.is_here:
            seat.call("close", "end")
    return seats, passes, around.conditions(sum(seat.throttled for seat in seats))


def _loaded_at_once(arms: Sequence[ArmRequest]) -> list[tuple[ArmRequest, ...]]:
    """Each alone while its load is timed; two at a time, on a CPU, where an earlier round has timed it."""
    found: list[tuple[ArmRequest, ...]] = []
    for one in arms:
        if found and len(found[-1]) == 1 and not times_load(one) and not times_load(found[-1][0]):
            found[-1] = (*found[-1], one)
        else:
            found.append((one,))
    return found


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


class _Around:
    """The machine while the arms take turns: numbers, of which analysis/validity.py says what follows."""

    def __init__(self) -> None:
        self.ticks, self.begun = machine.cpu_ticks(), time.perf_counter()
        self.asleep_s, self.swapped = _asleep_s(), psutil.swap_memory().sin

    def conditions(self, throttled: int) -> dict[str, float]:
        found = worker.neighbours(self.ticks, machine.cpu_ticks(), time.perf_counter() - self.begun)
        return found | {
            "swapped_mb": (psutil.swap_memory().sin - self.swapped) / 1e6,
            "throttled": float(throttled),
            "slept_s": max(0.0, _asleep_s() - self.asleep_s),
        }


def _asleep_s() -> float:
    """Since the machine started: one clock goes on while it sleeps, the other does not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def _import_for(arms: Sequence[ArmRequest]) -> None:
    """What the arms would import each for itself. Techniques' libraries may touch a GPU when they are imported.

    What cannot be imported is left to the arm that needs it: it fails alone, and says why.
    """
    for each in arms:
        cell, checkpoint = each.block.cell, each.block.checkpoint
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


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
