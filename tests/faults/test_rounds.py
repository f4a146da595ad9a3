"""Whatever happens to an arm or to a round, the others go on, each arm ends in one outcome, and no process is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from claimbench.analysis import validity
from claimbench.backends import null_model
from claimbench.errors import ClaimbenchError, ResultError
from claimbench.measuring import round_process, seat
from claimbench.measuring.arm import ArmRequest
from claimbench.measuring.block_request import BlockRequest
from claimbench.measuring.round_process import RoundRequest
from claimbench.measuring.rounds import measure_round
from claimbench.measuring.supervisor import environment_of
from claimbench.planning.result_key import key_of
from claimbench.schema import round as round_file
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Protocol, Workload


def arm(name: str, slowdown: float = 0.0, protocol: dict[str, Any] | None = None, **options: Any) -> ArmRequest:
    cell = Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama?seed=0", architecture="tiny-llama"),
        backend="null_model",
        options={"step_ms": 2, **options},
        workload=Workload(prompt="Hello", new_tokens=4),
        device="cpu",
        protocol=Protocol(**{"samples": 1, "warmup_max": 1, "timeout_s": 60, **(protocol or {})}),
    )
    return of_cell(name, cell, slowdown)


def of_cell(name: str, cell: Cell, slowdown: float = 0.0) -> ArmRequest:
    return ArmRequest(name=name, block=BlockRequest(cell=cell), key=key_of(cell, "m"), slowdown=slowdown)


def request(*arms: ArmRequest, passes: int = 3) -> RoundRequest:
    return RoundRequest(arms=arms, passes=passes, seed=0)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("CLAIMBENCH_TEST", str(tmp_path))
    return str(tmp_path)


def left_of(mark: str) -> list[list[str]]:
    """Command lines of what still lives of all that was started while CLAIMBENCH_TEST held `mark`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("CLAIMBENCH_TEST") == mark:
                found.append(process.info["cmdline"])
    return found


def test_arms_that_fail_end_in_their_outcome_and_the_others_take_all_their_turns(tmp_path: Path, mark: str) -> None:
    fails = {
        "oom": ("oom", "asked to run out of memory"),
        "allocate": ("oom", "MemoryError"),
        "kill": ("error", "killed by SIGKILL, during: first call"),
        "short": ("wrong", "exactly 4 new tokens"),
        "unavailable": ("unavailable", "asked to be unavailable"),
        "error": ("error", "RuntimeError: asked to fail"),
    }
    hung = arm("hang", fails="hang", protocol={"timeout_s": 2})
    failing = [arm(name, fails=name) for name in fails]
    record = measure_round(request(arm("base"), arm("twin"), hung, *failing), tmp_path / "round.json")
    found = {one.name: one.result for one in record.arms}
    assert {one.name: len(one.turns) for one in record.arms if one.result.outcome == "ok"} == {"base": 3, "twin": 3}
    for name, (outcome, reason) in fails.items():
        assert found[name].outcome == outcome
        assert reason in str(found[name].reason)
    assert (found["hang"].outcome, found["hang"].reason) == ("timeout", "over 2 s of its own, during: first call")
    assert round_file.read(tmp_path / "round.json") == record
    assert left_of(mark) == []


def test_a_library_that_fails_when_it_is_imported_fails_its_own_arm_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries are imported once for all arms: one that raises must not take the round with it."""
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('no such instruction')", encoding="utf-8")
    (tmp_path / "sitecustomize.py").write_text(
        "from claimbench.optimizations.transformers import sdpa\nsdpa.IMPORTS = ('broken_library',)", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    cell = arm("broken").block.cell
    broken = cell.model_copy(
        update={"backend": "transformers", "options": {}, "optimizations": (OptimizationUse(name="sdpa"),)}
    )
    arms = (arm("base"), of_cell("broken", broken))
    record = measure_round(request(*arms), tmp_path / "round.json")
    found = {one.name: one.result for one in record.arms}
    assert found["base"].outcome == "ok"
    assert found["broken"].outcome == "error"
    assert "no such instruction" in str(found["broken"].reason)


def test_two_that_do_not_fit_together_are_alone_back_to_back(tmp_path: Path) -> None:
    """The first, the second, and the first again: one process at a time, and passes that pair."""
    arms = (arm("base"), arm("other", step_ms=4), arm("base"))
    asked = request(*arms, passes=5).model_copy(update={"in_company": False})
    record = measure_round(asked, tmp_path / "round.json")
    first, other, again = record.arms
    assert {one.result.outcome for one in record.arms} == {"ok"}
    assert [[turn.number for turn in one.turns] for one in record.arms] == [[0, 1, 2], [0, 1, 2, 3, 4], [3, 4]]
    ends = [one.turns[-1].begun_ns for one in (first, other)]
    assert ends[0] < other.turns[0].begun_ns
    assert ends[1] < again.turns[0].begun_ns
    assert not record.in_company


def test_what_is_lacking_or_damaged_is_said_before_a_load(tmp_path: Path) -> None:
    """A machine without a GPU, and a checkpoint whose file was changed: each is its arm's own outcome."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    whole = arm("damaged").block.model_copy(update={"checkpoint": folder})
    cell = arm("lacking").block.cell
    graphs = cell.model_copy(
        update={"backend": "engine", "options": {}, "optimizations": (OptimizationUse(name="cuda_graphs"),)}
    )
    arms = (
        arm("base"),
        arm("damaged").model_copy(update={"block": whole}),
        of_cell("lacking", graphs),
    )
    record = measure_round(request(*arms), tmp_path / "round.json")
    found = {one.name: one.result for one in record.arms}
    assert found["base"].outcome == "ok"
    assert (found["damaged"].outcome, "manifest" in str(found["damaged"].reason)) == ("error", True)
    assert found["lacking"].outcome == "unavailable"
    assert found["lacking"].reason


def test_an_arm_that_dies_in_its_turn_leaves_the_turns_before_it(tmp_path: Path, mark: str) -> None:
    record = measure_round(request(arm("base"), arm("strays", strays_call=3)), tmp_path / "round.json")
    found = {one.name: one.result for one in record.arms}
    assert found["base"].outcome == "ok"
    assert found["strays"].outcome == "wrong"
    assert "differ in their tokens" in str(found["strays"].reason)
    assert left_of(mark) == []


def test_the_time_of_the_others_does_not_count_against_an_arm(tmp_path: Path) -> None:
    slow = arm("slow", step_ms=400)
    record = measure_round(request(slow, arm("fast", protocol={"timeout_s": 4}), passes=3), tmp_path / "round.json")
    assert [one.result.outcome for one in record.arms] == ["ok", "ok"]
    assert record.duration_s > 4


def test_a_slowdown_makes_a_generation_longer_by_its_share(tmp_path: Path) -> None:
    arms = [arm("base", step_ms=20), arm("slower", 0.5, step_ms=20)]
    record = measure_round(request(*arms, passes=4), tmp_path / "round.json")
    _, slower = record.arms
    assert slower.slowdown == 0.5
    steps = [step for sample in slower.result.samples for step in sample.step_ns[1:]]
    assert min(steps) >= 1.5 * 20e6, "whatever else the machine does, a step of 20 ms takes half as long again"


def test_fast_cells_generate_several_times_when_it_is_their_turn(tmp_path: Path) -> None:
    record = measure_round(request(arm("fast", step_ms=1), arm("slow", step_ms=100)), tmp_path / "round.json")
    fast, slow = record.arms
    assert {turn.samples for turn in fast.turns} == {seat.MOST_GENERATIONS}
    assert {turn.samples for turn in slow.turns} == {1}


def long_arm(name: str, new_tokens: int = 16, **options: Any) -> ArmRequest:
    one = arm(name, **options)
    cell = one.block.cell.model_copy(update={"workload": Workload(prompt="Hello", new_tokens=new_tokens)})
    return one.model_copy(update={"block": BlockRequest(cell=cell)})


def test_a_long_generation_stands_still_while_the_others_have_their_turn(tmp_path: Path) -> None:
    """No time that it waits is in a step, or in the generation; a fast arm generates whole in each lap instead."""
    arms = [long_arm("a", step_ms=40), long_arm("b", step_ms=40), long_arm("fast", step_ms=4)]
    record = measure_round(request(*arms, passes=2), tmp_path / "round.json")
    assert record.laps == 4
    for one, turns_of_a_pass in zip(record.arms, (4, 4, 2), strict=True):
        assert [(turns.number, len(turns.places)) for turns in one.turns] == [
            (0, turns_of_a_pass),
            (1, turns_of_a_pass),
        ]
    for one in record.arms[:2]:
        assert [turns.samples for turns in one.turns] == [1, 1]
        for sample in one.result.samples:
            assert sample.resumed == (4, 8, 12)
            after_a_wait = sorted(sample.step_ns[step] for step in sample.resumed)
            assert after_a_wait[1] < 40e6 + 4 * 40e6 / 2, "they waited for four steps of another, and one may be hit"
            assert sample.wall_ns == pytest.approx(sum(sample.step_ns), rel=0.02)
    first, second = (one.turns[0] for one in record.arms[:2])
    assert max(first.begun_ns, second.begun_ns) < min(first.ended_ns, second.ended_ns)
    (samples,) = {turns.samples for turns in record.arms[2].turns}
    assert samples in (2, 4), "two turns of two, or of one where the machine was busy when it was warmed up"
    assert {sample.resumed for sample in record.arms[2].result.samples} == {()}
    whole = measure_round(request(*arms, passes=2).model_copy(update={"most_laps": 1}), tmp_path / "whole.json")
    assert whole.laps == 1
    assert {sample.resumed for one in whole.arms for sample in one.result.samples} == {()}


def elsewhere(name: str, backend: str = "null_model", python: str | None = None, **options: Any) -> ArmRequest:
    """An arm that computes in processes beside its own."""
    one = long_arm(name, new_tokens=8, **options)
    cell = one.block.cell.model_copy(update={"backend": backend})
    return one.model_copy(update={"block": BlockRequest(cell=cell), "python": python, "key": key_of(cell, "m")})


def test_servers_ranks_and_other_interpreters_take_their_turns(tmp_path: Path, mark: str) -> None:
    arms = [
        long_arm("base", new_tokens=8, step_ms=10),
        elsewhere("server", "null_server", step_ms=10),
        elsewhere("ranks", step_ms=10, devices=2, oversubscribe=True),
        elsewhere("python", python=sys.executable, step_ms=10),
    ]
    record = measure_round(request(*arms, passes=3), tmp_path / "round.json")
    assert {one.name: one.result.reason for one in record.arms} == dict.fromkeys(("base", "server", "ranks", "python"))
    for one in record.arms:
        assert [turns.number for turns in one.turns] == [0, 1, 2]
        assert one.waiting_cpu < 0.1
        assert one.result.proof
    base, _, ranks, python = (one.result for one in record.arms)
    assert {len(ranks.ranks), len(base.ranks)} == {2, 0}
    assert {sample.tokens_sha256 for one in (base, ranks, python) for sample in one.samples} == {
        base.samples[0].tokens_sha256
    }
    assert left_of(mark) == []


@pytest.mark.parametrize("step", [0, 4])
def test_a_rank_that_dies_in_a_round_ends_its_arm_alone(tmp_path: Path, mark: str, step: int) -> None:
    dies = elsewhere("ranks", step_ms=10, devices=2, oversubscribe=True, fails="kill", fails_rank=1, fails_step=step)
    record = measure_round(request(long_arm("base", new_tokens=8, step_ms=10), dies), tmp_path / "round.json")
    base, ranks = (one.result for one in record.arms)
    assert (base.outcome, ranks.outcome) == ("ok", "error")
    assert "rank 1 was killed by SIGKILL" in str(ranks.reason)
    assert left_of(mark) == []


COMPUTES_ELSEWHERE = """
import subprocess, sys, threading, time
from pathlib import Path
from claimbench.backends import null_model
from claimbench.measuring import ceiling, round_process

def spin(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass

class Restless(null_model.NullSession):
    def __init__(self, cell, techniques):
        super().__init__(cell, techniques)
        if cell.options.get("token") == 2:
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
        self.jobs, self.done = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._help, daemon=True).start()

    def _help(self):
        while True:
            self.jobs.acquire()
            spin(self.pace.step_ms / 1e3)
            self.done.release()

    def _pass_time(self, milliseconds):
        self.jobs.release()
        super()._pass_time(milliseconds)
        self.done.acquire()

null_model.NullSession = Restless
null_model.LIBRARIES = ("torch",)
ceiling.READ_BYTES["cpu"] = 1 << 26
request = round_process.RoundRequest.model_validate_json(sys.stdin.read())
print(round_process.run(request, Path(sys.argv[1])).model_dump_json())
"""


def test_what_an_arm_does_while_it_waits_and_the_limits_of_the_same_minutes_are_in_the_record(
    tmp_path: Path, mark: str
) -> None:
    """Two threads compute in each arm; one arm has started a process that never rests."""
    arms = [long_arm("quiet", step_ms=30), long_arm("restless", step_ms=30, token=2)]
    arms = [one.model_copy(update={"times_first_call": True}) for one in arms]
    ended = subprocess.run(
        [sys.executable, "-c", COMPUTES_ELSEWHERE, str(tmp_path)],
        input=request(*arms, passes=2).model_dump_json(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    record = round_file.Round.model_validate_json(ended.stdout)
    quiet, restless = record.arms
    assert (quiet.result.outcome, restless.result.outcome) == ("ok", "ok")
    assert quiet.waiting_cpu < 0.05
    assert restless.waiting_cpu > 0.2
    assert validity.of_round(record)["waiting_cpu"] == quiet.waiting_cpu + restless.waiting_cpu
    cores = min(2, len(os.sched_getaffinity(0)))
    assert [one.bound_threads for one in record.arms] == [cores if cores > 1 else 0] * 2
    assert [set(rates) for rates in record.rates] == [{"read", "float32"}] * 2
    assert left_of(mark) == []


def test_an_interpreter_that_is_not_there_is_a_mistake(tmp_path: Path, mark: str) -> None:
    absent = elsewhere("python", python=str(tmp_path / "python"))
    with pytest.raises(ClaimbenchError, match="No such file"):
        measure_round(request(long_arm("base", new_tokens=8), absent), tmp_path / "round.json")
    assert left_of(mark) == []


def test_an_arm_that_dies_while_it_stands_still_leaves_the_others_to_finish(tmp_path: Path) -> None:
    dies = long_arm("dies", step_ms=40, fails="kill", fails_step=12)
    record = measure_round(request(long_arm("a", step_ms=40), dies, passes=2), tmp_path / "round.json")
    assert record.laps == 4
    assert {one.name: one.result.outcome for one in record.arms} == {"a": "ok", "dies": "error"}
    assert [len(one.turns) for one in record.arms] == [2, 0]


def test_turns_are_parts_of_a_generation_that_are_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared_out(laps: int, generation_s: float, new_tokens: int = 16) -> tuple[int, int, list[int]]:
        (one,) = seats(generation_s)
        one.request, one.laps = long_arm("a", new_tokens), laps
        return one.pass_generations, one.parts, [lap for lap in range(laps) if one.has_lap(lap)]

    every, second = list(range(8)), [1, 3, 5, 7]
    assert shared_out(8, 2.0) == (1, 8, every)
    assert shared_out(8, 0.5) == (1, 4, second)
    assert shared_out(8, 0.25) == (2, 2, second)
    assert shared_out(8, 0.11) == (4, 1, second)
    assert shared_out(8, 0.06) == (2 * 4, 1, second)
    assert shared_out(8, 0.001) == (seat.MOST_GENERATIONS * 4, 1, second)
    assert shared_out(8, 9.0, new_tokens=5) == (1, 4, second)
    assert shared_out(8, 9.0, new_tokens=1) == (1, 1, [4])
    assert shared_out(1, 0.025) == (4, 1, [0])
    assert shared_out(1, 4.0) == (1, 1, [0])
    ready = seats(2.0, 2.0)
    for one in ready:
        one.request = long_arm("a")
    assert round_process._laps(request(arm("base")), ready) == 16
    assert round_process._laps(request(arm("base")).model_copy(update={"most_laps": 4}), ready) == 4
    monkeypatch.setattr(null_model, "STANDS_STILL", False, raising=False)
    assert round_process._laps(request(arm("base")), ready) == 1
    assert shared_out(8, 2.0) == (1, 1, [4])


def test_a_load_and_a_first_call_are_timed_once_and_alone(tmp_path: Path) -> None:
    """Later rounds load two at a time, and warm up with a few steps: what they take is no figure of a cell."""
    work = Workload(prompt="Hello", new_tokens=12)
    cell = arm("base").block.cell.model_copy(update={"workload": work})
    first = arm("base").model_copy(update={"block": BlockRequest(cell=cell), "times_first_call": True})
    later = first.model_copy(update={"name": "later", "proves": False, "times_first_call": False})
    record = measure_round(request(first, later, later), tmp_path / "round.json")
    results = [one.result for one in record.arms]
    assert [one.outcome for one in results] == ["ok"] * 3
    assert [one.load_ns is not None for one in results] == [True, False, False]
    assert [one.first_call_ns is not None for one in results] == [True, False, False]
    assert all(one.ready_s > 0 for one in record.arms)
    slow = later.model_copy(update={"ready_s": 9.0})
    assert round_process._starting_together([later, first, later, slow, slow, later]) == [(1,), (3, 4), (0, 2), (5,)]


def seats(*generations_s: float) -> list[seat.Seat]:
    """Seats that are warm, without a process."""
    nobody: Any = None
    made = [seat.Seat(arm(str(each)), 0, nobody, nobody, Path(), 0, 60.0) for each in generations_s]
    for one, generation_s in zip(made, generations_s, strict=True):
        one.messages.append({"event": "warmed up", "generation_s": generation_s})
    return made


def test_passes_fill_the_time_for_turns_and_slow_arms_have_half_of_them() -> None:
    """Fixed by the warm-up, before anything is timed."""
    asked = request(arm("base"), passes=16).model_copy(update={"fewest": 2, "turns_s": 20.0})
    assert round_process._passes(asked, seats(1, 1, 1, 4)) == 2
    assert round_process._passes(asked, seats(1, 1)) == 10
    assert round_process._passes(asked, seats(30, 30)) == 2
    assert round_process._passes(asked.model_copy(update={"turns_s": None}), seats(30, 30)) == 16
    sparing = seats(1, 1, 1, 4)
    round_process._spare_slow(asked.model_copy(update={"spares_slow": True}), sparing)
    assert [one.is_slow for one in sparing] == [False, False, False, True]
    assert round_process._passes(asked, sparing) == 4
    assert [sum(one.has_turn(number, 4) for number in range(4)) for one in sparing] == [4, 4, 4, 2]
    assert all(one.has_turn(0, passes) for one in sparing for passes in (2, 3, 4, 7))


def test_every_turn_lies_in_the_order_that_was_drawn(tmp_path: Path) -> None:
    """Of one lap a pass, and of several: what a pass holds is in the places of its laps."""
    record = measure_round(request(arm("a"), arm("b"), arm("c"), passes=6), tmp_path / "round.json")
    turns = sorted(
        (turns.begun_ns, turns.number, turns.places, which)
        for which, one in enumerate(record.arms)
        for turns in one.turns
    )
    assert [(number, place) for _, number, (place,), _ in turns] == [(n, p) for n in range(6) for p in range(3)]
    drawn = [which for order in round_process.orders(3, 6, 0) for which in order]
    assert [which for *_, which in turns] == drawn
    arms = [long_arm(name, step_ms=20) for name in "abc"]
    record = measure_round(request(*arms, passes=3), tmp_path / "laps.json")
    assert record.laps == 2
    rows = round_process.orders(3, 6, 0)
    for which, one in enumerate(record.arms):
        assert [place for turns in one.turns for place in turns.places] == [row.index(which) for row in rows]


@pytest.mark.parametrize("arms", [2, 3, 4, 7, 10])
def test_over_the_design_every_arm_follows_every_other_equally_often(arms: int) -> None:
    rows = arms if arms % 2 == 0 else 2 * arms
    drawn = round_process.orders(arms, rows, seed=1)
    pairs = [(first, second) for order in drawn for first, second in pairwise(order)]
    assert len(set(pairs)) == arms * (arms - 1)
    assert {pairs.count(pair) for pair in pairs} == {rows // arms}
    for place in range(arms):
        assert sorted(order[place] for order in drawn) == sorted(list(range(arms)) * (rows // arms))


def test_a_killed_round_leaves_no_process_and_no_file(tmp_path: Path, mark: str) -> None:
    asked = request(arm("base", step_ms=300), arm("twin", step_ms=300), passes=50)
    program = (
        "import sys; from pathlib import Path\n"
        "from claimbench.measuring.rounds import measure_round\n"
        "from claimbench.measuring.round_process import RoundRequest\n"
        "measure_round(RoundRequest.model_validate_json(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    output = tmp_path / "round.json"
    holder = subprocess.Popen([sys.executable, "-c", program, asked.model_dump_json(), str(output)])
    wait_until(lambda: len(left_of(mark)) >= 4)
    time.sleep(1)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    wait_until(lambda: left_of(mark) == [])
    assert not output.exists()


def test_a_round_process_that_dies_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    with pytest.raises(ClaimbenchError, match="ended with status"):
        measure_round(request(arm("base")), tmp_path / "round.json", python="/bin/false")
    assert not (tmp_path / "round.json").exists()


def test_a_folder_for_temporary_files_with_a_long_name_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes about a hundred bytes of a socket's path, so whoever waits for arms must not need one there."""
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    record = measure_round(request(arm("base")), tmp_path / "round.json")
    assert record.arms[0].result.outcome == "ok"
    assert [one.name for one in long.iterdir() if not one.name.endswith(".lock")] == []


def test_an_edited_round_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "round.json"
    measure_round(request(arm("base")), path)
    path.write_text(path.read_text().replace('"passes":3', '"passes":4'))
    with pytest.raises(ResultError, match="a round was edited after it was measured"):
        round_file.read(path)


def wait_until(holds: Any, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def test_what_torch_compiles_ahead_outlives_the_folder_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept under TMPDIR, wherever torch's cache is told to be, and every process has a TMPDIR of its own."""
    monkeypatch.setenv("CLAIMBENCH_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "own"
    own.mkdir()
    environment = environment_of(arm("base").block.cell, own)
    asking = "from torch._inductor.runtime.cache_dir_utils import default_cache_dir; print(default_cache_dir())"
    said = subprocess.run(
        [sys.executable, "-c", asking], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert Path(said).parent == own
    assert Path(said).resolve() == (tmp_path / "cache" / "inductor-headers").resolve()


def test_a_mistake_in_the_middle_of_a_round_ends_it_at_once_and_with_its_arms(tmp_path: Path, mark: str) -> None:
    """Python waits for forked processes when it ends, and arms wait for their turn: for ever, if nobody sees to it."""
    program = (
        "from claimbench.measuring import round_process\n"
        "def broken(*_): raise ZeroDivisionError('a mistake')\n"
        "round_process._laps = broken\n"
        "round_process.leave()\n"
    )
    asked = request(arm("base"), arm("twin")).model_dump_json() + "\n"
    ended = subprocess.run([sys.executable, "-c", program], input=asked, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "a mistake" in ended.stderr.splitlines()[-1]
    until = time.monotonic() + 10
    while left_of(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert left_of(mark) == []
