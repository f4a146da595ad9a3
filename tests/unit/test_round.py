"""Files of results and rounds, and their summary: what is written is read back, and what is not theirs is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from claimbench.errors import ResultError
from claimbench.schema import result, round, sealed
from claimbench.schema.cell import Cell, Checkpoint, Workload
from claimbench.schema.outcome import Outcome
from claimbench.schema.result import Key, Result, Sample
from claimbench.schema.round import TRIES, TWIN, Arm, Round, Turns


def record(*walls_ns: int, passing: bool = False) -> Result:
    return Result(
        cell=Cell(
            checkpoint=Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama"),
            backend="null_model",
            workload=Workload(prompt="Hello", new_tokens=1),
            device="cpu",
        ),
        block=0,
        key=Key(code="c", libraries={}, machine="m"),
        started_at="2026-01-01T00:00:00+00:00",
        duration_s=1.0,
        outcome=Outcome.ERROR if passing else Outcome.OK,
        passing=passing,
        samples=tuple(Sample(wall_ns=ns, step_ns=(ns,), step_tokens=(1,), tokens_sha256="0") for ns in walls_ns),
    )


def arm(name: str, *walls_ns: int, passing: bool = False) -> Arm:
    return Arm(name=name, result=record(*walls_ns, passing=passing), turns=())


def made(*arms: Arm, **more: Any) -> Round:
    return Round(started_at="2026-01-01T00:00:00+00:00", duration_s=1.25, seed=0, passes=1, arms=arms, **more)


EDITED = "was edited after it was measured: its seal does not match its content"


def refused(path: Path, why: str) -> Any:
    return pytest.raises(ResultError, match=rf"^{re.escape(why)}: {re.escape(str(path))}$")


def test_a_result_is_read_as_it_was_written_and_an_edited_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result.write_new(path, record(5))
    with pytest.raises(FileExistsError):
        result.write_new(path, record(6))
    assert result.read(path) == record(5)
    result.write(path, record(7))
    assert result.read(path) == record(7)
    path.write_text(path.read_text(encoding="utf-8").replace('"wall_ns":7', '"wall_ns":3'), encoding="utf-8")
    with refused(path, f"a result {EDITED}. Delete it and run again to measure that block anew"):
        result.read(path)


def test_a_round_is_read_as_it_was_written_and_an_edited_one_is_refused(tmp_path: Path) -> None:
    path, one = tmp_path / "round.json", made(arm("a", 5))
    round.write_new(path, one)
    with pytest.raises(FileExistsError):
        round.write_new(path, one)
    assert round.read(path) == one
    round.write(path, made(arm("a", 7)))
    assert round.read(path) == made(arm("a", 7))
    path.write_text(path.read_text(encoding="utf-8").replace('"wall_ns":7', '"wall_ns":3'), encoding="utf-8")
    with refused(path, f"a round {EDITED}. Delete it: the next run measures another round"):
        round.read(path)


def test_a_summary_has_the_seal_protocol_and_time_of_each_round(tmp_path: Path) -> None:
    listed = tmp_path / "rounds.json"
    rounds = {
        str(tmp_path / f"{number}.json"): made(arm("a", 2_000_000, 3_000_000), arm("b", 10**9), protocol=protocol)
        for number, protocol in enumerate(("old", "new", "new"))
    }
    for name, one in rounds.items():
        round.write(Path(name), one)
    round.write_all(listed, 2.5, rounds)
    found = round.read_summary(listed)
    assert found.seals == {name: sealed.seal_in(Path(name)) for name in rounds}
    assert found.protocols == {"old": 1, "new": 2}
    assert (found.budget_minutes, found.seconds, found.timed_seconds) == (2.5, 3.75, 3.015)
    assert round.read_all(listed) == rounds
    other = [*rounds][1]
    round.write(Path(other), made(arm("a", 9)))
    with pytest.raises(
        ResultError, match=rf"^{re.escape(other)} is not the round that {re.escape(str(listed))} lists\."
    ):
        round.read_all(listed)
    listed.write_text(listed.read_text(encoding="utf-8").replace("2.5", "3.5"), encoding="utf-8")
    with refused(
        listed, f"rounds were edited after they were made: their seal does not match their content. {round.ADVICE}"
    ):
        round.read_summary(listed)


def test_another_try_is_due_while_all_of_a_few_failed_in_passing() -> None:
    failed, ended, twin = arm("a", passing=True), arm("a"), arm(TWIN, passing=True)
    assert TRIES == 3
    assert not round.is_another_try_due([])
    assert round.is_another_try_due([failed])
    assert round.is_another_try_due([failed] * 2)
    assert not round.is_another_try_due([failed] * 3)
    assert not round.is_another_try_due([failed, ended])
    assert not round.is_another_try_due([twin]), "its base says how it ended"
    assert round.is_another_try_due([failed, failed, twin]), "a twin is no try of its own"


def test_what_was_generated_at_each_pass_follows_from_how_many_samples_its_turns_have() -> None:
    def turn(number: int, samples: int) -> Turns:
        return Turns(number=number, places=(0,), begun_ns=0, ended_ns=1, samples=samples)

    sat = arm("a", 1, 2, 3, 4, 5).model_copy(update={"turns": (turn(0, 2), turn(2, 1), turn(3, 2))})
    assert {number: [one.wall_ns for one in several] for number, several in sat.by_pass().items()} == {
        0: [1, 2],
        2: [3],
        3: [4, 5],
    }
    assert made(sat).timed_s == pytest.approx(15e-9)
