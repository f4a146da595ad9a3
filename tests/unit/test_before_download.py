"""What the product knows of a model on a hub before it downloads it: through plan, forecast, fetch and shard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.fake_hub import COMMIT, LATER, Hub
from tests.unit.projects import SOURCE, Say, fetched, flow_of, forget, plan_of, sharded, written

from claimbench.checkpoints import fetch, manifest
from claimbench.workflow import jobs


def move(hub: Hub, **changed: bytes) -> None:
    """A new commit on the branch, with other files."""
    hub.commits[LATER] = hub.commits[COMMIT] | changed
    hub.branches["main"] = LATER


def test_a_plan_asks_for_the_config_alone(online: Hub) -> None:
    plan = plan_of()
    (planned,) = plan.cells.values()
    assert planned.cell.checkpoint.content == COMMIT
    assert planned.cell.checkpoint.card
    assert online.downloads() == ["config.json"]
    assert online.sent_bytes < len(online.files["config.json"]) + 2000
    assert len(online.requests) <= 4
    online.requests.clear()
    assert plan_of() == plan
    assert online.requests == []


@pytest.mark.parametrize("source", [SOURCE, {"source": SOURCE, "architecture": "tiny-llama"}, f"random://{SOURCE}"])
def test_two_commits_of_a_branch_share_no_result(source: str | dict[str, Any], online: Hub) -> None:
    first = flow_of(source)
    move(online)
    assert flow_of(source).results == first.results, "a branch stands for what it stood for at first"
    forget()
    second = flow_of(source)
    for name in ("results", "manifests", "fetched_checkpoints", "digest"):
        assert getattr(first, name) != getattr(second, name), name
    assert not {Path(path).parts[2] for path in first.results} & {Path(path).parts[2] for path in second.results}


@pytest.mark.parametrize("source", [SOURCE, {"source": SOURCE, "architecture": "tiny-llama"}, f"random://{SOURCE}"])
def test_what_was_planned_is_what_is_fetched(source: str | dict[str, Any], online: Hub, say: Say) -> None:
    flow = flow_of(source)
    config = json.loads(online.files["config.json"]) | {"rms_norm_eps": 0.5}
    move(online, **{"config.json": json.dumps(config).encode()})
    online.requests.clear()
    folder, err = fetched(flow, say)
    assert not err
    assert fetch.read(folder).revision == COMMIT
    assert (folder / "config.json").read_bytes() == online.commits[COMMIT]["config.json"]
    assert not [path for _, path, _ in online.requests if LATER in path]
    where, err = sharded(flow, say)
    assert not err
    assert manifest.verify(where).revision == COMMIT


def test_a_named_commit_is_fetched_without_a_word_of_the_branch(online: Hub, say: Say) -> None:
    move(online)
    folder, err = fetched(flow_of(f"{SOURCE}@{COMMIT}"), say)
    assert not err
    assert fetch.read(folder).revision == COMMIT


def test_a_checkpoint_that_no_cell_loads_is_not_asked_for(online: Hub) -> None:
    params = {**written("random://tiny-llama"), "swap": {"mine": "other"}}
    params["checkpoints"] |= {"mine": {"source": SOURCE, "architecture": "tiny-llama"}, "other": "random://tiny-llama"}
    params["checkpoints"] |= {"never": "hf://org/absent"}
    jobs.plan_for(params, Path("studies"))
    assert not [path for _, path, _ in online.requests if "absent" in path]
    assert online.downloads() == []


def test_a_plan_goes_on_without_a_hub_and_the_fetch_asks_for_another(
    project: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub, say: Say
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    flow = flow_of()
    (planned,) = flow.plan.cells.values()
    assert planned.cell.checkpoint.content is None
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    folder, err = fetched(flow, say)
    assert "the hub did not answer when the plan was made, so which commit main stands for is not known" in err
    assert err.count("\n") == 1
    assert not list(folder.iterdir())


def test_what_the_cache_has_is_planned_and_fetched_offline(online: Hub, say: Say, monkeypatch: Any) -> None:
    fetched(flow_of(), say)
    forget()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    flow = flow_of()
    (planned,) = flow.plan.cells.values()
    assert planned.cell.checkpoint.content == COMMIT
    assert planned.cell.checkpoint.card
    assert not fetched(flow, say)[1]


def test_a_forecast_knows_exact_bytes_by_type_from_headers_alone(online: Hub, say: Say) -> None:
    written(SOURCE)
    status, out, _ = say("forecast")
    assert status == 0
    (line,) = [line for line in out.splitlines() if line.startswith("  mine: ")]
    assert "127,296 parameters, 254.6 kB on disk (BF16), needs " in line
    assert "in float32, fits in" in line
    assert "a step reads" in line
    assert "disk: about 0.0 GB" in out
    weights = [headers for verb, path, headers in online.requests if path.endswith(".safetensors") and verb == "GET"]
    assert len(weights) == 2
    assert all("range" in headers for headers in weights)
    online.requests.clear()
    assert say("forecast")[1] == out
    assert online.requests == []


def test_a_forecast_says_that_the_hub_does_not_answer_and_goes_on(project: Path, say: Say, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    written(SOURCE)
    status, out, _ = say("forecast")
    assert status == 0
    assert "mine: nothing is known of it before it is fetched (hf://org/tiny: the hub does not answer" in out
    written({"source": SOURCE, "architecture": "tiny-llama"})
    status, out, _ = say("forecast")
    assert status == 0
    assert "a step reads" in out
    assert "(hf://org/tiny: the hub does not answer" in out


def gguf_of(folder: Path) -> bytes:
    """The tiny model as a GGUF file, by the product's own writer."""
    from claimbench.checkpoints import gguf_export

    return gguf_export.export(folder, folder.parent / "tiny.gguf").read_bytes()
