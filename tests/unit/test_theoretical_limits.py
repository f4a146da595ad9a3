"""Document C's table beside the physics of its hardware: floors, shares of the limit, and what could fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from claimbench.errors import ConfigError
from claimbench.judging import judge
from claimbench.judging.evidence import Evidence
from claimbench.planning import plan
from claimbench.reporting.report_data import ReportData
from claimbench.reporting.theoretical_limits import theoretical_limit_tables
from claimbench.schema import params, validation
from claimbench.schema.metrics import METRICS
from claimbench.schema.plan import Plan
from claimbench.schema.study import Study
from claimbench.schema.verdicts import Verdicts

ROOT = Path(__file__).parents[2]

NOTHING_JUDGED = Verdicts(device="cpu", device_name=None, tolerance=0.02, claims=(), cells={}, recommendations=())


def planned(**document: Any) -> Plan:
    raw = validation.read_yaml(ROOT / "studies" / "bloom.yaml")
    raw["document"] |= document
    study = validation.validate(Study, raw, "studies/bloom.yaml")
    values = params.load_params(validation.read_yaml(ROOT / "params.yaml"))
    return plan.make_plan(values, {"bloom": study}, {"key": "here"}, "cpu")


@pytest.fixture(scope="module")
def made() -> Plan:
    return planned()


def tables_of(made: Plan) -> list[Any]:
    return theoretical_limit_tables(
        ReportData(made, pd.DataFrame(columns=["cell", *METRICS]), NOTHING_JUDGED, {}), made.studies["bloom"]
    )


def line(table: Any, title: str) -> list[str]:
    return next([entry.markdown for entry in row] for row in table.rows if row[0].text.startswith(title))


def test_each_published_cell_stands_beside_its_floor_and_its_share_of_the_limit(made: Plan) -> None:
    floors = tables_of(made)[0]
    assert tuple(entry.text for entry in floors.head) == ("batch", "1", "8", "16", "32", "64", "128", "256", "512")
    found = line(floors, "Accelerate bf16")
    assert found[0] == "Accelerate bf16, 8 devices"
    assert found[1] == "230.38<br>floor 173, 75 %"
    assert found[5] == "oom<br>floor 2.85"
    assert found[6] == "–<br>floor 1.51"


def test_the_frontier_stands_beside_what_could_fit(made: Plan) -> None:
    frontiers = tables_of(made)[1]
    assert line(frontiers, "Accelerate bf16")[:2] == ["Accelerate bf16", "8"]
    most, fitted, failed, needed = line(frontiers, "Accelerate bf16")[4:]
    assert int(most) >= int(fitted) == 32
    assert (failed, needed) == ("64", "56 %")


def test_tensor_parallelism_and_zero_have_floors_of_their_own(made: Plan) -> None:
    floors = tables_of(made)[0]
    assert line(floors, "DeepSpeed-Inference fp16")[1] == "44.02<br>floor 21.7, 49 %"
    assert line(floors, "DeepSpeed-Inference fp16")[6] == "0.69<br>floor 0.214, 31 %"
    assert line(floors, "DeepSpeed-Inference int8")[1] == "89.09<br>floor 11.1, 12 %"


def test_a_figure_that_no_such_machine_can_reach_is_marked(made: Plan) -> None:
    floors = tables_of(made)[0]
    assert line(floors, "DeepSpeed ZeRO bf16")[1] == "283 <sup>1</sup><br>floor 1,030, 363 %"
    assert len(floors.notes) == 1
    assert "Beyond the limit" in floors.notes[0]


def test_every_system_of_the_table_has_its_frontier_on_paper(made: Plan) -> None:
    found = {
        row[0].text: tuple(entry.text for entry in row[4:7]) for table in tables_of(made)[1::2] for row in table.rows
    }
    assert len(tables_of(made)[1].rows) == 5
    assert len(tables_of(made)[3].rows) == 2
    for title, (most, fitted, failed) in found.items():
        assert int(most) >= int(fitted), title
        assert int(failed) > int(fitted), title


def test_what_a_row_asks_for_is_the_document_s_and_not_this_machine_s(made: Plan) -> None:
    row = made.row("bloom", "throughput/accelerate_bf16@batch=64")
    assert row.asked is not None
    assert (row.asked.architecture, row.asked.devices, row.asked.batch) == ("bloom-176b", 8, 64)
    assert (row.asked.new_tokens, row.asked.prompt_tokens) == (100, 6)
    int8 = made.row("bloom", "throughput_4gpu/accelerate_int8@batch=1").asked
    assert int8 is not None
    assert (int8.devices, int8.layer_bits) == (4, 8)
    assert made.row("bloom", "offload/accelerate_disk").asked is None, "the model does not know what is offloaded"


def test_a_study_without_its_hardware_has_no_paper_table() -> None:
    without = planned(hardware=None)
    assert tables_of(without) == []
    assert all(row.asked is None for rows in without.studies["bloom"].rows.values() for row in rows.values())


def test_unknown_hardware_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"document\.hardware: unknown 'NVIDIA A100-SXM4-80G'\. Did you mean"):
        planned(hardware="NVIDIA A100-SXM4-80G")


def test_claims_about_other_hardware_say_what_physics_says_of_them(made: Plan) -> None:
    evidence = Evidence(made, pd.DataFrame(columns=["cell"]), 0.02)
    claims = {claim.id: claim for claim in made.studies["bloom"].study.claims}
    frontiers = judge.judge_claim(claims["C7"], "bloom", evidence).checks[0].sentence
    assert "at most could fit on 8 x NVIDIA A100-SXM4-80GB, so 32 could." in frontiers
    table = [check.sentence for check in judge.judge_claim(claims["C13"], "bloom", evidence).checks]
    (said,) = [sentence for sentence in table if "230 ms" in sentence]
    assert "cannot take less than 173 ms per token: the published figure is at 75% of that limit." in said
