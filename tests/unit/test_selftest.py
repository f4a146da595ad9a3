"""What the self-test concludes from rounds whose truth is known, and that it runs on a real model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from claimbench.checkpoints import shard
from claimbench.measuring import arm, selftest
from claimbench.schema.cell import Cell, Checkpoint
from claimbench.schema.result import Key, Result, Sample
from claimbench.schema.round import Arm, Round, Turns

CELL = selftest.default_cell("cpu")
KEY = Key(code="0", libraries={}, machine="m")


def sample(wall_s: float) -> Sample:
    wall_ns = round(wall_s * 1e9)
    return Sample(wall_ns=wall_ns, step_ns=(wall_ns,), step_tokens=(1,), tokens_sha256="0")


def made(random: np.random.Generator, *, truth: bool = True, spread: float = 0.01) -> Round:
    """A round of a minute in which every arm is as slow as it was made, or in which none is."""
    arms = []
    for request in selftest.arms_of(CELL, None, KEY):
        factor = 1 + request.slowdown if truth else 1.0
        samples = tuple(sample(factor * math.exp(spread * random.normal())) for _ in range(selftest.PASSES))
        arms.append(arm_with(request.name, request.slowdown, samples))
    return Round(started_at="2026-01-01", duration_s=60, seed=0, passes=8, arms=tuple(arms))


def arm_with(name: str, slowdown: float, samples: tuple[Sample, ...], **more: Any) -> Arm:
    result = Result(
        cell=CELL, block=0, key=KEY, started_at="2026-01-01", duration_s=9, samples=samples, **{"outcome": "ok", **more}
    )
    turns = tuple(
        Turns(number=number, places=(0,), begun_ns=0, ended_ns=0, samples=1) for number in range(len(samples))
    )
    return Arm(name=name, slowdown=slowdown, result=result, turns=turns)


def test_each_step_of_a_slowed_session_takes_its_share_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that goes on by a microsecond whenever it is read, and by the session's own steps."""
    now = 0

    def clock() -> int:
        nonlocal now
        now += 1_000
        return now

    class Session:
        def generate(self) -> Iterator[list[list[int]]]:
            nonlocal now
            for _ in range(3):
                now += 20_000_000
                yield [[1]]

    monkeypatch.setattr(arm.time, "perf_counter_ns", clock)
    ends = [now for _ in arm.Slowed(Session(), 0.25, "cpu").generate()]  # type: ignore[arg-type]
    assert np.diff([0, *ends]) == pytest.approx(25e6, abs=5_000)


def test_what_was_made_is_found_and_what_was_not_is_not() -> None:
    random = np.random.default_rng(7)
    rounds = [made(random) for _ in range(3)]
    found = {one.name: one for one in selftest.findings(rounds)}
    assert found[selftest.TWIN].minutes is None
    assert found["slower by 20%"].minutes == 2
    assert not any(one.is_false for one in found.values())
    assert all(one.covered for one in found.values())
    lines = selftest.report(rounds)
    assert "false verdicts: 0 of 5" in lines
    assert "intervals that hold the truth: 5 of 5" in lines
    assert lines[-1] == "the smallest difference told apart within 3 min: 5%"


def test_slowdowns_that_did_not_happen_are_not_covered() -> None:
    random = np.random.default_rng(1)
    rounds = [made(random, truth=False) for _ in range(3)]
    found = {one.name: one for one in selftest.findings(rounds)}
    assert not found["slower by 20%"].covered
    assert selftest.report(rounds)[-1].endswith("none of those that were made")


def test_noise_hides_what_is_smaller_than_it() -> None:
    random = np.random.default_rng(2)
    found = {one.name: one for one in selftest.findings([made(random, spread=0.3) for _ in range(3)])}
    assert found["slower by 2%"].minutes is None
    assert found["slower by 2%"].covered


def test_a_difference_between_a_cell_and_itself_is_a_false_verdict() -> None:
    random = np.random.default_rng(3)
    rounds = [made(random) for _ in range(2)]
    slow = [_with_slow_twin(one) for one in rounds]
    assert [one.is_false for one in selftest.findings(slow) if one.name == selftest.TWIN] == [True]


def _with_slow_twin(record: Round) -> Round:
    twice = (sample(2.0),) * selftest.PASSES
    arms = [arm_with(one.name, 0, twice) if one.name == selftest.TWIN else one for one in record.arms]
    return record.model_copy(update={"arms": tuple(arms)})


def test_rounds_without_a_base_say_why_nothing_was_compared() -> None:
    record = made(np.random.default_rng(4))
    arms = tuple(arm_with(one.name, one.slowdown, (), outcome="oom", reason="too large") for one in record.arms)
    assert selftest.report([record.model_copy(update={"arms": arms})]) == ["Nothing could be compared: too large"]


@pytest.mark.model
def test_two_rounds_of_a_real_model_are_measured_and_kept(tmp_path: Path) -> None:
    checkpoint = Checkpoint(name="tiny", source="random://tiny-llama?seed=0", architecture="tiny-llama")
    shard.shard(checkpoint, tmp_path / "fetched", tmp_path / "checkpoint", 10**9)
    cell: Cell = CELL.model_copy(update={"checkpoint": checkpoint})
    said: list[str] = []
    rounds = selftest.run(cell, tmp_path / "checkpoint", "m", 0, tmp_path / "rounds", said.append)
    assert len(rounds) == 2 == len(list((tmp_path / "rounds").iterdir()))
    assert all(arm.result.outcome == "ok" for one in rounds for arm in one.arms), rounds[0].arms
    assert sum("inside timed generations" in line for line in said) == 2
    assert len(selftest.findings(rounds)) == 5
