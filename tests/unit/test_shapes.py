"""Configs with a name: of whatever model Transformers knows, with a formula or without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from claimbench.checkpoints import cards, manifest
from claimbench.checkpoints.shard import shard
from claimbench.checkpoints.sources import RandomSource, parse
from claimbench.cost_model import cost
from claimbench.errors import SourceError
from claimbench.planning.plan import make_plan
from claimbench.schema.cell import Checkpoint
from claimbench.schema.params import load_params, load_studies
from claimbench.schema.validation import read_yaml
from claimbench.workflow.jobs import with_contents

ROOT = Path(__file__).parents[2]
COUNTED = {"gemma-2b": 2_506_172_416, "opt-1.3b": 1_315_758_080, "opt-125m": 125_239_296}
"""Parameters, as the hub counts them in the files of these models."""
CPU: dict[str, Any] = {"key": "cpu000000000", "cpu": {"model": "Example CPU", "cores": 2}, "memory_gb": 25, "gpus": []}


def checkpoint(name: str, **more: Any) -> Checkpoint:
    return Checkpoint(name=name, source=f"random://{name}?seed=0", architecture=name, **more)


def test_every_named_config_has_numbers() -> None:
    assert set(cost.shape_names()) - set(cost.architecture_names()) == set(COUNTED)
    for name in cost.architecture_names():
        assert cost.architecture(name).weights > 0
        assert cards.of_shape(name) is None


@pytest.mark.parametrize("name", COUNTED)
def test_a_config_without_a_formula_is_counted(name: str) -> None:
    card = cards.of_shape(name)
    assert card is not None
    assert card.weights == COUNTED[name]
    config = cost.config(name)
    assert (card.layers, card.hidden) == (config["num_hidden_layers"], config["hidden_size"])
    assert cost.architecture_of(checkpoint(name)) is None
    assert cost.decoder_of(checkpoint(name, card=card)) == card
    assert cards.find(f"random://{name}?seed=3").card == card
    assert parse(f"random://{name}?seed=3") == RandomSource(name, seed=3)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A named shape that is as small as a test's."""
    config = cost.config("opt-125m") | {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 96, "vocab_size": 300}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "tiny-opt.json").write_text(json.dumps(config), encoding="utf-8")
    remembered = (cost.shape_names, cost.architecture_names, cost.config)
    with monkeypatch.context() as patched:
        patched.setattr(cost, "ARCHITECTURES", tmp_path / "shapes")
        for each in remembered:
            each.cache_clear()
        yield "tiny-opt"
    for each in remembered:
        each.cache_clear()


@pytest.mark.model
def test_random_weights_of_a_named_config_are_written_and_loaded(tiny: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shard(checkpoint(tiny), tmp_path / "fetched", tmp_path / "sharded")
    model, facts = AutoModelForCausalLM.from_pretrained(tmp_path / "sharded", output_loading_info=True)
    assert not facts["missing_keys"]
    assert type(model).__name__ == "OPTForCausalLM"
    card = cards.of_shape(tiny)
    assert card is not None
    held = sum(one.numel() for one in model.parameters())
    assert manifest.read(tmp_path / "sharded").parameters == card.weights == held


@pytest.mark.model
def test_a_folder_that_is_not_of_the_named_config_is_refused(tiny: str, tmp_path: Path) -> None:
    shard(checkpoint(tiny), tmp_path / "fetched", tmp_path / "sharded")
    (tmp_path / "sharded" / "model-00001-of-00001.safetensors").rename(tmp_path / "sharded" / "model.safetensors")
    folder = f"file://{tmp_path / 'sharded'}"
    shard(Checkpoint(name="same", source=folder, architecture=tiny), tmp_path / "linked", tmp_path / "again")
    assert manifest.verify(tmp_path / "again").architecture == tiny
    path = tmp_path / "sharded" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ffn_dim": 128}), encoding="utf-8")
    other = Checkpoint(name="other", source=folder, architecture=tiny)
    with pytest.raises(SourceError, match=f"other: file://.* is not a '{tiny}'"):
        shard(other, tmp_path / "linked2", tmp_path / "third")


def test_only_what_a_study_asks_for_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(cards, "of_shape", lambda name, _=None: asked.append(name))
    params = load_params(read_yaml(ROOT / "params.yaml"))
    with_contents(params, load_studies(("quickstart",), ROOT / "studies").values())
    assert not set(asked) & set(COUNTED)
    with_contents(params, load_studies(("llm_optims",), ROOT / "studies").values())
    assert set(COUNTED) <= set(asked)


def test_document_d_runs_on_its_own_models_drawn_at_random() -> None:
    random = {name: f"{name}-random" for name in (*COUNTED, "mistral-7b", "llama-2-7b")}
    params = load_params({**read_yaml(ROOT / "params.yaml"), "studies": ["llm_optims"], "swap": random})
    studies = load_studies(params.studies, ROOT / "studies")
    params = params.model_copy(update={"checkpoints": with_contents(params, studies.values())})
    plan = make_plan(params, studies, CPU, "cpu")
    rows = plan.studies["llm_optims"].rows
    assisted = plan.cells[str(rows["speculative"]["assisted"].cell)].cell
    assert assisted.draft is not None
    assert (assisted.checkpoint.name, assisted.draft.name) == ("opt-1.3b-random", "opt-125m-random")
    small = plan.cells[str(rows["model_size"]["small_dynamic"].cell)].cell
    assert small.checkpoint.card is not None
    assert small.checkpoint.card.weights == COUNTED["gemma-2b"]


def test_what_the_hub_has_as_a_pickle_alone_is_unavailable_and_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "on_hub", lambda *_, **__: None)
    params = load_params({**read_yaml(ROOT / "params.yaml"), "studies": ["llm_optims"], "swap": {}})
    studies = load_studies(params.studies, ROOT / "studies")
    params = params.model_copy(update={"checkpoints": with_contents(params, studies.values())})
    plan = make_plan(params, studies, CPU, "cpu")
    rows = plan.studies["llm_optims"].rows
    for row in (*rows["speculative"].values(), *rows["prompt_lookup"].values()):
        assert row.cell is None
        assert "the hub has it as a pickle" in str(row.unavailable)
    assert not {"opt-1.3b", "opt-125m"} & {planned.cell.checkpoint.name for planned in plan.cells.values()}
    assert rows["model_size"]["small_dynamic"].cell is not None
