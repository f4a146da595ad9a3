"""Every study plans to the cells that it planned to before: an id that changes has its cell measured anew everywhere.

Where a change is meant, write the ids again and name the reason in CHANGELOG.md:

    python tests/unit/test_cell_ids.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from claimbench.checkpoints import cards
from claimbench.planning import expand
from claimbench.planning.plan import make_plan
from claimbench.schema.cell import Device
from claimbench.schema.params import load_params, load_studies, study_files
from claimbench.schema.validation import read_yaml
from claimbench.workflow.jobs import with_contents

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).parent / "data/cell_ids.json"

CPU: dict[str, Any] = {"key": "cpu000000000", "cpu": {"model": "Example CPU", "cores": 2}, "memory_gb": 25, "gpus": []}
GPU = {**CPU, "key": "gpu000000000", "gpus": [{"name": "NVIDIA A100-SXM4-80GB", "memory_bytes": 85899345920}] * 8}
NO_LIMITS = dict.fromkeys(("new_tokens", "prompt_tokens", "batch", "batch_tokens", "samples", "devices"))
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], Device]] = {
    "as_it_is": ({}, CPU, "cpu"),
    "gpu": ({"limits": NO_LIMITS, "swap": {}}, GPU, "cuda"),  # as the documents ask
}
STUDIES = sorted(study_files(ROOT / "studies"))


def planned_ids(setting: str, study: str) -> dict[str, Any]:
    """Address -> id of its cell, None where none can be planned; and the ids of all references."""
    changed, machine, device = SETTINGS[setting]
    params = load_params({**read_yaml(ROOT / "params.yaml"), **changed, "studies": [study]})
    studies = load_studies(params.studies, ROOT / "studies")
    with mock.patch.object(cards, "on_hub", return_value=None):  # branches move
        params = params.model_copy(update={"checkpoints": with_contents(params, studies.values())})
    with mock.patch.object(expand, "ENVIRONMENTS", Path("none is built")):
        plan = make_plan(params, studies, machine, device)
    rows = plan.studies[study].rows
    ids: dict[str, Any] = {f"{name}/{address}": row.cell for name in rows for address, row in rows[name].items()}
    return ids | {"references": sorted(id for id, planned in plan.cells.items() if planned.reference == id)}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_plans_to_the_same_cells(study: str, setting: str) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))[setting][study]
    assert planned_ids(setting, study) == recorded


def test_every_study_is_recorded() -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert {setting: sorted(found) for setting, found in recorded.items()} == dict.fromkeys(SETTINGS, STUDIES)


if __name__ == "__main__":
    os.chdir(ROOT)
    found = {setting: {study: planned_ids(setting, study) for study in STUDIES} for setting in SETTINGS}
    RECORDED.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n", encoding="utf-8")
