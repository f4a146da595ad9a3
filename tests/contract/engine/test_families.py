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
LONG = {
    **{"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64},
    **{"short_factor": [1.0 + 0.1 * pair for pair in range(8)], "long_factor": [2.0 + pair for pair in range(8)]},
}
LOCAL = {
    "full_attention": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 64},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}
WINDOW = {"sliding_window": 16}
"""Shorter than the prompt."""

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3 positions": ("llama", {"rope_parameters": LLAMA3}),
    "linear positions": ("llama", {"rope_parameters": LINEAR}),
    "yarn positions": ("llama", {"rope_parameters": YARN}),
    "biases everywhere": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral, windows": ("mistral", WINDOW),
    "qwen2": ("qwen2", {}),
    "qwen2, windows behind two layers": ("qwen2", {**WINDOW, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen3": ("qwen3", {}),
    "seed_oss": ("seed_oss", {}),
    "arcee": ("arcee", {}),
    "gpt2": ("gpt2", {}),
    "gpt_neo": ("gpt_neo", {"window_size": 16}),
    "gptj": ("gptj", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, one half after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "falcon": ("falcon", {}),
    "falcon, groups": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, a head each, one half after the other": (
        "falcon",
        {"multi_query": False, "num_kv_heads": 4, "parallel_attn": False},
    ),
    "phi": ("phi", {}),
    "phi, norms of queries and keys": ("phi", {"qk_layernorm": True}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
    "stablelm, norms of each head": ("stablelm", {"qk_layernorm": True}),
    "starcoder2": ("starcoder2", WINDOW),
    "nemotron": ("nemotron", {}),
    "opt": ("opt", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", CAPS | WINDOW),
    "gemma3": ("gemma3_text", {**WINDOW, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}),
    "granite": (
        "granite",
        {"embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.2, "logits_scaling": 8.0},
    ),
    "cohere": ("cohere", {}),
    "cohere, norms of queries and keys": ("cohere", {"use_qk_norm": True}),
    "cohere2": ("cohere2", WINDOW),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {**WINDOW, "rope_parameters": LOCAL}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 1, 0]}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "phi3": ("phi3", WINDOW),
    "phi3, short": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 64, "sliding_window": None}),
    "ministral3": ("ministral3", {}),
    "mixtral": ("mixtral", WINDOW),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "olmoe": ("olmoe", {}),
    "gpt_oss": ("gpt_oss", WINDOW),
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
