"""The tables of `benchmarks/deciding.py`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.unit.programs import program
from tests.unit.test_deciding import BUDGET, STUDY

from claimbench.analysis.paired import PairedRound
from claimbench.schema.json_file import write_json
from claimbench.workflow import jobs

REPORTS = Path(__file__).parents[2] / "reports"


@pytest.fixture
def deciding() -> ModuleType:
    return program("benchmarks/deciding.py")


def test_widths_are_compared_at_the_same_minutes(deciding: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as narrow in a quarter of the time is four times as narrow: an interval shrinks with the root of time."""
    blocks, run = Path("blocks"), Path("run")
    found = {
        blocks: {("Q1", 0): deciding.Width("Q1", "a / b", math.log(2), "1"), ("Q2", 0): None},
        run: {("Q1", 0): deciding.Width("Q1", "a / b", math.log(2) / 2, "1.1")},
    }
    monkeypatch.setattr(deciding, "widths_of", found.__getitem__)
    monkeypatch.setattr(deciding, "minutes_of", {blocks: 40.0, run: 10.0}.__getitem__)
    *_, row, _, last = deciding.widths(blocks, run)
    assert row == "| Q1 | a / b | 1 | 1.1 | 2.0x | 4.0x |"
    assert last == "Narrower at the same minutes, median: 4.0 times"


def test_the_committed_run_can_be_read_again(deciding: ModuleType) -> None:
    first = REPORTS / "quickstart-amd-epyc-2-cores"
    *_, row, _, themselves = deciding.table([first])
    assert row.count("|") == 8
    assert re.fullmatch(r"Cells that were told from themselves .*: \d of \d \(\d+% to \d+%\)", themselves)
    noise = deciding.noise([first])
    assert noise["twins"]
    assert all(len(logs) > 1 for logs in noise["twins"])
    assert deciding.minutes_of(first) > 1
    assert deciding.widths_of(first)


def test_a_cell_that_differs_from_itself_is_counted(deciding: ModuleType) -> None:
    alike = [PairedRound((0.01, -0.01, 0.005)), PairedRound((-0.01, 0.012, 0.0)), PairedRound((0.0, 0.01, -0.012))]
    apart = [PairedRound(tuple(log + 0.5 for log in one.logs)) for one in alike]
    assert ": 0 of 2 (0% to 84%)" in deciding.told_from_themselves([alike, alike])
    assert ": 1 of 2 (1% to 99%)" in deciding.told_from_themselves([alike, apart])
    early_alone = [*apart[:2], *([PairedRound((-0.5, -0.51, -0.49))] * 2)]
    assert ": 1 of 1 " in deciding.told_from_themselves([early_alone]), "at any look, not at the last alone"
    assert deciding.told_from_themselves([]) == "No cell sat beside itself in two rounds"


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_rounds_count_as_the_rules_of_validity_say(
    weight: float, deciding: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deciding.validity, "weight", lambda _: weight)
    found = deciding.twins_of(deciding.rounds_of(REPORTS / "quickstart-amd-epyc-2-cores"))
    assert bool(found) == bool(weight)
    assert all(one.weight == weight for rounds in found.values() for one in rounds)


def test_readme_says_how_much_the_default_study_decided() -> None:
    page = (REPORTS / "deciding-amd-epyc-2-cores.md").read_text(encoding="utf-8")
    decided = [int(count) for count in re.findall(r"\| (\d+) of 16 \|", page)]
    assert len(decided) > 20
    readme = (REPORTS.parent / "README.md").read_text(encoding="utf-8")
    assert f"{min(decided)} to {max(decided)} of its 16 claims on two shared cores" in readme


@pytest.mark.model
def test_every_cell_sits_twice_in_rounds_of_twins(
    deciding: ModuleType, lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deciding.validity, "weight", lambda _: 1.0)  # whoever else uses this machine meanwhile
    plan = lab.plan(STUDY, more=BUDGET)
    write_json(tmp_path / f"results/plan/{jobs.digest_of(plan)}.json", plan.model_dump(mode="json"))
    deciding.twins(tmp_path, minutes=0)
    (one,) = deciding.rounds_of(tmp_path / "twins")
    sat = [arm.result.cell.id for arm in one.arms]
    assert sorted(sat) == sorted([*plan.cells, *plan.cells])
    assert len({arm.name for arm in one.arms}) == len(sat)
    found = deciding.noise([tmp_path / "twins"])
    assert len(found["twins"]) == len(plan.cells)
    assert all(len(logs) == deciding.TWIN_PASSES for logs in found["twins"])
    assert not found["others"]
