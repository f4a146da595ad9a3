"""A plan that another version wrote is refused in one sentence, whatever stage reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from claimbench.__main__ import main
from claimbench.errors import ResultError
from claimbench.schema.json_file import digest
from claimbench.schema.plan import read

STUDY = "experiments: {pace: {question: q, cells: {fast: {options: {step_ms: 1}}}}}"


def test_what_is_written_is_read_again(lab: Any) -> None:
    plan = lab.plan(STUDY)
    path = Path(f"{plan.seal[:12]}.json")
    path.write_text(json.dumps(plan.model_dump(mode="json")), encoding="utf-8")
    assert read(path) == plan


EARLIER = "smollm2 (smollm2-135m) swapped for gemma-3-270m"


def earlier(lab: Any, deviation: str) -> Path:
    """A plan as the first version wrote it: prose about the document is its setting, deviations are sentences."""
    content = lab.plan(STUDY).model_dump(mode="json")
    document = content["studies"]["study"]["study"]["document"]
    document.pop("measured")
    document["setting"] = "one model, on one machine"
    content["studies"]["study"]["rows"]["pace"]["fast"]["deviations"] = [deviation]
    sealed = {name: value for name, value in content.items() if name != "commit"}
    path = Path(f"{digest(sealed, 12)}.json")
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_plan_of_an_earlier_form_is_read_as_it_is_written_now(lab: Any) -> None:
    found = read(earlier(lab, EARLIER))
    planned = found.studies["study"]
    assert planned.study.document.measured == "one model, on one machine"
    (deviation,) = planned.rows["pace"]["fast"].deviations
    assert deviation.text == "model: gemma-3-270m in place of smollm2"


def test_a_deviation_that_no_version_wrote_is_refused(lab: Any) -> None:
    with pytest.raises(ResultError, match="a deviation that no version of today knows: 'something else'"):
        read(earlier(lab, "something else"))


@pytest.mark.parametrize("text", ["", "[]", '{"device": "cpu"}'])
def test_a_plan_of_another_version_says_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ResultError, match=r"not a plan of this version of Claimbench .* makes it anew"):
        read(path)


def test_a_stage_ends_with_that_sentence_and_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = tmp_path / "plan.json"
    older.write_text('{"cells": {}, "version": 0}', encoding="utf-8")
    (tmp_path / "ceilings.json").write_text("{}", encoding="utf-8")
    flags = {"plan": older, "ceilings": tmp_path / "ceilings.json", "parquet": tmp_path / "t", "csv": tmp_path / "c"}
    status = main(["aggregate", *(text for name, path in flags.items() for text in (f"--{name}", str(path)))])
    assert status == ResultError.exit_status
    printed = capsys.readouterr().err
    assert printed.startswith(f"claimbench: {older}: not a plan of this version of Claimbench")
    assert "Traceback" not in printed
