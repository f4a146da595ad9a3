"""Whole runs of plan, measure, aggregate and judge with faults by a seed, and what must hold whatever went wrong.

The commands of the product run as they are, called in this process. In their place stand in only what they stand on:
the system's calls of durable.py (disk.py), the clocks, the machine, what measures (world.py), and Snakemake, which is
`Workflow` here: it knows which files are missing, older than what they are made of, or marked incomplete, deletes what
a job declares before it runs it, and goes on with what does not depend on a job that failed.

A seed is a study, some runs in which things go wrong, one after the other or two at once, and a last one in which
nothing does. `python -m tests.faults.simulated.run SEED` says what happens.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from tests.faults.simulated import oracle
from tests.faults.simulated.disk import Killed, Locks
from tests.faults.simulated.world import Fault, Process, Truth, World

from claimbench.__main__ import main
from claimbench.analysis import table_file
from claimbench.deciding import decide, round_files
from claimbench.judging import judge
from claimbench.judging.recommend import Advice
from claimbench.measuring import measure, rounds
from claimbench.planning import target_machine
from claimbench.planning.paths import ceilings_path
from claimbench.planning.plan import make_plan, order
from claimbench.schema import ceilings, durable, verdicts
from claimbench.schema import result as result_file
from claimbench.schema import round as round_file
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.json_file import canonical_json
from claimbench.schema.params import load_params
from claimbench.schema.plan import RESULTS, Plan
from claimbench.schema.study import Study
from claimbench.schema.validation import parse_yaml, validate
from claimbench.system import machine, turns
from claimbench.workflow import jobs, tidy
from claimbench.workflow.another_try import make_way

MACHINE: dict[str, Any] = {"key": "simulated", "cpu": {"model": "None @ 1 GHz", "cores": 1}, "gpus": [], "memory_gb": 8}
HEAD = """
title: Simulated
document: {title: A document}
prompts: {story: Once upon a time}
defaults: {checkpoint: small, prompt: story, backend: null_model, new_tokens: 3}
"""
CLEAR = """
experiments:
  pace:
    question: q
    cells: {plain: {}, half: {options: {step_ms: 20}}}
claims:
- {id: slower, kind: ratio, statement: s, checks: [
    {kind: ratio, metric: decode_tok_s, of: pace/half, to: pace/plain, expect: below}]}
- {id: faster, kind: ratio, statement: s, checks: [
    {kind: ratio, metric: decode_tok_s, of: pace/half, to: pace/plain, expect: above}]}
- {id: alike, kind: identity, statement: s, checks: [{kind: identity, of: pace/half, to: pace/plain}]}
"""
NEAR = """
experiments:
  pace:
    question: q
    cells: {plain: {}, near: {options: {step_ms: 11.5}}, other: {options: {token: 2, step_ms: 5}}}
claims:
- {id: slower, kind: ratio, statement: s, checks: [
    {kind: ratio, metric: decode_tok_s, of: pace/near, to: pace/plain, expect: below}]}
- {id: alike, kind: identity, statement: s, checks: [{kind: identity, of: pace/other, to: pace/plain}]}
"""
BLOCKS = """
experiments:
  pace:
    question: q
    cells: {plain: {}, half: {options: {step_ms: 20}}, fails: {options: {fails: oom}}}
claims:
- {id: slower, kind: ratio, statement: s, checks: [
    {kind: ratio, metric: decode_tok_s, of: pace/half, to: pace/plain, expect: below}]}
- {id: fits, kind: outcome, statement: s, checks: [{kind: outcome, of: pace/fails, expect: oom}]}
"""
MIXED = """
experiments:
  pace:
    question: q
    cells: {plain: {}, big: {options: {step_ms: 20, row_ms: 7}}, gone: {options: {fails: unavailable}}}
  alone:
    question: q
    cells: {cold: {page_cache: cold, options: {step_ms: 30}}}
claims:
- {id: slower, kind: ratio, statement: s, checks: [
    {kind: ratio, metric: decode_tok_s, of: pace/big, to: pace/plain, expect: below}]}
- {id: runs, kind: outcome, statement: s, checks: [{kind: outcome, of: alone/cold, expect: ok}]}
- {id: lacks, kind: outcome, statement: s, checks: [{kind: outcome, of: pace/gone, expect: unavailable}]}
"""


class Setting(NamedTuple):
    study: str
    budget_minutes: float | None
    truth: Truth = Truth()


SETTINGS = {
    "clear": Setting(CLEAR, 4),
    "near": Setting(NEAR, 6),
    "blocks": Setting(BLOCKS, None),
    "mixed": Setting(MIXED, 5, Truth(crowded=frozenset({"7"}))),
}


@cache
def plan_of(name: str) -> Plan:
    setting = SETTINGS[name]
    budget = {"budget_minutes": setting.budget_minutes} if setting.budget_minutes else {}
    params = {
        "studies": ["study"],
        "checkpoints": {"small": {"source": "random://smollm2-135m?seed=0", "architecture": "smollm2-135m"}},
        "measure": {"blocks": 2, "samples": 2, **budget},
    }
    study = validate(Study, parse_yaml(HEAD + setting.study, "study"), "study")
    return make_plan(load_params(params), {"study": study}, MACHINE, "cpu")


LIMITS = Ceilings(device="cpu", machine=MACHINE["key"], read_bytes_per_s=1e12, matmul_flops_per_s={"float32": 1e14})


class Job(NamedTuple):
    name: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    run: Callable[[], int]
    updates: bool = False
    """Its outputs are not deleted before it runs."""


class Workflow:
    """Snakemake, as far as the product leans on it; its settings are those of profiles/default."""

    def __init__(self, plan: Plan, world: World, incomplete: set[str]) -> None:
        self.plan, self.world, self.incomplete = plan, world, incomplete
        self.plan_json = str(RESULTS / "plan" / f"{plan.seal[:12]}.json")
        self.decided = str(RESULTS / "decided" / f"{plan.seal[:12]}.json") if plan.groups else None
        self.limits = str(ceilings_path(plan))

    def run(self, process: Process) -> int:
        """`snakemake --cores all`."""
        try:
            make_way(self.plan, Path(self.decided) if self.decided else None, self.world.happened.append)
        except OSError:
            return 1
        waiting = self.needed()
        failed: set[str] = set()
        for job in waiting:
            if failed & set(job.inputs) or not self._done(job, process):
                failed |= set(job.outputs)
        return 1 if failed else 0

    def needed(self) -> list[Job]:
        """What is missing, incomplete or older than what it is made of, or is made of such."""
        found: list[Job] = []
        made: set[str] = set()
        for job in self.jobs():
            if (
                any(not Path(one).exists() or one in self.incomplete for one in job.outputs)
                or made & set(job.inputs)
                or self._is_older(job)
            ):
                found.append(job)
                made |= set(job.outputs)
        return found

    @staticmethod
    def _is_older(job: Job) -> bool:
        oldest = min(Path(one).stat().st_mtime_ns for one in job.outputs)
        return any(Path(one).exists() and Path(one).stat().st_mtime_ns > oldest for one in job.inputs)

    def _done(self, job: Job, process: Process) -> bool:
        self.incomplete |= set(job.outputs)
        if not job.updates:
            for each in job.outputs:
                Path(each).unlink(missing_ok=True)
        try:
            for each in job.outputs:
                durable.make_folder(Path(each).parent)
            status = job.run()
        except Killed:
            if process.is_dead:
                raise
            process.is_job_dead, status = False, -9
        except OSError as error:
            status = f"a traceback: {error}"
        self.world.happened.append(f"{process.name}: {job.name} ended {status}")
        if status != 0 or not all(Path(each).exists() for each in job.outputs):
            return False
        for each in job.outputs:
            os.utime(each, ns=(self.world.stamp(), self.world.stamp()))
        if self._is_older(job):
            self.world.happened.append("older modification time than input")
            return False
        self.incomplete -= set(job.outputs)
        return True

    def jobs(self) -> list[Job]:
        plan, ask = self.plan, self._ask
        results = {}
        for id, block in order(plan):
            path = plan.cells[id].paths()[block]
            results[path] = Job(f"measure {id} {block}", (path,), (), self._measure(id, block, path), updates=True)
        several = (*results, *filter(None, [self.decided]))
        table = (str(RESULTS / "table.parquet"), str(RESULTS / "table.csv"))
        judged = str(RESULTS / "verdicts.json")
        with_rounds = ["--rounds", self.decided] if self.decided else []
        digest = ["--params", "{}", "--studies", ".", "--digest", plan.seal]
        found = [
            Job("plan", (self.plan_json,), (), ask("plan", *digest, "--output", self.plan_json)),
            Job("ceiling", (self.limits,), (), self._measure_ceilings),
            *results.values(),
        ]
        if self.decided:
            folder = str(round_files.ROUNDS)
            command = ask("rounds", "--plan", self.plan_json, "--folder", folder, "--output", self.decided)
            found.append(Job("rounds", (self.decided,), (self.plan_json,), command, updates=True))
        made = ["--plan", self.plan_json, "--ceilings", self.limits, *with_rounds]
        written = ["--parquet", table[0], "--csv", table[1]]
        found.append(
            Job("aggregate", table, (*several, self.plan_json, self.limits), ask("aggregate", *made, *written))
        )
        command = ask("judge", "--plan", self.plan_json, "--table", table[0], "--output", judged)
        return [*found, Job("judge", (judged,), (table[0], self.plan_json), command)]

    @staticmethod
    def _ask(*arguments: str) -> Callable[[], int]:
        return lambda: main(list(arguments))

    def _measure(self, id: str, block: int, path: str) -> Callable[[], int]:
        planned = self.plan.cells[id]
        cell = canonical_json(planned.cell.model_dump(mode="json"))
        key = canonical_json(planned.key.model_dump(mode="json"))
        flags = ["--cell", cell, "--key", key, "--block", str(block), "--plan", self.plan_json, "--output", path]
        return self._ask("measure", *flags)

    def _measure_ceilings(self) -> int:
        self.world.work(10.0)
        ceilings.write(Path(self.limits), LIMITS)
        return 0


class Running:
    """In place of the process that rounds are forked from."""

    world: World

    def __init__(self, python: str, cell: Any) -> None:
        self.started_for = (cell.protocol.threads, None)

    def ask(self, request: Any, limit_s: float) -> str:
        return self.world.measure_round(request).model_dump_json()

    def end(self) -> None:
        """Nothing was started."""


@contextlib.contextmanager
def standing_in(world: World, plan: Plan) -> Iterator[None]:
    """The product on simulated ground. What a summary of cells needs is left out: it takes most of a second."""

    class Clock(datetime):
        @classmethod
        def now(cls, _: Any = None) -> Any:
            return world.now()

    def block(request: Any, _: str) -> dict[str, Any]:
        return world.measure_block(request.cell)

    def noted(write: Callable[[Path, Any], None]) -> Callable[[Path, Any], None]:
        def writes(path: Path, record: Any) -> None:
            write(path, record)
            world.note_written(path)

        return writes

    clock = SimpleNamespace(monotonic=world.monotonic)
    locks = Locks(world.wait)
    with contextlib.ExitStack() as stack:

        def put(where: Any, name: str, what: Any) -> None:
            stack.enter_context(mock.patch.object(where, name, what))

        put(durable, "os", world.disk.stand_in())
        put(durable, "fcntl", locks)
        put(durable, "secrets", SimpleNamespace(token_hex=world.token_hex))
        put(turns, "fcntl", locks)
        for module in (decide, measure):
            put(module, "time", clock)
        for module in (round_files, measure):
            put(module, "datetime", Clock)
        put(rounds, "time", clock)
        put(tidy, "time", SimpleNamespace(time=lambda: world.now().timestamp()))
        put(rounds, "_Running", type("Running", (Running,), {"world": world}))
        for module in (measure, rounds):
            put(module, "expect_unchanged", lambda _: None)
        put(measure, "supervise", block)
        put(machine, "identify", lambda: MACHINE)
        put(machine, "telemetry", lambda _: {})
        put(jobs, "plan_for", lambda *_: plan)
        put(target_machine, "expect_here", lambda _: None)
        put(result_file, "write", noted(result_file.write))
        put(result_file, "write_new", noted(result_file.write_new))
        put(round_file, "write_new", noted(round_file.write_new))
        put(judge, "summarise", lambda *_: {})
        put(judge, "advise", lambda *_: Advice((), ()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(mock.patch.dict(os.environ, {turns.VARIABLE: str(world.root / "locks")}))
        yield


class Scenario(NamedTuple):
    """What a seed asks for: a setting, and for each step the faults of one run or of two at once."""

    setting: str
    steps: tuple[tuple[tuple[Fault, ...], ...], ...]
    rots: tuple[int, ...] = ()
    """After which steps a file is damaged."""


KINDS = ("kill run", "kill job", "cut power", "fill disk", "break disk", "set clock back", "set clock on")
AT_WORK = ("kill run", "kill job", "cut power", "kill worker", "kill worker", "kill round", "sleep", "set clock back")


def scenario(seed: int) -> Scenario:
    chance = random.Random(f"scenario {seed}")  # noqa: S311 - faults, not secrets
    steps = []
    for _ in range(chance.choice([1, 1, 2, 3])):
        runs = []
        for _ in range(chance.choice([1, 1, 1, 2])):
            faults = [
                Fault(chance.choice(AT_WORK), chance.randint(1, 8), of_work=True)
                if chance.random() < 0.4
                else Fault(chance.choice(KINDS), chance.randint(1, 90))
                for _ in range(chance.randint(0, 3))
            ]
            runs.append(tuple(faults))
        steps.append(tuple(runs))
    rots = tuple(number for number in range(len(steps)) if chance.random() < 0.1)
    return Scenario(chance.choice(sorted(SETTINGS)), tuple(steps), rots)


class Ending(NamedTuple):
    """How a scenario ended, for whoever compares."""

    fingerprint: str
    happened: list[str]
    operations: int
    """On the disk, by the first process."""


def simulate(seed: int, asked: Scenario | None = None) -> Ending:
    """Run a seed's scenario, or `asked`, to its end, and check what must hold.

    Raises:
        AssertionError: it does not hold; the message has the seed.
    """
    wanted = asked or scenario(seed)
    plan = plan_of(wanted.setting)
    before = Path.cwd()
    root = Path(tempfile.mkdtemp(prefix="simulated-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    world = World(seed, root, SETTINGS[wanted.setting].truth)
    (root / "locks").mkdir()
    os.chdir(root)
    try:
        with standing_in(world, plan):
            operations = _live(wanted, world, plan)
            check(world, plan)
        return Ending(world.fingerprint(), world.happened, operations)
    except (AssertionError, Exception) as error:
        raise AssertionError(
            f"seed {seed}, {wanted}: {type(error).__name__}: {error}\n" + "\n".join(world.happened[-60:])
        ) from error
    finally:
        os.chdir(before)
        shutil.rmtree(root)


def _live(wanted: Scenario, world: World, plan: Plan) -> int:
    """All steps, and then the run that must end well, and one more, which must find nothing to do."""
    incomplete: set[str] = set()
    operations = 0
    for number, runs in enumerate(wanted.steps):
        flows = [Workflow(plan, world, incomplete) for _ in runs]
        each = [
            Process(f"{number}.{place}", faults, flow.run)
            for place, (faults, flow) in enumerate(zip(runs, flows, strict=True))
        ]
        world.live(*each)
        operations = operations or each[0].counts[False]
        if any("cut power" in line for line in world.happened[-200:]) and world.chance.random() < 0.5:
            incomplete.clear()  # Snakemake flushes nothing
        if number in wanted.rots:
            world.rot()
    for name in ("last", "after it"):
        flow = Workflow(plan, world, incomplete)
        process = Process(name, (), flow.run)
        begun = len(world.happened)
        world.live(process)
        assert process.status == 0, f"the {name} run ended with {process.status}"
        if name == "last" and _failed_in_passing(world.happened[begun:]):
            continue
    assert Workflow(plan, world, incomplete).needed() == [], "there is still something to do"
    return operations


def _failed_in_passing(happened: list[str]) -> bool:
    return any("tries)" in line for line in happened)


def check(world: World, plan: Plan) -> None:
    """What must hold of the folder after the last run."""
    _check_nothing_is_lost(world)
    _check_nothing_is_half_written(world)
    _check_nothing_is_doubled(world, plan)
    _check_verdicts(world, plan)


def _aside(path: Path) -> list[Path]:
    """The file, and those that were set aside from its place."""
    return [path] * path.exists() + [*path.parent.glob(f"{path.name}.*")]


def _check_nothing_is_lost(world: World) -> None:
    for path, contents in world.acknowledged.items():
        there = [one.read_bytes() for one in _aside(path)]
        lost = [content for content in contents if content not in there]
        assert len(lost) <= (path in world.rotten), f"{path.relative_to(world.root)} was there and is lost"


def _check_nothing_is_half_written(world: World) -> None:
    for path in sorted(world.root.glob("results/**/*")):
        assert not path.name.endswith(durable.PARTIAL), f"{path} was left"
        if path.suffix == ".json" and path.parent.name == "rounds":
            round_file.read(path)
        elif path.suffix == ".json" and path.parent.parent.parent.name == "measure":
            result_file.read(path)
        if ".damaged." in path.name:
            first = path.with_name(path.name.partition(".damaged.")[0])
            assert first in world.rotten, f"{path.relative_to(world.root)}: nobody damaged it"


def _check_nothing_is_doubled(world: World, plan: Plan) -> None:
    there = [round_file.read(path) for path in sorted((world.root / round_files.ROUNDS).glob("*.json"))]
    assert all(there.count(one) == 1 for one in there), "a round is there twice"
    names = [path for path, _ in oracle.on_disk(world)]
    assert names == sorted(names), "names of rounds are not in the order in which they were measured"
    for path, contents in world.acknowledged.items():
        if path.parent.name != "rounds" and path not in world.rotten:
            kept = [content for content in contents if b'"passing":true' not in content]
            assert len(kept) <= 1, f"{path.relative_to(world.root)} was measured {len(kept)} times"
    table = table_file.read(Path("results/table.parquet"), {}).table
    rows = Counter(zip(table["cell"], table["path"], table["block"], table["sample"].fillna(-1), strict=True))
    assert max(rows.values()) == 1, "a row is there twice"
    expected = oracle.rows(plan, world)
    found = Counter(zip(table["cell"], table["path"], strict=True))
    assert found == expected, f"the table has {found}, and there should be {expected}"


def _check_verdicts(world: World, plan: Plan) -> None:
    judged = verdicts.read(Path("results/verdicts.json"))
    for claim in judged.claims:
        possible = oracle.verdict(plan, world, claim.id)
        assert claim.verdict in possible, f"{claim.id} is {claim.verdict}: {claim.reason}; possible: {possible}"


if __name__ == "__main__":
    for number in map(int, sys.argv[1:]):
        found = simulate(number)
        print("\n".join(found.happened))
        print(number, scenario(number), found.fingerprint, datetime.now(UTC).isoformat())
