"""One bad file costs what it held and no more; what failed in passing is tried again, three times in all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.conftest import Lab, measured

from claimbench.analysis import aggregate
from claimbench.deciding.round_files import read_rounds
from claimbench.judging.judge import judge
from claimbench.measuring.measure import measure
from claimbench.schema import result
from claimbench.schema import round as round_file
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.plan import Plan
from claimbench.schema.round import Arm, Round
from claimbench.workflow.another_try import make_way

STUDY = "experiments: {pace: {question: q, cells: {fast: {}, slow: {options: {step_ms: 20}}}}}"
DECIDED = Path("results/decided/a.json")
ROUND = Path("results/rounds/1.json")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield Lab(tmp_path)
    os.chdir(before)


def in_the_way(plan: Plan, decided: Path | None = None) -> list[str]:
    """What a run says before it begins."""
    said: list[str] = []
    make_way(plan, decided, said.append)
    return said


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path("results").rglob("*") if path.is_file()}


def edited(path: Path) -> None:
    envelope = json.loads(path.read_text(encoding="utf-8"))
    envelope["result"]["samples"][0]["wall_ns"] //= 2
    path.write_text(json.dumps(envelope), encoding="utf-8")


def of_another(path: Path) -> None:
    shutil.copy(path.with_name("1.json"), path)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "edited": edited,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "empty": lambda path: path.write_bytes(b""),
    "no UTF-8": lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
    "nested": lambda path: path.write_bytes(b"[" * 200_000),
    "another block's": of_another,
    "a FIFO": fifo,
    "a folder": folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_set_aside_and_nothing_else_is(damage: str, lab: Lab) -> None:
    plan = lab.plan(STUDY)
    lab.write(plan)
    before = files()
    path = Path(next(iter(plan.cells.values())).paths()[0])
    DAMAGES[damage](path)
    (said,) = in_the_way(plan)
    assert f"kept as {path}.damaged.1, and measured anew" in said
    assert str(path) in said.partition("kept as")[0]
    assert not path.exists()
    assert path.with_name(f"{path.name}.damaged.1").exists()
    assert {name: text for name, text in files().items() if ".damaged." not in name} == {
        name: text for name, text in before.items() if name != str(path)
    }
    assert in_the_way(plan) == []


def test_a_second_damage_does_not_take_the_place_of_the_first(lab: Lab) -> None:
    plan = lab.plan(STUDY)
    path = Path(next(iter(plan.cells.values())).paths()[0])
    for number in (1, 2):
        lab.write(plan)
        path.write_text(f"damage {number}", encoding="utf-8")
        in_the_way(plan)
    assert [path.with_name(f"{path.name}.damaged.{number}").read_text() for number in (1, 2)] == [
        "damage 1",
        "damage 2",
    ]


def test_a_killed_worker_is_tried_three_times_in_all_and_the_report_says_so(lab: Lab) -> None:
    plan = lab.plan("experiments: {pace: {question: q, cells: {fast: {options: {fails: kill}}}}}", blocks=1)
    lab.write(plan, measured)
    planned = plan.cells[str(plan.row("study", "pace/fast").cell)]
    path = Path(planned.paths()[0])
    path.unlink()
    for tried in (1, 2, 3):
        record = measure(planned.cell, 0, planned.key, path, checkpoint=None)
        assert (record.outcome, record.passing) == ("error", True)
        said = [line for line in in_the_way(plan) if str(path) in line]
        assert [f"tried again ({tried} of 3 tries)" in line for line in said] == ([True] if tried < 3 else [])
    assert path.exists()
    assert sorted(one.name for one in path.parent.glob("0.json.*")) == ["0.json.failed.1", "0.json.failed.2"]
    found = judge(plan, aggregate.aggregate(plan, Ceilings())).cells[planned.cell.id]
    assert found.outcome == "error"
    assert "failed 2 times before this try, in passing" in found.flags


def test_a_block_that_ends_well_at_its_second_try_says_that_it_failed_once(lab: Lab) -> None:
    plan = lab.plan("experiments: {pace: {question: q, cells: {fast: {options: {step_ms: 1}}}}}", blocks=1)
    planned = plan.cells[str(plan.row("study", "pace/fast").cell)]
    path = Path(planned.paths()[0])
    result.write(path, measured(planned, 0, outcome="error", passing=True, reason="the worker was killed by SIGKILL"))
    (said,) = in_the_way(plan)
    assert said == (
        f"{path}: the worker was killed by SIGKILL: kept as {path}.failed.1, and tried again (1 of 3 tries)"
    )
    record = measure(planned.cell, 0, planned.key, path, checkpoint=None)
    assert record.outcome == "ok"
    assert record.flags == ("failed once before this try, in passing",)
    assert in_the_way(plan) == []


@pytest.mark.parametrize("fails", ["error", "oom", "nan", "unavailable"])
def test_what_is_a_property_of_the_cell_is_not_tried_again(fails: str, lab: Lab) -> None:
    plan = lab.plan(
        f"experiments: {{pace: {{question: q, cells: {{fast: {{options: {{fails: {fails}}}}}}}}}}}", blocks=1
    )
    planned = plan.cells[str(plan.row("study", "pace/fast").cell)]
    path = Path(planned.paths()[0])
    assert measure(planned.cell, 0, planned.key, path, checkpoint=None).outcome != "ok"
    assert in_the_way(plan) == []
    assert path.exists()


def test_measuring_in_place_of_a_damaged_file_keeps_it(lab: Lab) -> None:
    plan = lab.plan("experiments: {pace: {question: q, cells: {fast: {options: {step_ms: 1}}}}}", blocks=1)
    planned = plan.cells[str(plan.row("study", "pace/fast").cell)]
    path = Path(planned.paths()[0])
    path.parent.mkdir(parents=True)
    path.write_text("{", encoding="utf-8")
    assert measure(planned.cell, 0, planned.key, path, checkpoint=None).outcome == "ok"
    assert path.with_name("0.json.damaged.1").read_text(encoding="utf-8") == "{"


def in_rounds(lab: Lab, failing: int = 0, well: int = 1) -> Plan:
    """A plan with so many rounds in which its slow cell failed in passing, and in which it did not."""
    plan = lab.plan(STUDY, more={"measure": {"budget_minutes": 1.0}})
    (group,) = plan.groups
    rounds = {}
    for number in range(failing + well):
        changed = {"outcome": "error", "passing": True, "reason": "its process was killed"} if number < failing else {}
        slow = next(id for id in group.cells if id != group.base)
        arms = tuple(
            Arm(name=id, result=measured(plan.cells[id], 0, **(changed if id == slow else {}))) for id in group.everyone
        )
        path = ROUND.with_name(f"{number + 1}.json")
        rounds[str(path)] = Round(started_at="2024", duration_s=1, seed=0, passes=1, arms=arms)
        round_file.write(path, rounds[str(path)])
    round_file.write_all(DECIDED, 1.0, rounds)
    return plan


@pytest.mark.parametrize("damage", ["cut short", "empty", "no UTF-8", "a FIFO", "a folder"])
def test_a_damaged_round_is_set_aside_and_the_others_count(damage: str, lab: Lab) -> None:
    plan = in_rounds(lab, well=3)
    assert in_the_way(plan, DECIDED) == []
    DAMAGES[damage](ROUND)
    (said,) = in_the_way(plan, DECIDED)
    assert said.endswith(f"({ROUND}): kept as {ROUND}.damaged.1, and measured anew") or "cannot read" in said
    assert not DECIDED.exists()  # so that the rule `rounds` runs
    assert sorted(read_rounds(plan, ROUND.parent, print)) == ["results/rounds/2.json", "results/rounds/3.json"]


def test_a_damaged_list_of_rounds_is_made_anew_and_costs_no_round(lab: Lab) -> None:
    plan = in_rounds(lab, well=2)
    DECIDED.write_text("{", encoding="utf-8")
    assert len(in_the_way(plan, DECIDED)) == 1
    assert len(read_rounds(plan, ROUND.parent, print)) == 2


def test_a_round_that_is_missing_has_the_others_looked_for_again(lab: Lab) -> None:
    plan = in_rounds(lab, well=2)
    ROUND.unlink()
    (said,) = in_the_way(plan, DECIDED)
    assert said == f"cannot read round {ROUND}: No such file or directory: measured anew"
    assert not DECIDED.exists()


@pytest.mark.parametrize(("failing", "well", "again"), [(1, 0, True), (2, 0, True), (3, 0, False), (1, 1, False)])
def test_a_cell_that_failed_in_rounds_alone_sits_again_within_a_bound(
    failing: int, well: int, again: bool, lab: Lab
) -> None:
    plan = in_rounds(lab, failing, well)
    assert bool(in_the_way(plan, DECIDED)) == again
    assert DECIDED.exists() == (not again)
    assert len(list(ROUND.parent.glob("*.json"))) == failing + well


def test_a_damaged_file_among_the_rounds_is_set_aside_by_whoever_measures_more(lab: Lab, capsys: Any) -> None:
    plan = in_rounds(lab, well=2)
    ROUND.write_text("{", encoding="utf-8")
    assert len(read_rounds(plan, ROUND.parent, print)) == 1
    assert ROUND.with_name("1.json.damaged.1").exists()
    assert "left out: " in capsys.readouterr().out
