"""What people hand to the product by mistake: plan, forecast, fetch or shard says in one sentence what it is."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.fake_hub import Hub
from tests.unit.projects import SOURCE, STUDY, Say, fetched, flow_of, forget, plan_of, sharded, written

from claimbench.checkpoints import fetch, manifest
from claimbench.checkpoints.weight_files import INDEX
from claimbench.errors import ConfigError
from claimbench.planning import paths
from claimbench.schema import result
from claimbench.workflow import jobs

Files = dict[str, bytes]


@pytest.fixture
def folder(project: Path, counted_model: Path) -> Path:
    """A tiny model in a folder of its own, whose name is as people write them."""
    place = project / "my models {v1}" / "mine"
    shutil.copytree(counted_model, place, ignore=shutil.ignore_patterns("manifest.json"))
    return place


def source_of(folder: Path) -> str:
    return f"file://{folder}"


CONFIGS: dict[str, tuple[str, str]] = {
    "a list": ("[]", "expected a mapping with a model_type"),
    "not JSON": ("{", "not JSON"),
    "not text": ("\ud800", "not JSON"),
    "nested as a list": ("[" * 100_000, "not JSON"),
    "nested as mappings": ('{"model_type": "llama", "a": ' + '{"a": ' * 2_000 + "1" + "}" * 2_001, "not JSON"),
    "not a number": ('{"model_type": "llama", "rms_norm_eps": NaN}', "not JSON"),
    "not finite": ('{"model_type": "llama", "rms_norm_eps": 1e999}', "not JSON"),
    "digits without end": ('{"model_type": "llama", "a": ' + "1" * 5_000 + "}", "not JSON"),
    "larger than a config": (" " * 10_000_001, "not JSON (larger than 10000000 bytes)"),
    "no model": ("{}", "expected a mapping with a model_type"),
    "a kind that is a number": ('{"model_type": 3}', "expected a mapping with a model_type"),
    "no heads": ('{"model_type": "llama", "num_attention_heads": 0}', "num_attention_heads: expected a whole number"),
    "no keys": ('{"model_type": "llama", "num_key_value_heads": 0}', "num_key_value_heads: expected a whole number"),
    "layers without end": (
        '{"model_type": "llama", "num_hidden_layers": 1000000000000}',
        "num_hidden_layers: expected",
    ),
    "layers in words": ('{"model_type": "llama", "num_hidden_layers": "many"}', "num_hidden_layers: expected"),
    "a list of layers": ('{"model_type": "llama", "num_hidden_layers": [1]}', "num_hidden_layers: expected"),
    "part of a layer": ('{"model_type": "llama", "num_hidden_layers": 1.5}', "num_hidden_layers: expected"),
    "in its language part": (
        '{"model_type": "gemma3", "text_config": {"num_hidden_layers": -1}}',
        "num_hidden_layers: expected a whole number from 1",
    ),
    "experts without end": (
        '{"model_type": "mixtral", "num_local_experts": 1000000000000}',
        "num_local_experts: expected a whole number",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("stage", ["plan", "forecast", "hub"])
def test_a_bad_config_ends_the_plan(case: str, stage: str, folder: Path, online: Hub, say: Say) -> None:
    text, words = CONFIGS[case]
    config = text.encode("utf-8", "surrogatepass")
    (folder / "config.json").write_bytes(config)
    online.files["config.json"] = config
    source = SOURCE if stage == "hub" else source_of(folder)
    params, studies = written(source), str(Path("studies").resolve())
    before, begun = set(Path(".claimbench").rglob("*")), time.monotonic()
    asked = ["--params", json.dumps(params), "--studies", studies, "--digest", "x", "--output", "plan.json"]
    status, _, err = say("plan", *asked) if stage != "forecast" else say("forecast")
    assert status == 3
    assert words in err or (stage == "hub" and "config.json: expected at most 10000000 bytes" in err)
    assert source.removeprefix("file://").partition("@")[0].removeprefix("hf://") in err
    assert "config.json" in err
    assert err.count("\n") == 1
    assert len(err) < 400
    assert time.monotonic() - begun < 10
    assert set(Path(".claimbench").rglob("*")) == before
    assert not Path("plan.json").exists()


@pytest.mark.model
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "no_such_model"}, "knows no model_type 'no_such_model'"),
        ({"hidden_size": 33}, "config.json"),
        ({"max_position_embeddings": -4}, "config.json: context: Input should be greater than or equal to 1, got -4"),
    ],
)
def test_a_config_that_no_model_can_be_made_of(change: dict[str, Any], words: str, folder: Path, say: Say) -> None:
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    written(source_of(folder))
    status, _, err = say("forecast")
    assert status == 3
    assert words in err
    assert err.count("\n") == 1


def _only(*kept: str, **added: bytes) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        return {name: content for name, content in files.items() if name in kept} | added

    return change


def _renamed(name: str) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        others = {name: content for name, content in files.items() if not name.startswith("model")}
        return others | {name: files["model.safetensors"]}

    return change


KEPT = ("config.json", "tokenizer.json", "tokenizer_config.json")
FOLDERS: dict[str, tuple[Callable[[Files], Files], str]] = {
    "an adapter": (
        _only(*KEPT, **{"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}),
        "it is an adapter, which changes another model: merge it into that one first",
    ),
    "one shard without an index": (
        _renamed("model-00001-of-00001.safetensors"),
        "1 of its files are safetensors without an index: rename model-00001-of-00001.safetensors to model.safetensors",
    ),
    "shards without an index": (
        _only(*KEPT, **{"model-00001-of-00002.safetensors": b"x", "model-00002-of-00002.safetensors": b"x"}),
        "2 of its files are safetensors without an index: its index is missing, fetch it again",
    ),
    "consolidated": (_renamed("consolidated.safetensors"), "consolidated files are in a format of their maker's own"),
    "GGUFs alone": (_only(*KEPT, **{"q4.gguf": b"GGUF"}), "name one of its GGUF files, such as q4.gguf"),
    "no tokenizer": (_only("config.json", "model.safetensors"), "expected a tokenizer (tokenizer.json), found none"),
    "a shard that is missing": (
        _only(*KEPT, **{"model.safetensors.index.json": b'{"weight_map": {"a": "absent.safetensors"}}'}),
        "expected a file absent.safetensors, which model.safetensors.index.json names",
    ),
    "an index that leads elsewhere": (
        _only(*KEPT, **{"model.safetensors.index.json": b'{"weight_map": {"a": "../../secret"}}'}),
        "is not an index of shards (expected names of safetensors files)",
    ),
    "an index of nothing": (_only(*KEPT, **{"model.safetensors.index.json": b"[]"}), "is not an index of shards"),
    "an index of numbers": (
        _only(*KEPT, **{"model.safetensors.index.json": b'{"weight_map": {"a": 1, "b": "c"}}'}),
        "is not an index of shards",
    ),
    "an index that is no text": (
        _only(*KEPT, **{"model.safetensors.index.json": b"\xff"}),
        "is not an index of shards",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_folder_that_is_no_checkpoint_says_what_it_is(
    case: str, place: str, folder: Path, online: Hub, say: Say
) -> None:
    """It is said by the plan, and by the fetch where it was whole when it was planned."""
    change, words = FOLDERS[case]
    flow = flow_of(source_of(folder) if place == "folder" else SOURCE)
    files = change({path.name: path.read_bytes() for path in folder.iterdir()})
    online.files = files
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    where, err = fetched(flow, say)
    forget()
    said = [err]
    if place == "folder" or INDEX not in files:  # of a hub's files a plan reads the config alone
        status, _, err = say("forecast")
        assert status == 3
        said.append(err)
    for err in said:
        assert words in err
        assert err.count("\n") == 1
        assert str(folder) in err or "hf://org/tiny@" in err
    assert not [path for path in where.glob("*") if path.name != "source.json.partial"]


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_pickles_alone_make_a_cell_unavailable(place: str, folder: Path, online: Hub, say: Say) -> None:
    for name in [name for name in online.files if name.startswith("model")]:
        del online.files[name]
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    flow = flow_of(source_of(folder) if place == "folder" else SOURCE)
    (row,) = flow.plan.studies["s"].rows["one"].values()
    assert row.cell is None
    assert row.unavailable
    assert "found only pytorch_model.bin: pickle files can run code and are never loaded" in row.unavailable
    assert "docs/checkpoints.md" in row.unavailable
    assert flow.manifests == []
    status, out, _ = say("forecast")
    assert status == 0
    assert "mine: unavailable: " in out


def test_a_whole_file_is_taken_before_a_stale_index_as_transformers_does(folder: Path, say: Say) -> None:
    stale = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00009.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(stale))
    where, err = fetched(flow_of(source_of(folder)), say)
    assert not err
    assert "model.safetensors" in {file.name for file in fetch.read(where).files}


def test_shards_without_any_help_are_whole_with_consolidated_ones_beside(folder: Path, say: Say) -> None:
    (folder / "consolidated.safetensors").write_bytes(b"x")
    (folder / "adapter_model.bin").write_bytes(b"x")
    where, err = sharded(flow_of(source_of(folder)), say)
    assert not err
    assert manifest.verify(where).weight_files


EXTRA = {
    "a scale": {"model.layers.0.self_attn.k_scale": np.ones((), np.float32)},
    "integer buffers": {"model.layers.0.self_attn.steps": np.arange(4, dtype=np.int64)},
    "a layer that predicts further": {"model.layers.9.mlp.gate_proj.weight": np.ones((4, 4), np.float32)},
}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("case", EXTRA)
def test_tensors_that_a_model_has_no_use_for_are_no_mistake(case: str, cut: bool, folder: Path, say: Say) -> None:
    path = folder / "model.safetensors"
    import torch
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    save(load(path) | {name: torch.from_numpy(np.array(value)) for name, value in EXTRA[case].items()}, path)
    params = written(source_of(folder)) | ({"shard": {"max_shard_mb": 0.2}} if cut else {})
    flow = jobs.Workflow(params, Path("studies"))
    most = ["--max-shard-mb", "0.2"] if cut else []
    ((name, checkpoint),) = flow.checkpoints.items()
    where = paths.CHECKPOINTS / name
    arguments = ["--checkpoint", jobs.as_json(checkpoint), "--fetched", "f", "--output", str(where), *most]
    status, _, err = say("shard", *arguments)
    assert (status, err) == (0, "")
    assert manifest.verify(where).weight_files


@pytest.mark.parametrize("name", ["Mistral 7B", "my/model", "Größe", "-x", ""])
def test_a_name_that_cannot_be_a_folder_s_says_what_would_be(name: str, project: Path, say: Say) -> None:
    params = {"studies": ["s"], "checkpoints": {name: "random://tiny-llama"}}
    written("random://tiny-llama")
    with pytest.raises(ConfigError, match="a name has letters, digits, dots, dashes and underscores: write '"):
        jobs.plan_for(params, Path("studies"))


@pytest.mark.parametrize("name", ["Qwen2", "Mistral-7B_v0.1"])
def test_a_name_with_capitals_is_one(name: str, project: Path) -> None:
    params = {"studies": ["s"], "device": "cpu", "checkpoints": {name: "random://tiny-llama"}}
    written("random://tiny-llama", STUDY | {"defaults": STUDY["defaults"] | {"checkpoint": name}})
    assert [Path(path).parent.name.startswith(name) for path in jobs.Workflow(params, Path("studies")).manifests] == [
        True
    ]


def test_a_missing_folder_is_told_of(project: Path, say: Say) -> None:
    written("file://absent/model")
    status, out, _ = say("forecast")
    assert status == 0
    assert f"mine: nothing is known of it before it is fetched (file://{project}/absent/model: there is no such" in out
    where, err = fetched(flow_of("file://absent/model"), say)
    assert err == f"claimbench: file://{project}/absent/model: there is no such file or folder\n"
    assert not where.exists() or not list(where.iterdir())


def test_a_home_that_nobody_has_is_one_sentence(project: Path, say: Say) -> None:
    written("file://~nobody-there/model")
    status, _, err = say("forecast")
    assert status == 3
    assert err == "claimbench: file://~nobody-there/model: expected a folder, and nobody here is called ~nobody-there\n"


@pytest.mark.parametrize("written_as", ["{}", "file:relative", "file://~"])
def test_a_folder_is_found_however_it_is_written(
    written_as: str, folder: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    spelt = {"{}": source_of(folder), "file:relative": "file://my models {v1}/mine", "file://~": "file://~"}[written_as]
    where, err = sharded(flow_of(spelt), say)
    assert not err
    assert manifest.verify(where).source == spelt


def test_a_prompt_longer_than_the_model_s_positions_is_refused_when_planned(folder: Path, project: Path) -> None:
    long = STUDY | {"prompts": {"hello": "word " * 3000}}
    with pytest.raises(ConfigError, match=r"prompt and new tokens make 3004, but 'mine' has a context of 2048"):
        plan_of(source_of(folder), long)
    with pytest.raises(ConfigError, match=r"prompt and new tokens make 3004, but .* has a context of 2048"):
        plan_of("random://tiny-llama", STUDY | {"prompts": {"hello": "w" * 3000}})


def measured(flow: jobs.Workflow, say: Say, where: Path) -> tuple[str, str]:
    """Outcome and reason of the first block, as the rule `measure` has it."""
    (id,) = flow.plan.cells
    assert not sharded(flow, say)[1]
    status, _, _ = say("measure", *shlex.split(flow.flags(id, 0)), "--output", str(where))
    assert status == 0
    found = result.read(where)
    return found.outcome, found.reason or ""


@pytest.mark.model
def test_a_prompt_that_proves_too_long_is_refused_as_the_block_starts(folder: Path, say: Say, tmp_path: Path) -> None:
    params = written(source_of(folder), STUDY | {"prompts": {"hello": "x" * 3000}})
    flow = jobs.Workflow(params, Path("studies"))
    outcome, reason = measured(flow, say, tmp_path / "result.json")
    assert outcome == "error"
    assert reason == (
        "mine: the prompt has 3000 tokens and 4 are to follow, but the model has 2048 positions: ask for fewer"
    )


@pytest.mark.model
def test_a_tokenizer_of_another_vocabulary_is_told_of(folder: Path, say: Say, tmp_path: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["H"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    outcome, reason = measured(flow_of(source_of(folder)), say, tmp_path / "result.json")
    assert outcome == "error"
    assert "gives token 5000, but the model knows 320 tokens only: the folder mixes two checkpoints" in reason
