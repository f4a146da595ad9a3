"""A lab without a model: studies of the null backend, and the results that it would give, made without waiting."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.unit.fake_hub import Hub, serving
from tests.unit.projects import Say

from claimbench.__main__ import main
from claimbench.analysis import aggregate
from claimbench.checkpoints import cards
from claimbench.checkpoints.shard import shard
from claimbench.planning.plan import make_plan
from claimbench.schema import result
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.cell import Checkpoint, Device
from claimbench.schema.json_file import digest
from claimbench.schema.params import load_params
from claimbench.schema.plan import Plan, PlannedCell
from claimbench.schema.result import Result, Sample
from claimbench.schema.study import Study
from claimbench.schema.validation import parse_yaml, validate

CPU: dict[str, Any] = {"key": "cpu0", "cpu": {"model": "Example CPU @ 2 GHz"}, "gpus": []}
HEAD = """
title: A study of nothing
document: {title: A document}
prompts: {story: Once upon a time}
defaults: {checkpoint: small, prompt: story, backend: null_model, new_tokens: 5}
"""
OUTCOMES = {
    "hang": "timeout",
    "nan": "wrong",
    "short": "wrong",
    "unproven": "wrong",
    "kill": "error",
    "allocate": "oom",
}
PROMPT_TOKENS = 4

Invent = Callable[[PlannedCell, int], Result]


def measured(planned: PlannedCell, block: int, spread: float = 0.002, **changed: Any) -> Result:
    """What the null backend would have given: the cell's pace (10 ms a step unless it says), its token, its failure."""
    cell, workload = planned.cell, planned.cell.workload
    facts: dict[str, Any] = {"cell": cell, "block": block, "key": planned.key, "outcome": "ok", "duration_s": 1.0}
    facts |= {"started_at": "2024-01-01T00:00:00+00:00"}
    options = cell.options
    fails, fits = options.get("fails"), options.get("fits_batch")
    if fits is not None and workload.batch > fits:
        return Result(**facts | {"outcome": "oom", "reason": f"batch {workload.batch} does not fit"})
    if fails:
        return Result(**facts | {"outcome": OUTCOMES.get(fails, fails), "reason": f"asked for {fails}"})
    what = [cell.options, [use.name for use in cell.optimizations], workload.batch]
    random = np.random.default_rng([block, int(digest(what), 16)])
    level = float(np.exp(random.normal(0, spread)))
    tokens = (options.get("token", 1),) * workload.new_tokens
    step_ms = (options.get("step_ms") or 10.0) + options.get("row_ms", 0.0) * workload.batch
    samples = []
    for _ in range(cell.protocol.samples):
        noise = np.exp(random.normal(0, spread, workload.new_tokens)) * level
        milliseconds = np.array([options.get("prefill_ms") or 20.0, *[step_ms] * (workload.new_tokens - 1)]) * noise
        steps = tuple(int(value * 1e6) for value in milliseconds)
        samples.append(
            Sample(wall_ns=sum(steps), step_ns=steps, step_tokens=(1,) * len(steps), tokens_sha256=digest(tokens, 64))
        )
    facts |= {
        "samples": tuple(samples),
        "first_call_ns": samples[0].wall_ns + int(options.get("first_call_ms", 0.0) * 1e6),
        "load_ns": 1_000_000,
        "prompt_tokens": PROMPT_TOKENS,
        "tokens": tokens,
        "memory": {"weights": 1000, "step_weights": 0, "kv_cache": 0, "rss_before_load": 500, "rss_after_load": 1700},
    }
    return Result(**facts | changed)


class Lab:
    """Plans and tables under a temporary project folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plan(
        self,
        experiments: str,
        blocks: int = 3,
        machine: dict[str, Any] = CPU,
        device: Device = "cpu",
        more: dict[str, Any] | None = None,
    ) -> Plan:
        params = {
            "studies": ["study"],
            "checkpoints": {
                name: {"source": f"random://{architecture}?seed=0", "architecture": architecture}
                for name, architecture in (("small", "smollm2-135m"), ("large", "mistral-7b"))
            },
            "measure": {"blocks": blocks, "samples": 3},
            **(more or {}),
        }
        study = validate(Study, parse_yaml(HEAD + experiments, "study"), "study")
        return make_plan(load_params(params), {"study": study}, machine, device)

    def write(self, plan: Plan, invent: Invent = measured) -> None:
        for planned in plan.cells.values():
            for block, path in enumerate(planned.paths()):
                result.write(Path(path), invent(planned, block))

    def table(self, plan: Plan, invent: Invent = measured, ceilings: Ceilings | None = None) -> pd.DataFrame:
        self.write(plan, invent)
        return aggregate.aggregate(plan, ceilings or Ceilings())


@pytest.fixture
def lab(tmp_path: Path) -> Any:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield Lab(tmp_path)
    os.chdir(before)


@pytest.fixture
def made() -> Callable[..., Result]:
    """Makes the result of a planned cell's block; see `measured`."""
    return measured


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub that has a tiny model in two shards."""
    model = tmp_path / "model"
    random = Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama")
    shard(random, tmp_path / "nothing", model, max_shard_bytes=200_000)
    files = {path.name: path.read_bytes() for path in model.iterdir() if not path.name.startswith(".")}
    with serving(files | {"README.md": b"hello", "pytorch_model.bin": b"pickle"}) as server:
        yield server


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of the hub's model: counting takes seconds."""
    folder, before = tmp_path_factory.mktemp("counted"), Path.cwd()
    tiny = Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama")
    os.chdir(folder)
    try:
        shard(tiny, folder / "nothing", folder / "model")
        (folder / "model" / "model-00001-of-00001.safetensors").rename(folder / "model" / "model.safetensors")
        (folder / "model" / "model.safetensors.index.json").unlink()
        cards.find(f"file://{folder}/model")
    finally:
        os.chdir(before)
    return folder / cards.FOLDER


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: Path) -> Path:
    """An empty project, from which the hub of the test and no other is asked."""
    from huggingface_hub import constants

    (folder := tmp_path / "project").mkdir()
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("HF_") or "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    (folder / "studies").mkdir()
    shutil.copytree(counted, folder / ".claimbench" / "cards")
    return folder


@pytest.fixture
def online(project: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    hub.requests.clear()
    return hub


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(list(arguments))
        out, err = capsys.readouterr()
        return status, out, err[err.index("claimbench: ") :] if "claimbench: " in err else ""

    return run


@pytest.fixture(scope="session")
def counted_model(counted: Path) -> Path:
    """The model of that card: config, tokenizer and weights in one file."""
    return counted.parents[1] / "model"
