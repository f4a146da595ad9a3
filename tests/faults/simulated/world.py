"""What a simulated run has in place of a machine: a clock, processes that take turns, work, and faults by a seed."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from greenlet import getcurrent, greenlet
from tests.faults.simulated.disk import Disk, Killed, broken, full

from claimbench.errors import ClaimbenchError
from claimbench.measuring.round_process import RoundRequest
from claimbench.schema.cell import Cell
from claimbench.schema.json_file import digest
from claimbench.schema.result import Result, Sample
from claimbench.schema.round import Arm, Round, Turns

NEW_TOKENS = 3
NOISE = 0.003
FULL_FOR = 12
"""Operations until somebody makes room."""
MOST_WAITS = 200_000


class Fault(NamedTuple):
    """One thing that goes wrong, at an operation of a process on the disk (`at` of `operations`), or at its work."""

    kind: str
    at: int
    of_work: bool = False


class Process:
    """A run of the workflow, from its start to its end or its death."""

    def __init__(self, name: str, faults: tuple[Fault, ...], body: Callable[[Process], int]) -> None:
        self.name, self.faults = name, faults
        self.is_dead = self.is_job_dead = False
        self.counts = {False: 0, True: 0}
        self.full_until = 0
        self.status: int | None = None
        self.body = body
        self.thread = greenlet(self._live)

    def _live(self) -> None:
        try:
            self.status = self.body(self)
        except Killed:
            self.is_dead = True

    def due(self, of_work: bool) -> list[str]:
        """Count on, and say what goes wrong here."""
        self.counts[of_work] += 1
        here = self.counts[of_work]
        return [fault.kind for fault in self.faults if fault.of_work == of_work and fault.at == here]


class World:
    """Everything that is not the product: it decides by `seed` alone, so that a seed says all that happens."""

    def __init__(self, seed: int, root: Path, truth: Truth) -> None:
        self.root, self.truth = root, truth
        self.chance = random.Random(f"world {seed}")  # noqa: S311 - faults, not secrets
        self.elapsed_s = 0.0
        self.set_back_s = 0.0
        self.asleep_s = 0.0
        self.tokens = 0
        self.disk = Disk(self.before, self.stamp)
        self.processes: list[Process] = []
        self.hub: greenlet = getcurrent()
        self.power_is_cut = False
        self.waits = 0
        self.happened: list[str] = []
        self.produced: list[Round] = []
        """Every round that was measured, in its order, whether it was written or not."""
        self.acknowledged: dict[Path, list[bytes]] = {}
        """Content of results and rounds whose writer was told that they are there, by their first path."""
        self.rotten: set[Path] = set()
        self.blocks: Counter[tuple[str, int]] = Counter()
        """Measurements of a block that ended in something to keep."""

    # Time.

    def monotonic(self) -> float:
        return self.elapsed_s

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.elapsed_s + self.asleep_s - self.set_back_s)

    def stamp(self) -> int:
        return int(self.now().timestamp() * 1e9)

    def pass_time(self, seconds: float) -> None:
        self.elapsed_s += seconds

    def token_hex(self, _: int) -> str:
        self.tokens += 1
        return f"{self.tokens:08x}"

    # Processes.

    @property
    def current(self) -> Process | None:
        return next((each for each in self.processes if each.thread is getcurrent()), None)

    def live(self, *processes: Process) -> None:
        """Let them run, in an order by chance, until each has ended or died."""
        self.processes, self.hub = list(processes), getcurrent()
        while alive := [each for each in self.processes if not each.thread.dead]:
            if self.power_is_cut:
                for each in alive:
                    each.is_dead = True
            self.chance.choice(alive).thread.switch()
        if self.power_is_cut:
            self.happened += [f"lost {lost}" for lost in self.disk.cut_power(self.chance)]
            self.power_is_cut = False
        self.processes = []

    def let_others(self) -> None:
        """Another process may go on here, and this one may be dead when its turn comes."""
        if len(self.processes) > 1:
            self.hub.switch()
        self._die_if_dead()

    def wait(self) -> None:
        self.waits += 1
        assert self.waits < MOST_WAITS, "processes wait for each other"
        assert len(self.processes) > 1, "it waits for itself"
        self.let_others()

    def _die_if_dead(self) -> None:
        process = self.current
        if process and (process.is_dead or process.is_job_dead):
            raise Killed

    # What goes wrong.

    def before(self, operation: str, path: Path) -> None:
        """Before each operation on the disk."""
        process = self.current
        if process is None:
            return
        self._die_if_dead()
        self.happened.append(f"{process.name} {operation} {path.relative_to(self.root)}")
        for kind in process.due(of_work=False):
            self._strike(process, kind, path)
        if process.counts[False] < process.full_until and operation in ("create", "write", "mkdir"):
            raise full(path)
        if self.chance.random() < 0.3:
            self.let_others()

    def work(self, seconds: float) -> list[str]:
        """Measure for so long; what went wrong meanwhile."""
        process = self.current
        assert process is not None
        self.let_others()
        found = process.due(of_work=True)
        for kind in found:
            self._strike(process, kind, self.root)
        self.pass_time(seconds)
        self.happened.append(f"{process.name} worked until {self.now().isoformat()}")
        self.let_others()
        return found

    def _strike(self, process: Process, kind: str, path: Path) -> None:
        self.happened.append(f"{process.name}: {kind}")
        if kind == "kill run":
            process.is_dead = True
        elif kind == "kill job":
            process.is_job_dead = True
        elif kind == "cut power":
            self.power_is_cut = True
            process.is_dead = True
        elif kind == "fill disk":
            process.full_until = process.counts[False] + FULL_FOR
        elif kind == "break disk":
            raise broken(path)
        elif kind == "set clock back":
            self.set_back_s += 86_400 * self.chance.random()
        elif kind == "set clock on":
            self.set_back_s -= 86_400 * self.chance.random()
        elif kind == "sleep":
            self.asleep_s += 3600.0
        self._die_if_dead()

    # What is measured.

    def measure_block(self, cell: Cell) -> dict[str, Any]:
        """Facts as a supervised worker gives them."""
        found = self.work(5.0)
        facts: dict[str, Any] = {"telemetry": {}, "flags": [], "warmup": [], "samples": []}
        if "kill worker" in found:
            return {**facts, "outcome": "error", "reason": "the worker was killed by SIGKILL", "passing": True}
        outcome = self.truth.outcome(cell)
        if outcome != "ok":
            return {**facts, "outcome": outcome, "reason": f"asked to be {outcome}"}
        samples = [self._sample(cell, 1.0).model_dump(mode="json") for _ in range(2)]
        return {**facts, "outcome": "ok", "samples": samples, "prompt_tokens": 4, "tokens": self._tokens(cell)}

    def measure_round(self, request: RoundRequest) -> Round:
        asleep_s = self.asleep_s
        found = self.work(0.0)
        if "kill round" in found:
            raise ClaimbenchError("the process of a round ended with status -9: it said nothing")
        started, drift = self.now(), 1 + 0.3 * self.chance.random()
        foreign = self.chance.choice([0.0, 0.0, 0.0, 0.2, 0.6])
        passes = max(2, request.passes)
        victim = self.chance.randrange(len(request.arms)) if "kill worker" in found else None
        arms = tuple(
            self._arm(arm, request, passes, drift, started, is_killed=number == victim)
            for number, arm in enumerate(request.arms)
        )
        self.pass_time(sum(arm.ready_s for arm in arms) + 5.0)
        record = Round(
            started_at=started.isoformat(timespec="seconds"),
            duration_s=60.0,
            number=request.number,
            group=request.group,
            seed=request.seed,
            passes=passes,
            in_company=request.in_company,
            protocol=request.protocol,
            arms=arms,
            conditions={"foreign_cpu": foreign, "slept_s": self.asleep_s - asleep_s},
        )
        self.work(0.0)
        self.produced.append(record)
        return record

    def _arm(
        self, arm: Any, request: RoundRequest, passes: int, drift: float, started: datetime, is_killed: bool
    ) -> Arm:
        cell = arm.block.cell
        outcome = "error" if is_killed else self.truth.outcome(cell)
        if outcome == "ok" and request.in_company and self.truth.is_crowded(cell):
            outcome = "oom"
        facts: dict[str, Any] = {"cell": cell, "block": request.number, "key": arm.key, "outcome": outcome}
        facts |= {"started_at": started.isoformat(timespec="seconds"), "duration_s": 12.0}
        if outcome != "ok":
            result = Result(**facts, reason=f"it was {outcome}", passing=is_killed)
            return Arm(name=arm.name, result=result, ready_s=12.0)
        samples = tuple(self._sample(cell, drift) for _ in range(passes))
        proof = {"seen": True} if arm.proves else {}
        result = Result(
            **facts, samples=samples, prompt_tokens=4, tokens=self._tokens(cell), proof=proof, load_ns=1_000_000
        )
        turns = tuple(Turns(number=number, places=(0,), begun_ns=0, ended_ns=1, samples=1) for number in range(passes))
        return Arm(name=arm.name, result=result, ready_s=12.0, turns=turns)

    def _sample(self, cell: Cell, drift: float) -> Sample:
        pace = self.truth.step_ms(cell) * 1e6 * drift
        steps = tuple(int(pace * (1 + self.chance.gauss(0, NOISE))) for _ in range(NEW_TOKENS))
        return Sample(
            wall_ns=sum(steps),
            step_ns=steps,
            step_tokens=(1,) * NEW_TOKENS,
            tokens_sha256=digest(self._tokens(cell), 64),
        )

    @staticmethod
    def _tokens(cell: Cell) -> tuple[int, ...]:
        return (cell.options.get("token", 1),) * NEW_TOKENS

    # What it all came to.

    def note_written(self, path: Path) -> None:
        content = path.read_bytes()
        self.acknowledged.setdefault(path.absolute(), []).append(content)
        self.happened.append(f"there: {path}")

    def rot(self) -> None:
        """Damage a result or a round that is there."""
        there = sorted(path for path in self.acknowledged if path.exists() and path not in self.rotten)
        if there:
            path = self.chance.choice(there)
            content = path.read_bytes()
            place = self.chance.randrange(len(content))
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            self.rotten.add(path)
            self.happened.append(f"rotten: {path.relative_to(self.root)} at {place}")

    def fingerprint(self) -> str:
        """Of all that happened, and of all files that are left."""
        found = hashlib.sha256("\n".join(self.happened).encode())
        for path in sorted(self.root.rglob("*")):
            if path.is_file():
                found.update(
                    f"{path.relative_to(self.root)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
                )
        return found.hexdigest()


class Truth:
    """What the cells of a study are like, which no file says."""

    def __init__(self, crowded: frozenset[str] = frozenset()) -> None:
        self.crowded = crowded

    def step_ms(self, cell: Cell) -> float:
        return float(cell.options.get("step_ms") or 10.0)

    def outcome(self, cell: Cell) -> str:
        return str(cell.options.get("fails") or "ok")

    def is_crowded(self, cell: Cell) -> bool:
        """Whether it lacks memory beside others."""
        return str(cell.options.get("row_ms")) in self.crowded
