"""What is meant to be added is added in as many files as CONTRIBUTING says: here for real, in a copy, and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.pipeline

OPTIMIZATION = '''"""Physics: saves time in steps alone: a pass of the null backend takes as long as it is asked to."""

from __future__ import annotations

from pydantic import Field

from claimbench.backends.null_model import NullEvidence, Pace
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "pace"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    factor: float = Field(default=4, gt=1, description="by which a step is shorter")


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(pace: Pace, settings: Settings) -> None:
    pace.step_ms /= settings.factor


def prove(evidence: NullEvidence, settings: Settings) -> Findings:
    longest = max(evidence.passed_ms[1:])
    expect("shorter_steps", longest <= 20 / settings.factor, f"steps of {20 / settings.factor:g} ms", longest)
    return {"longest_step_ms": longest}
'''

CHECK = '''

class SpreadCheck(Frozen):
    """The largest block of a metric over its smallest."""

    kind: Literal["spread"]
    metric: str
    of: str
    at_most: StrictFloat
'''

JUDGE = '''"""How far the blocks of one cell are apart."""

from __future__ import annotations

from statistics import median

from claimbench.formatting import quantity
from claimbench.judging.evidence import Evidence, basis_of, side_at, verdict_on
from claimbench.schema.checks import SpreadCheck
from claimbench.schema.interval import Interval
from claimbench.schema.verdicts import CheckVerdict, Verdict


def judge(check: SpreadCheck, study: str, evidence: Evidence) -> CheckVerdict:
    side = side_at(study, check.of, evidence)
    medians = [median(block) for block in evidence.blocks(side.cell, check.metric) if block]
    spread = max(medians) / min(medians)
    sentence = f"The blocks of {side.title} are {quantity(spread)} times apart."
    verdict = Verdict.SUPPORTED if spread <= check.at_most else Verdict.REFUTED
    return verdict_on(check, sentence, verdict, found=Interval(spread), basis=basis_of([side], evidence))


def expected(check: SpreadCheck, tolerance: float) -> str:
    return f"at most {quantity(check.at_most)} times apart"
'''


def test_an_optimization_is_one_file_of_at_most_60_lines_and_one_line_of_yaml(project: Any) -> None:
    assert len(OPTIMIZATION.splitlines()) <= 60
    folder = project.folder / "src/claimbench/optimizations/engine"
    (folder / "shorter_steps.py").write_text(OPTIMIZATION, encoding="utf-8")
    cells = project.study["experiments"]["pace"]["cells"]
    cells["slow"] = {"options": {"step_ms": 20}}
    cells["fast"] = {"options": {"step_ms": 20}, "optimizations": ["shorter_steps"]}
    project.params["measure"]["blocks"] = 2
    project.write()
    project.snakemake("all")
    proven = [record["proof"].get("optimizations") for record in project.records()]
    assert proven.count({"shorter_steps": {"longest_step_ms": 5.0}}) == 2
    assert verdicts(project.folder)["P1"]["verdict"] == "supported"


def test_a_kind_of_check_is_its_model_and_its_file(project: Any) -> None:
    package = project.folder / "src/claimbench"
    model = (package / "schema/checks.py").read_text(encoding="utf-8")
    before, union, after = model.partition("\n\nCheck = Annotated[\n")
    assert union
    changed = before + CHECK + union + "    SpreadCheck |" + after
    (package / "schema/checks.py").write_text(changed, encoding="utf-8")
    (package / "judging/checks/spread.py").write_text(JUDGE, encoding="utf-8")
    check = {"kind": "spread", "metric": "decode_tok_s", "of": "pace/fast", "at_most": 100}
    claim = {"id": "P2", "kind": "spread", "statement": "Blocks agree within two orders of magnitude"}
    project.study["claims"].append({**claim, "checks": [check]})
    project.write()
    project.snakemake("all")
    found = verdicts(project.folder)["P2"]
    assert found["verdict"] == "supported"
    assert found["checks"][0]["expect"] == "at most 100 times apart"
    assert found["checks"][0]["results"]
    report = (project.folder / "reports/report.md").read_text(encoding="utf-8")
    assert "The blocks of fast are" in report


def test_an_edit_of_a_kind_of_check_judges_anew(rendered: Any) -> None:
    """Kinds are imported by name, so no import shows that judging depends on them."""
    with (rendered.folder / "src/claimbench/judging/checks/ratio.py").open("a", encoding="utf-8") as file:
        file.write("\nNEW = 1\n")
    assert rendered.jobs() == {"judge": 1, "report": 1, "all": 1, "total": 3}


def verdicts(folder: Path) -> dict[str, Any]:
    written = json.loads((folder / "results/verdicts.json").read_text(encoding="utf-8"))["verdicts"]
    return {claim["id"]: claim for claim in written["claims"]}
