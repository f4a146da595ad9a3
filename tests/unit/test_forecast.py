"""What a forecast says of results that are there already, of this version or of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from claimbench.__main__ import main
from claimbench.measuring.selftest import default_cell
from claimbench.planning import forecast
from claimbench.planning.forecast import missing_blocks, older_results
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.validation import read_yaml
from claimbench.workflow.jobs import plan_for

STUDY = """
experiments:
  pace: {question: q, cells: {fast: {options: {step_ms: 1}}, slow: {options: {step_ms: 2}}}}
"""


def test_results_of_another_version_are_counted_kept_and_measured_anew(lab: Any) -> None:
    before = lab.plan(STUDY, blocks=2)
    lab.write(before)
    assert older_results(before) == 0
    assert missing_blocks(before) == {}
    now = lab.plan(STUDY, blocks=2, machine={**before.machine, "key": "another"})
    assert set(now.cells) == set(before.cells)
    blocks = sum(planned.blocks for planned in now.cells.values())
    assert older_results(now) == blocks
    assert sum(missing_blocks(now).values()) == blocks
    lab.write(now)
    assert older_results(now) == blocks, "nothing was removed"
    assert all(Path(path).exists() for planned in before.cells.values() for path in planned.paths())


def test_the_forecast_tells_it_in_one_sentence(lab: Any, capsys: Any) -> None:
    root = Path(__file__).parents[2]
    arguments = ["forecast", "--params", str(root / "params.yaml"), "--studies", str(root / "studies")]
    assert main(arguments) == 0
    assert "another version" not in capsys.readouterr().out
    plan = plan_for(read_yaml(root / "params.yaml"), root / "studies")
    older = Path("results/measure") / next(iter(plan.cells)) / "0123456789ab" / "0.json"
    older.parent.mkdir(parents=True)
    older.write_text("{}", encoding="utf-8")
    assert main(arguments) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "another version" in line]
    assert len(told) == 1
    assert told[0].startswith("1 results of these cells are of another version of the code")


def test_warm_ups_that_a_protocol_asks_for_are_generations_too() -> None:
    cell = default_cell("cpu")
    own = {"samples": 50, "warmup_min": 10, "warmup_max": 10}
    long = cell.model_copy(update={"protocol": cell.protocol.model_copy(update=own)})
    once, start = forecast.generation_seconds(cell, Ceilings()), forecast.START_S["cpu"]
    assert forecast.estimate_seconds(long, Ceilings()) == start + 60 * once
    assert forecast.estimate_seconds(cell, Ceilings()) == start + 3 * once
