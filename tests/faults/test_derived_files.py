"""What is made of results is believed only where it follows from them: else one sentence, status 4 and no report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet
from tests.unit.conftest import CPU, Lab

from claimbench.__main__ import main
from claimbench.schema import ceilings
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.json_file import digest
from claimbench.schema.plan import Plan

STUDY = """
experiments:
  speed: {question: q, cells: {one: {}, half: {options: {step_ms: 20}}}}
claims:
- {id: C, kind: ratio, statement: s, checks: [
    {kind: ratio, metric: step_ms, of: speed/half, to: speed/one, expect: above}]}
"""
TABLE, VERDICTS, CEILINGS, REPORT = (
    Path(name) for name in ("table.parquet", "verdicts.json", "ceilings.json", "report")
)
LIMITS = Ceilings(device="cpu", machine=CPU["key"], read_bytes_per_s=1e10, matmul_flops_per_s={"float32": 1e12})


class Stages:
    """The stages behind the results, on files in the current folder."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.path = Path(f"{plan.seal[:12]}.json")
        self.path.write_text(plan.model_dump_json(), encoding="utf-8")
        self.flags: dict[str, list[str]] = {
            "aggregate": ["--ceilings", str(CEILINGS), "--parquet", str(TABLE), "--csv", "table.csv"],
            "judge": ["--table", str(TABLE), "--output", str(VERDICTS)],
            "report": ["--table", str(TABLE), "--verdicts", str(VERDICTS), "--ceilings", str(CEILINGS)],
        }
        self.flags["report"] += ["--output", str(REPORT)]

    def run(self, stage: str) -> int:
        return main([stage, "--plan", str(self.path), *self.flags[stage]])


@pytest.fixture
def stages(tmp_path: Path) -> Iterator[Stages]:
    before = Path.cwd()
    os.chdir(tmp_path)
    lab = Lab(tmp_path)
    plan = lab.plan(STUDY)
    lab.write(plan)
    ceilings.write(CEILINGS, LIMITS)
    made = Stages(plan)
    assert [made.run(stage) for stage in ("aggregate", "judge", "report")] == [0, 0, 0]
    for path in REPORT.glob("*.*"):
        path.unlink()
    yield made
    os.chdir(before)


def edited(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def faster(by: float) -> pd.DataFrame:
    table = pd.read_parquet(TABLE)
    table["decode_tok_s"] *= by
    return table


def with_metadata(table: pd.DataFrame) -> None:
    """As an editor does that keeps what it does not know."""
    kept = parquet.read_schema(TABLE).metadata
    arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
    parquet.write_table(arrow.replace_schema_metadata({**arrow.schema.metadata, **kept}), TABLE)


def resealed(path: Path, kind: str, change: Callable[[Any], object]) -> None:
    def seal(envelope: Any) -> None:
        change(envelope[kind])
        envelope["seal"] = digest(envelope[kind], length=64)

    edited(path, seal)


def plan_edited(stages: Stages) -> None:
    edited(stages.path, lambda plan: plan["params"]["measure"].update(tolerance=0.5))


def plan_of_another_study(stages: Stages) -> None:
    stages.__init__(Lab(Path.cwd()).plan(STUDY.replace("statement: s", "statement: t")))  # type: ignore[misc]


def limits(**changed: Any) -> Callable[[Stages], None]:
    return lambda _: ceilings.write(CEILINGS, Ceilings.model_construct(**LIMITS.model_copy(update=changed).__dict__))


def text_of(path: Path, text: str) -> Callable[[Stages], object]:
    return lambda _: path.write_text(text, encoding="utf-8")


def in_verdicts(envelope: Any) -> None:
    envelope["verdicts"]["claims"][0]["verdict"] = "refuted"


BROKEN: dict[str, tuple[Callable[[Stages], object], str]] = {
    "a verdict": (lambda _: edited(VERDICTS, in_verdicts), "verdicts were edited after they were made"),
    "verdicts without a seal": (
        lambda _: edited(VERDICTS, lambda envelope: envelope.pop("seal")),
        "not verdicts of this version of Claimbench ('seal')",
    ),
    "verdicts of another table": (
        lambda _: resealed(VERDICTS, "verdicts", lambda value: value["made_of"].update(table="0" * 64)),
        "verdicts.json does not follow from the table that it is shown with",
    ),
    "verdicts of another version": (
        lambda _: resealed(VERDICTS, "verdicts", lambda value: value.update(schema_version=9)),
        "not verdicts of this version",
    ),
    "verdicts nested": (text_of(VERDICTS, "[" * 200_000), "not verdicts of this version"),
    "a speed": (lambda _: faster(1000).to_parquet(TABLE), "not a table of this version of Claimbench (b'claimbench')"),
    "a speed, metadata kept": (lambda _: with_metadata(faster(1000)), "the table was edited after it was made"),
    "a row less": (lambda _: with_metadata(faster(1).iloc[1:]), "the table was edited after it was made"),
    "a table that is none": (text_of(TABLE, "PAR1"), "not a table of this version"),
    "no table": (lambda _: TABLE.unlink(), "cannot read the table table.parquet: No such file or directory"),
    "a plan": (plan_edited, "the plan was edited after it was made"),
    "another plan": (plan_of_another_study, "does not follow from the plan that it is shown with"),
    "ceilings": (
        lambda _: edited(CEILINGS, lambda envelope: envelope["ceilings"].update(read_bytes_per_s=1e9)),
        "ceilings were edited after they were made",
    ),
    "other ceilings": (limits(read_bytes_per_s=2e10), "does not follow from the ceilings that it is shown with"),
    "another machine's": (
        limits(machine="another"),
        "expected the ceilings of cpu on machine cpu0, got those of cpu on",
    ),
    "another device's": (limits(device="cuda"), "got those of cuda on machine cpu0"),
    "ceilings below nothing": (limits(read_bytes_per_s=-1.0), "not ceilings of this version of Claimbench"),
    "ceilings that are no number": (
        text_of(CEILINGS, '{"seal": "", "ceilings": {"read_bytes_per_s": NaN}}'),
        "not ceilings of this version of Claimbench",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_report_is_rendered_only_of_what_follows_from_its_inputs(
    case: str, stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking, words = BROKEN[case]
    breaking(stages)
    capsys.readouterr()
    assert stages.run("report") == 4
    err = capsys.readouterr().err
    assert words in err
    assert "Delete it" in err or "makes it" in err
    assert err.count("\n") == 1
    assert len(err) < 500
    assert not list(REPORT.glob("*.*"))


@pytest.mark.parametrize("case", ["a speed", "a speed, metadata kept", "a row less", "a plan", "another plan"])
def test_nothing_is_judged_that_does_not_follow(case: str, stages: Stages) -> None:
    breaking, _ = BROKEN[case]
    breaking(stages)
    before = VERDICTS.read_bytes()
    assert stages.run("judge") == 4
    assert VERDICTS.read_bytes() == before


@pytest.mark.parametrize(
    "case", ["a plan", "ceilings", "another machine's", "another device's", "ceilings below nothing"]
)
def test_nothing_is_gathered_beside_a_plan_or_ceilings_that_are_not_meant(case: str, stages: Stages) -> None:
    breaking, _ = BROKEN[case]
    breaking(stages)
    before = TABLE.read_bytes()
    assert stages.run("aggregate") == 4
    assert TABLE.read_bytes() == before


@pytest.mark.parametrize("path", [TABLE, VERDICTS, CEILINGS])
def test_a_fifo_in_place_of_a_file_is_not_waited_for(path: Path, stages: Stages, capsys: Any) -> None:
    path.unlink()
    os.mkfifo(path)
    assert stages.run("report") == 4
    assert "it is not a regular file" in capsys.readouterr().err


def test_all_of_it_made_anew_is_rendered(stages: Stages) -> None:
    plan_of_another_study(stages)
    assert [stages.run(stage) for stage in ("aggregate", "judge", "report")] == [0, 0, 0]
