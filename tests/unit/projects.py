"""A project of one model and one cell, and the stages that a run would take through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from claimbench.planning import paths
from claimbench.schema.plan import Plan
from claimbench.workflow import jobs

SOURCE = "hf://org/tiny"
STUDY = {
    "title": "t",
    "document": {"title": "d"},
    "prompts": {"hello": "Hello"},
    "defaults": {"checkpoint": "mine", "prompt": "hello", "new_tokens": 4},
    "experiments": {"one": {"question": "q", "cells": {"only": {}}}},
}
Say = Callable[..., tuple[int, str, str]]


def forget() -> None:
    """Which commits branches stood for; what was counted of a config stays."""
    for path in Path(".claimbench/cards").glob("*.json"):
        if "commit" in json.loads(path.read_text(encoding="utf-8")):
            path.unlink()


def plan_of(source: str | dict[str, Any] = SOURCE, study: dict[str, Any] = STUDY) -> Plan:
    return jobs.plan_for(written(source, study), Path("studies"))


def written(source: str | dict[str, Any], study: dict[str, Any] = STUDY) -> dict[str, Any]:
    params = {"studies": ["s"], "device": "cpu", "checkpoints": {"mine": source}}
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    Path("studies/s.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    return params


def flow_of(source: str | dict[str, Any] = SOURCE) -> jobs.Workflow:
    return jobs.Workflow(written(source), Path("studies"))


def fetched(flow: jobs.Workflow, say: Say) -> tuple[Path, str]:
    """Where the rule `fetch` would bring the checkpoint, after it has; and what it said."""
    ((folder, checkpoint),) = flow.fetched_checkpoints.items()
    where = paths.FETCHED / folder
    status, _, err = say("fetch", "--checkpoint", jobs.as_json(checkpoint), "--output", str(where))
    assert status == (3 if err else 0)
    return where, err


def sharded(flow: jobs.Workflow, say: Say) -> tuple[Path, str]:
    """The same of the rule `shard`."""
    ((folder, checkpoint),) = flow.checkpoints.items()
    where, source = paths.CHECKPOINTS / folder, str(Path(flow.fetched(folder)).parent)
    arguments = ["--checkpoint", jobs.as_json(checkpoint), "--fetched", source, "--output", str(where)]
    status, _, err = say("shard", *arguments)
    assert status == (3 if err else 0)
    return where, err
