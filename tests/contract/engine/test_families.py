"""Families beside Llama, GPT-BigCode and BLOOM: the engine, and its step in C, say what Transformers says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine.conftest import rows_of
from tests.contract.models import save

from claimbench import backends, optimizations
from claimbench.engine.model import families
from claimbench.engine.model.read_spec import read_spec
from claimbench.errors import Unavailable
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Workload

pytestmark = pytest.mark.model

LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
NO_CAP = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
NO_WINDOW = {"sliding_window": 256}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3 positions": ("llama", {"rope_parameters": LLAMA3}),
    "linear positions": ("llama", {"rope_parameters": LINEAR}),
    "yarn positions": ("llama", {"rope_parameters": YARN}),
    "biases everywhere": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "seed_oss": ("seed_oss", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, one half after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "phi": ("phi", {}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "opt": ("opt", {}),
    "gemma": ("gemma", {}),
    "gemma2 without caps": ("gemma2", NO_CAP | NO_WINDOW),
    "gemma3": ("gemma3_text", NO_WINDOW),
    "gemma3 with both kinds of layers": (
        "gemma3_text",
        NO_WINDOW | {"layer_types": [*["sliding_attention"] * 2, "full_attention", "sliding_attention"]},
    ),
    "granite": (
        "granite",
        {"embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.2, "logits_scaling": 8.0},
    ),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 1, 0]}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "phi3": ("phi3", NO_WINDOW),
    "mixtral": ("mixtral", {"sliding_window": None}),
    "qwen3_moe": ("qwen3_moe", {}),
    "olmoe": ("olmoe", {}),
}
WORKLOADS: dict[str, dict[str, Any]] = {"one": {}, "ragged": {"batch": 3, "shortest": 4}}


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose norms and biases vary as well."""
    import torch

    kind, changed = MODELS[request.param]
    where = tmp_path_factory.mktemp(kind)
    model = save(kind, where, **changed)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.1)
    model.save_pretrained(where)
    return where


def session(folder: Path, backend: str, *names: str, **workload: Any) -> Any:
    cell = Cell(
        checkpoint=Checkpoint(name="tiny", source="random://hf://tiny/tiny"),
        backend=backend,
        optimizations=tuple(
            OptimizationUse(name=name, settings=optimizations.settings_of(name, {}).model_dump(mode="json"))
            for name in sorted(names)
        ),
        workload=Workload(**{"prompt": "hello hello hello", "new_tokens": 10, **workload}),
        device="cpu",
    )
    return backends.find(backend).load(cell, folder, None)


def compare(folder: Path, *names: str, **workload: Any) -> None:
    ours, theirs = session(folder, "engine", *names, **workload), session(folder, "transformers", **workload)
    try:
        rows = rows_of(theirs)
        assert rows_of(ours) == rows
        assert float((ours.log_probs(rows[0]) - theirs.log_probs(rows[0])).abs().max()) < 1e-4
        ours.prove()
    finally:
        ours.close()
        theirs.close()


def refusal(folder: Path, *names: str) -> str | None:
    try:
        session(folder, "engine", *names).close()
    except Unavailable as refused:
        return str(refused)
    return None


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_it_says_what_transformers_says(folder: Path, workload: dict[str, Any]) -> None:
    compare(folder, **workload)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
@pytest.mark.parametrize("names", [("cache_static", "cpp_block"), ("trimmed_step",)], ids=["in C", "flat"])
def test_other_steps_say_it_too_or_name_what_they_lack(
    folder: Path, names: tuple[str, ...], workload: dict[str, Any]
) -> None:
    why = refusal(folder, *names)
    if why:
        assert "has no" in why
        pytest.skip(why)
    compare(folder, *names, **workload)


@pytest.mark.parametrize(
    ("config", "trait"),
    [
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "latent attention"),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention"]}, "linear attention"),
        ({"model_type": "gpt_oss", "num_local_experts": 8}, "mixtures of experts"),
        ({"model_type": "falcon"}, "layers of model_type 'falcon'"),
    ],
)
def test_what_it_lacks_is_said_by_name(config: dict[str, Any], trait: str) -> None:
    with pytest.raises(Unavailable, match=trait):
        read_spec(config)


def test_every_family_is_compared_here() -> None:
    assert set(families.FAMILIES) <= {kind for kind, _ in MODELS.values()}
