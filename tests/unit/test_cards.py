"""What is known of a model before its weights are fetched, from its config alone: published models, and bad configs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from claimbench.checkpoints import cards, counting
from claimbench.cost_model import cost
from claimbench.errors import SourceError
from claimbench.schema.card import Card, attended

LLAMA3_ROPE = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 8192,
}
PUBLISHED: dict[str, tuple[dict[str, Any], float, float]] = {
    # the numbers of the model's own config.json, then parameters in all and read for one token, as its makers say
    "Llama-3.1-8B": (
        {
            **{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336},
            **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
            **{"max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE},
        },
        8.03e9,
        8.03e9,
    ),
    "Qwen3-30B-A3B": (
        {
            **{"model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "head_dim": 128},
            **{"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4},
            **{"intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8},
            **{"max_position_embeddings": 40960, "tie_word_embeddings": False},
        },
        30.5e9,
        3.3e9,
    ),
    "gpt-oss-20b": (
        {
            **{"model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880},
            **{"num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64},
            **{"num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128},
            **{"max_position_embeddings": 131072, "tie_word_embeddings": False},
        },
        20.9e9,
        3.61e9,
    ),
    "DeepSeek-V3": (
        {
            **{"model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432},
            **{"num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128},
            **{"moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1},
            **{"num_experts_per_tok": 8, "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4},
            **{"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64},
            **{"v_head_dim": 128, "max_position_embeddings": 163840, "tie_word_embeddings": False},
        },
        671e9,
        37e9,
    ),
    "Gemma-3-27B, its language part": (
        {
            **{"model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 5376, "intermediate_size": 21504},
            **{"num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128},
            **{"sliding_window": 1024, "query_pre_attn_scalar": 168, "max_position_embeddings": 131072},
        },
        27.0e9,
        27.0e9,
    ),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> tuple[str, Card]:
    return request.param, counting.count(PUBLISHED[request.param][0])


def test_parameters_are_those_that_the_makers_publish(published: tuple[str, Card]) -> None:
    name, card = published
    _, whole, _ = PUBLISHED[name]
    assert card.weights == pytest.approx(whole, rel=0.01)


def test_a_token_reads_the_active_ones(published: tuple[str, Card]) -> None:
    """Most makers count the embedding as active, of which a step looks up one row."""
    name, card = published
    _, _, active = PUBLISHED[name]
    embedding = 0 if name == "gpt-oss-20b" else card.looked_up
    assert card.step_weights + embedding == pytest.approx(active, rel=0.03)


KEPT = {
    "Llama-3.1-8B": 2 * 32 * 8 * 128,
    "Qwen3-30B-A3B": 2 * 48 * 4 * 128,
    "DeepSeek-V3": 61 * (512 + 64),  # a compressed pair of key and value, and the part of a key that turns
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_for_a_token_follows_from_the_config(name: str) -> None:
    card = counting.count(PUBLISHED[name][0])
    assert card.kept_values(1000) - card.kept_values(999) == KEPT[name]


def test_windows_bound_what_is_kept() -> None:
    gemma, oss = (counting.count(PUBLISHED[name][0]) for name in ("Gemma-3-27B, its language part", "gpt-oss-20b"))
    of_a_layer = 2 * 16 * 128
    assert gemma.kept_values(8192) == of_a_layer * (10 * 8192 + 52 * 1023)
    assert oss.kept_values(8192) == 2 * 8 * 64 * (12 * 8192 + 12 * 127)


@pytest.mark.parametrize(
    ("new", "past", "window"), [(1, 0, 4), (5, 0, 4), (1, 10, 4), (3, 2, 4), (7, 100, 32), (4, 4, None)]
)
def test_pairs_are_counted_one_by_one(new: int, past: int, window: int | None) -> None:
    by_hand = sum(min(past + number, window or past + number) for number in range(1, new + 1))
    assert attended(new, past, window) == by_hand


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-bigcode", "tiny-bloom", "smollm2-135m", "santacoder"])
def test_what_is_counted_is_what_the_formulas_say(name: str) -> None:
    card, formula = counting.count(cost.config(name)), cost.architecture(name)
    for field in ("layers", "hidden", "vocabulary", "weights", "step_weights", "in_layers", "matrices"):
        assert getattr(card, field) == getattr(formula, field), field
    assert card.kept_values(100) == formula.kept_values(100)
    assert card.attention_products(3, 7) == formula.attention_products(3, 7)
    assert card.shape is not None
    assert cost.Architecture(**card.shape) == formula  # type: ignore[arg-type]


def test_the_first_layers_alone_have_fewer_weights() -> None:
    config, formula = cost.config("smollm2-135m"), cost.architecture("smollm2-135m")
    assert counting.count(config, keep_layers=6).weights == formula.kept(6).weights


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, config: object) -> str:
    """A folder with this config, a tokenizer, and a file of weights that is whole."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    save_file({"one": np.zeros(3, np.float32)}, folder / "model.safetensors")
    return f"file://{folder}"


def test_a_local_model_is_counted_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(here / "mine", cost.config("tiny-llama"))
    first = cards.find(source)
    assert first.card is not None
    assert first.card.weights == cost.architecture("tiny-llama").weights
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("counted again"))
    assert cards.find(source) == first


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ([], "expected a mapping with a model_type"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ({}, "expected a mapping with a model_type"),
        ({"model_type": 3}, "expected a mapping with a model_type"),
        ({"model_type": "no_such_model"}, "knows no model_type 'no_such_model'"),
        ({"model_type": "vit"}, "generates no text"),
        ({"model_type": "llama", "num_attention_heads": 0}, "num_attention_heads: expected a whole number from 1"),
        ({"model_type": "llama", "num_hidden_layers": 10**12}, "num_hidden_layers: expected a whole number from 1"),
        ({"model_type": "llama", "num_hidden_layers": "many"}, "num_hidden_layers: expected a whole number from 1"),
        ({"model_type": "llama", "vocab_size": -5}, "vocab_size: expected a whole number from 1"),
        ({"model_type": "llama", "hidden_size": 33, "num_attention_heads": 4}, "config.json"),
    ],
)
def test_a_bad_config_is_one_sentence(here: Path, config: object, words: str) -> None:
    source = write(here / "mine", config)
    with pytest.raises(SourceError) as refused:
        cards.find(source)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list((here / ".claimbench").rglob("*")) or not list((here / ".claimbench/cards").iterdir())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


INDEXED = json.dumps({"weight_map": {"one": "model-00001-of-00002.safetensors"}})
SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda mine: (mine / "model.safetensors").unlink(), "found neither"),
    "an adapter": (
        lambda mine: (
            (mine / "model.safetensors").rename(mine / "adapter_model.safetensors")
            and (mine / "adapter_config.json").write_text("{}")
        ),
        "it is an adapter, which changes another model: merge it into that one first",
    ),
    "cut short": (lambda mine: cut(mine / "model.safetensors"), "not a whole safetensors file"),
    "a shard is missing": (
        lambda mine: (mine / "model.safetensors").rename(mine / "model.safetensors.index.json").write_text(INDEXED),
        "expected a file model-00001-of-00002.safetensors, which model.safetensors.index.json names",
    ),
    "no tokenizer": (lambda mine: (mine / "tokenizer.json").unlink(), "expected a tokenizer (tokenizer.json)"),
    "no config": (lambda mine: (mine / "config.json").unlink(), "expected a file config.json, which is missing"),
    "GGUF files": (
        lambda mine: (mine / "model.safetensors").rename(mine / "q4.gguf"),
        "name one of its GGUF files, such as q4.gguf",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("counted", [True, False])
def test_a_folder_that_is_no_checkpoint_is_refused_when_it_is_planned(here: Path, how: str, counted: bool) -> None:
    source = write(here / "mine", cost.config("tiny-llama"))
    spoil, words = SPOILT[how]
    assert cards.find(source, counted=counted).unavailable is None
    spoil(here / "mine")
    with pytest.raises(SourceError) as refused:
        cards.find(source, counted=counted)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("counted", [True, False])
def test_a_folder_of_pickles_is_unavailable(here: Path, counted: bool) -> None:
    source = write(here / "mine", cost.config("tiny-llama"))
    (here / "mine/model.safetensors").rename(here / "mine/pytorch_model.bin")
    assert "found only pytorch_model.bin: pickle files" in str(cards.find(source, counted=counted).unavailable)


def test_what_lies_in_a_download_is_not_known_yet(here: Path) -> None:
    assert cards.find("pypi://package==1.0/model.gguf") == cards.Known()
    assert cards.find(f"file://{here}/absent") == cards.Known()
    assert cards.find("random://tiny-llama?seed=0") == cards.Known()
