"""What the product knows of a model on a hub before it downloads it: through plan, forecast, fetch and shard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.fake_hub import COMMIT, LATER, Hub
from tests.unit.projects import SOURCE, Say, fetched, flow_of, forget, plan_of, sharded, written
from tests.unit.test_shard_models import write_gguf

from claimbench.checkpoints import fetch, headers, manifest
from claimbench.cost_model import cost
from claimbench.errors import SourceError
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


WEIGHTS = (".safetensors", ".index.json")


def files_without(hub: Hub, *ends: str) -> dict[str, bytes]:
    return {name: content for name, content in hub.files.items() if not name.endswith(ends)}


@pytest.mark.parametrize(
    ("left_out", "added", "words"),
    [
        (WEIGHTS, {}, "expected model.safetensors or model.safetensors.index.json"),
        (WEIGHTS, {"adapter_config.json": b"{}"}, "it is an adapter"),
        (WEIGHTS, {"q4.gguf": b"GGUF"}, "name one of its GGUF files, such as q4.gguf"),
        (("tokenizer.json", "vocab.json"), {}, "expected a tokenizer (tokenizer.json), found none"),
        (("config.json",), {}, "expected a file config.json, which is missing"),
    ],
)
def test_a_repository_that_is_no_checkpoint_is_refused_when_it_is_planned(
    online: Hub, left_out: tuple[str, ...], added: dict[str, bytes], words: str
) -> None:
    online.files = files_without(online, *left_out, ".bin") | added
    for _ in range(2):
        with pytest.raises(SourceError) as refused:
            plan_of()
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)
        assert set(online.downloads()) <= {"config.json"}


def test_random_weights_for_a_config_ask_for_no_others(online: Hub) -> None:
    online.files = files_without(online, *WEIGHTS, ".bin", "tokenizer.json")
    (planned,) = plan_of(f"random://{SOURCE}").cells.values()
    assert planned.cell.checkpoint.card


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


@pytest.mark.model
@pytest.mark.parametrize("begin", [20_000, 1 << 24])
def test_a_gguf_on_the_hub_is_forecast_from_its_header(
    begin: int, online: Hub, say: Say, tmp_path: Path, monkeypatch: Any
) -> None:
    write_gguf(tmp_path / "tiny.gguf", "Q8_0")
    content = (tmp_path / "tiny.gguf").read_bytes()
    online.files["tiny-q8.gguf"] = content
    monkeypatch.setattr(headers, "GGUF_BYTES", (4_000, begin))  # the first is inside the vocabulary
    written(f"{SOURCE}@main/tiny-q8.gguf")
    status, out, _ = say("forecast")
    assert status == 0
    line = next(line for line in out.splitlines() if line.startswith("  mine: "))
    whole = cost.architecture("tiny-llama")
    assert f"{whole.weights:,} parameters, " in line
    assert "on disk (Q8_0, F32), needs " in line
    assert "a step reads" in line
    assert online.downloads() == ["tiny-q8.gguf"] * 2
    assert online.sent_bytes < len(content) or begin > len(content)
    online.requests.clear()
    assert say("forecast")[1] == out
    assert online.requests == []


MODELS: dict[str, tuple[dict[str, Any], str, str]] = {
    # config, its parameters, and what a step reads: all but idle experts and rows not looked up, and one token kept
    "a mixture": (
        {
            **{"model_type": "mixtral", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128},
            **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
            **{"num_local_experts": 4, "num_experts_per_tok": 1, "max_position_embeddings": 256},
        },
        "262,976 parameters",
        "a step reads 380.7 kB",
    ),
    "windows": (
        {
            **{"model_type": "gemma3_text", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128},
            **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
            **{"sliding_window": 16, "max_position_embeddings": 256},
        },
        "94,848 parameters",
        "a step reads 379.9 kB",
    ),
    "latent attention": (
        {
            **{"model_type": "deepseek_v3", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128},
            **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4},
            **{"moe_intermediate_size": 32, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
            **{"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 32, "kv_lora_rank": 16},
            **{"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "max_position_embeddings": 256},
        },
        "122,528 parameters",
        "a step reads 359.2 kB",
    ),
}


@pytest.mark.model
@pytest.mark.parametrize("name", MODELS)
def test_a_forecast_knows_what_a_step_of_any_model_reads(name: str, online: Hub, say: Say) -> None:
    config, whole, read = MODELS[name]
    online.files["config.json"] = json.dumps(config).encode()
    written(SOURCE)
    status, out, _ = say("forecast")
    assert status == 0
    line = next(line for line in out.splitlines() if line.startswith("  mine: "))
    assert whole in line
    assert read in line
    assert "fits in" in line
