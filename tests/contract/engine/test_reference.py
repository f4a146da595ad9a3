"""The plain engine is the model that Transformers runs, in every family, alone and in padded batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine.conftest import FAMILIES, LoadEngine, engine_cell, rows_of, save_family

from claimbench import backends
from claimbench.errors import CorruptCheckpoint, Unavailable, WrongOutput

pytestmark = pytest.mark.model

WORKLOADS: dict[str, dict[str, Any]] = {"one": {}, "batch": {"batch": 3}, "ragged": {"batch": 3, "shortest": 4}}


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_it_says_what_transformers_says(architecture: str, workload: dict[str, Any], load_engine: LoadEngine) -> None:
    ours = load_engine(architecture=architecture, **workload)
    theirs = load_engine(architecture=architecture, backend="transformers", **workload)
    rows = rows_of(theirs)
    assert rows_of(ours) == rows
    assert rows_of(ours) == rows, "the second generation differs from the first"
    assert float((ours.log_probs(rows[0]) - theirs.log_probs(rows[0])).abs().max()) < 1e-4


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "the error function's GELU, as StarCoder": ("tiny-bigcode", {"activation_function": "gelu"}),
    "a key-value head for every head": ("tiny-bigcode", {"multi_query": False}),
    "heads that are no power of two": ("tiny-bloom", {"hidden_size": 96, "n_head": 6}),
    "a head of its own": ("tiny-bloom", {"tie_word_embeddings": False}),
    "a tied head": ("tiny-llama", {"tie_word_embeddings": True}),
    "wide heads and another theta": ("tiny-llama", {"head_dim": 32, "rope_theta": 100000.0}),
}


@pytest.mark.parametrize(("architecture", "changed"), VARIANTS.values(), ids=VARIANTS)
def test_it_knows_the_variants_of_its_families(architecture: str, changed: dict[str, Any], tmp_path: Path) -> None:
    folder = save_family(tmp_path, architecture, **changed)
    cells = [engine_cell(architecture=architecture, backend=name) for name in ("engine", "transformers")]
    ours, theirs = (backends.find(cell.backend).load(cell, folder, None) for cell in cells)
    rows = rows_of(theirs)
    assert rows_of(ours) == rows
    assert float((ours.log_probs(rows[0]) - theirs.log_probs(rows[0])).abs().max()) < 1e-4


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_step_reads_the_weights_that_the_cost_model_counts(architecture: str, load_engine: LoadEngine) -> None:
    session = load_engine(architecture=architecture)
    assert session.memory()["step_weights"] == 4 * session.decoder.spec.arch.step_weights


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_runs_in_16_bits(dtype: str, load_engine: LoadEngine) -> None:
    session = load_engine(dtype=dtype, batch=2)
    assert [len(row) for row in rows_of(session)] == [10, 10]
    assert set(session.prove()["weights"]) == {f"Parameter {dtype}", "Tensor float32"}


def test_the_plain_cache_grows_by_a_token_a_step(load_engine: LoadEngine) -> None:
    session = load_engine(batch=2)
    rows_of(session)
    held = session.prove()["cache_bytes"]
    arch = session.decoder.spec.arch
    column = 2 * arch.layers * 2 * arch.kv_heads * arch.head_dim * 4
    assert held == [(session.prompt_tokens + step) * column for step in range(1, len(held) + 1)]


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    import safetensors.torch

    folder = save_family(tmp_path, "tiny-llama")
    (file,) = folder.glob("*.safetensors")
    tensors = safetensors.torch.load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(CorruptCheckpoint, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        backends.find("engine").load(engine_cell(), folder, None)


@pytest.mark.parametrize("uses", [(), ("cache_static", "lookup_decoding"), ("cache_static", "cpp_block")])
def test_a_model_that_emits_nan_is_wrong(uses: tuple[str, ...], tmp_path: Path) -> None:
    import safetensors.torch

    folder = save_family(tmp_path, "tiny-llama")
    (file,) = folder.glob("*.safetensors")
    tensors = safetensors.torch.load_file(file)
    tensors["model.norm.weight"][0] = float("nan")
    safetensors.torch.save_file(tensors, file)
    session = backends.find("engine").load(engine_cell(*uses), folder, None)
    rows_of(session)
    with pytest.raises(WrongOutput, match="finite"):
        session.prove()


def test_a_step_that_emits_nan_after_a_sound_prefill_is_wrong(load_engine: LoadEngine) -> None:
    session = load_engine()
    step = session.decoder.step
    session.decoder.step = lambda *arguments: step(*arguments).fill_(float("nan"))
    with pytest.raises(WrongOutput, match="finite"):
        session.prove()


@pytest.mark.parametrize(
    ("architecture", "changed", "words"),
    [
        ("tiny-llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "this model does by dynamic"),
        ("tiny-llama", {"hidden_act": "relu"}, "hidden_act: expected silu"),
        ("tiny-bigcode", {"activation_function": "relu"}, "activation_function: expected gelu_pytorch_tanh"),
        ("tiny-bloom", {"apply_residual_connection_post_layernorm": True}, "post_layernorm: expected False"),
        ("tiny-llama", {"model_type": "mamba"}, "the engine has no state spaces"),
    ],
)
def test_a_variant_that_it_does_not_have_is_unavailable(
    architecture: str, changed: dict[str, Any], words: str, families: dict[str, Path], tmp_path: Path
) -> None:
    for file in families[architecture].iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | changed), encoding="utf-8")
    with pytest.raises(Unavailable, match=words):
        backends.find("engine").load(engine_cell(architecture=architecture), tmp_path, None)
