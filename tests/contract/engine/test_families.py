"""Families beside Llama, GPT-BigCode and BLOOM: the engine, and its step in C, say what Transformers says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine.conftest import rows_of
from tests.contract.models import KINDS, save, tiny_config

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


LONG_PROMPT = {"prompt": "hello " * 12, "new_tokens": 10}
"""More tokens than longrope's first training had."""


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("longrope")
    save("phi3", where, rope_parameters=LONG, original_max_position_embeddings=64, sliding_window=None)
    return where


@pytest.mark.parametrize("names", [(), ("cache_static", "cpp_block")], ids=["plain", "in C"])
def test_positions_of_longrope_are_those_of_the_length(longrope: Path, names: tuple[str, ...]) -> None:
    compare(longrope, *names, **LONG_PROMPT)


def test_a_generation_over_the_length_at_which_positions_change_is_refused(longrope: Path) -> None:
    crossing = {"prompt": "hello " * 10, "new_tokens": 20}
    with pytest.raises(Unavailable, match=r"rotary positions that change within a generation.* at 64"):
        session(longrope, "engine", **crossing)


def test_queries_that_would_grow_with_their_position_are_refused(tmp_path: Path) -> None:
    rope = {**YARN, "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.1}
    save("ministral3", tmp_path, rope_parameters=rope)
    with pytest.raises(Unavailable, match=r"queries that grow with their position.* beyond 16"):
        session(tmp_path, "engine")


@pytest.mark.parametrize(("wrapper", "text"), [("gemma3", "gemma3_text"), ("mistral3", "mistral")])
def test_the_language_part_of_a_wrapper_says_what_the_wrapper_says(wrapper: str, text: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 28, "patch_size": 14, "model_type": "pixtral" if wrapper == "mistral3" else None}
    config = CONFIG_MAPPING[wrapper](
        text_config=tiny_config(text, **WINDOW).to_dict(),
        vision_config={key: value for key, value in vision.items() if value is not None},
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(tmp_path)
    ours = session(tmp_path, "engine")
    with torch.inference_mode():
        close = model(ours.decoder.batch.prompt).logits, ours.decoder.prefill(None)
    ours.close()
    torch.testing.assert_close(*close, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "trait"),
    [
        ("deepseek_v2", "latent attention"),
        ("deepseek_v3", "latent attention"),
        ("qwen3_next", "linear attention"),
        ("mamba", "state spaces"),
        ("mamba2", "state spaces"),
        ("jamba", "state spaces"),
        ("lfm2", "convolutions"),
        ("glm4_moe", "mixture of experts of model_type 'glm4_moe'"),
        ("codegen", "layers of model_type 'codegen'"),
    ],
)
def test_what_it_lacks_is_said_by_name(kind: str, trait: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = tiny_config(kind).to_dict() if kind in KINDS else CONFIG_MAPPING[kind]().to_dict()
    with pytest.raises(Unavailable, match=f"the engine has no {trait}"):
        read_spec(config)


def test_quantized_weights_are_refused_by_their_method() -> None:
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    with pytest.raises(Unavailable, match="weights quantized by mxfp4"):
        read_spec(config)


def test_every_family_is_compared_here() -> None:
    assert set(families.FAMILIES) <= {kind for kind, _ in MODELS.values()}
