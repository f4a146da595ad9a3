"""What the Snakefile asks: content that no source pins is part of a cell and of its checkpoint's folder."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from claimbench.cost_model import cost
from claimbench.planning import paths
from claimbench.planning.plan import order
from claimbench.workflow import jobs

STUDY = {
    "title": "t",
    "document": {"title": "d"},
    "prompts": {"hello": "Hello"},
    "defaults": {"checkpoint": "tiny", "prompt": "hello", "new_tokens": 4},
    "experiments": {"one": {"question": "q", "cells": {"only": {}}}},
}


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "s.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    return folder


def write_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(cost.config("tiny-llama")), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    save_file({"one": np.zeros(3, np.float32)}, folder / "model.safetensors")


def folder_for(source: str, studies: Path) -> tuple[str, str]:
    """The checkpoint's folder and the cell's id."""
    checkpoint = {"source": source, "architecture": "tiny-llama"}
    params: dict[str, Any] = {"studies": ["s"], "device": "cpu", "checkpoints": {"tiny": checkpoint}}
    plan = jobs.plan_for(params, studies)
    (planned,) = plan.cells.values()
    return paths.folder_of(plan, planned.cell.checkpoint), planned.cell.id


def test_another_file_in_a_local_folder_is_another_checkpoint(studies: Path, tmp_path: Path) -> None:
    local = tmp_path / "weights"
    write_model(local)
    weights = local / "model.safetensors"
    first = folder_for(f"file://{local}", studies)
    weights.touch()
    assert folder_for(f"file://{local}", studies) == first
    save_file({"one": np.ones(3, np.float32)}, weights)
    second = folder_for(f"file://{local}", studies)
    assert first[0] != second[0]
    assert first[1] != second[1]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("kind", ["whole", "pickles", "absent", "random", "said to be unavailable"])
def test_a_plan_of_a_plans_parameters_is_that_plan(studies: Path, tmp_path: Path, kind: str, declared: bool) -> None:
    """A job makes the plan again from the parameters that it is given, and stops where it is another one."""
    checkpoint: dict[str, Any] = {"source": f"file://{tmp_path / 'mine'}"}
    if kind != "absent":
        write_model(tmp_path / "mine")
    if kind == "pickles":
        (tmp_path / "mine/model.safetensors").rename(tmp_path / "mine/pytorch_model.bin")
    if kind == "random":
        checkpoint["source"] = "random://tiny-llama?seed=0"
    if kind == "said to be unavailable":
        checkpoint["unavailable"] = "its licence"
    if declared:
        checkpoint["architecture"] = "tiny-llama"
    workflow = jobs.Workflow({"studies": ["s"], "device": "cpu", "checkpoints": {"tiny": checkpoint}}, studies)
    again = jobs.plan_for(json.loads(workflow.params_json), studies)
    assert again == workflow.plan
    assert jobs.digest_of(again) == workflow.digest
    assert bool(workflow.plan.cells) == (kind in ("whole", "absent", "random"))


def test_random_weights_of_a_changed_architecture_are_another_checkpoint(
    studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = folder_for("random://tiny-llama?seed=0", studies)
    assert folder_for("random://tiny-llama?seed=0", studies) == first
    changed = {**cost.config("tiny-llama"), "rope_theta": 12345.0}
    monkeypatch.setattr(cost, "config", lambda _: changed)
    assert folder_for("random://tiny-llama?seed=0", studies) != first


def test_blocks_that_an_experiment_compares_are_measured_side_by_side(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8")) | {"studies": ["quickstart"]}
    study = (root / "studies/quickstart.yaml").read_text(encoding="utf-8")
    (tmp_path / "quickstart.yaml").write_text(study.replace("budget_minutes: 10, ", ""), encoding="utf-8")
    plan = jobs.plan_for(params, tmp_path)
    first: dict[str, str] = {}
    for experiment, rows in plan.studies["quickstart"].rows.items():
        for row in rows.values():
            first.setdefault(str(row.cell), experiment)
    sequence = order(plan)
    assert sorted(sequence) == sorted((id, n) for id, planned in plan.cells.items() for n in range(planned.blocks))
    rounds = [[id for id, n in sequence if n == block] for block in range(3)]
    assert [n for _, n in sequence] == sorted(n for _, n in sequence)
    for ids in rounds:
        visits = [experiment for experiment, _ in groupby(ids, key=lambda id: first.get(id, ""))]
        assert len(visits) == len(set(visits)) >= 5
    assert rounds[1] != rounds[2]
