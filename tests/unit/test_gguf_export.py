"""A checkpoint written as GGUF and read back is the same model, and one token more that nobody can draw."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.contract.models import save as save_kind
from tests.unit.test_gguf_models import LLAMA3, read_back, rope

from claimbench.checkpoints import gguf_weights
from claimbench.checkpoints.gguf_export import export
from claimbench.checkpoints.safetensors_file import StreamedTensor
from claimbench.errors import Unavailable
from claimbench.schema.cell import Dtype

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 20,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
    "tie_word_embeddings": False,
}


def save(folder: Path, **changes: Any) -> dict[str, Any]:
    """A checkpoint whose every weight is a different number that bfloat16 can hold."""
    import torch
    from safetensors.torch import save_file

    config = {**CONFIG, **changes}
    width, inner, heads, kv = 32, 48, 32, 16
    shapes = {"model.embed_tokens.weight": (20, width), "model.norm.weight": (width,), "lm_head.weight": (20, width)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (heads, width),
            f"{at}.self_attn.k_proj.weight": (kv, width),
            f"{at}.self_attn.v_proj.weight": (kv, width),
            f"{at}.self_attn.o_proj.weight": (width, heads),
            f"{at}.mlp.gate_proj.weight": (inner, width),
            f"{at}.mlp.up_proj.weight": (inner, width),
            f"{at}.mlp.down_proj.weight": (width, inner),
            f"{at}.input_layernorm.weight": (width,),
            f"{at}.post_attention_layernorm.weight": (width,),
        }
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator).bfloat16().float() for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return weights


def values_of(tensor: StreamedTensor) -> npt.NDArray[np.float32]:
    stored = b"".join(tensor.chunks())
    if tensor.dtype == "BF16":
        bits = np.frombuffer(stored, dtype="<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(tensor.shape)
    return np.frombuffer(stored, dtype="<f4").reshape(tensor.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_reads_back_as_the_checkpoint(tmp_path: Path, dtype: Dtype) -> None:
    weights = save(tmp_path)
    config, tensors = gguf_weights.read(export(tmp_path, dtype, tmp_path / "out", 8))
    assert config["vocab_size"] == CONFIG["vocab_size"] + 1
    assert config["eos_token_id"] == CONFIG["vocab_size"], "the end is the token more"
    assert config["rope_parameters"]["rope_theta"] == 50000.0
    read = {tensor.name: tensor for tensor in tensors}
    assert set(read) == set(weights)
    for name, expected in weights.items():
        values = values_of(read[name])
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert not values[-1].any()
            values = values[:-1]
        np.testing.assert_array_equal(values, expected.numpy())


def test_tied_embeddings_are_written_once(tmp_path: Path) -> None:
    save(tmp_path, tie_word_embeddings=True)
    config, tensors = gguf_weights.read(export(tmp_path, "float32", tmp_path / "out", 8))
    assert config["tie_word_embeddings"]
    assert "lm_head.weight" not in {tensor.name for tensor in tensors}


def test_a_file_that_is_there_is_kept_and_a_changed_checkpoint_has_another(tmp_path: Path) -> None:
    save(tmp_path)
    first = export(tmp_path, "float32", tmp_path / "out", 8)
    written = first.stat().st_mtime_ns
    assert export(tmp_path, "float32", tmp_path / "out", 8).stat().st_mtime_ns == written
    save(tmp_path, rms_norm_eps=1e-6)
    assert export(tmp_path, "float32", tmp_path / "out", 8) != first


WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear": ("llama", rope(rope_type="linear", factor=4.0)),
    "mistral": ("mistral", {"sliding_window": 128}),
    "qwen2": ("qwen2", rope()),
    "qwen2, yarn": ("qwen2", rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen3_moe": ("qwen3_moe", {"num_experts": 4, "norm_topk_prob": True}),
    "gemma2": ("gemma2", {"final_logit_softcapping": 7.0}),
    "gemma3": ("gemma3_text", {}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3, part of a head": ("phi3", rope(partial_rotary_factor=0.5) | {"sliding_window": None}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "nemotron": ("nemotron", rope(partial_rotary_factor=0.25)),
    "gpt2": ("gpt2", {}),
    "bloom": ("bloom", {}),
}


@pytest.mark.model
@pytest.mark.parametrize("name", WRITTEN)
def test_a_model_that_is_written_and_read_back_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    import torch

    kind, changes = WRITTEN[name]
    model = save_kind(kind, tmp_path / "source", **changes).eval()
    again = read_back(export(tmp_path / "source", "float32", tmp_path / "files", 100), tmp_path / "out")
    ids = torch.arange(2 * 100).reshape(2, 100)
    with torch.no_grad():
        expected, arrived = model(ids).logits, again(ids).logits
    assert expected.std() > 0.01
    torch.testing.assert_close(arrived[..., :-1], expected, rtol=1e-3, atol=1e-4)
    assert not arrived[..., -1].any()


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a type without a name": ("olmo2", {}, "of olmo2: its type is not among"),
    "biases that no key says": ("llama", {"attention_bias": True}, "with attention_bias = True: it would be read as"),
    "an activation that no key says": ("qwen2", {"hidden_act": "relu"}, "with hidden_act = 'relu'"),
    "scaled positions that no table is written of": (
        "phi3",
        rope(rope_type="longrope", long_factor=[2.0] * 8, short_factor=[1.0] * 8) | {"sliding_window": None},
        "scaled by 'longrope'",
    ),
    "a scaling that is not Llama 3's": ("llama", {"rope_parameters": LLAMA3 | {"low_freq_factor": 2.0}}, "Llama 3"),
    "a window that llama.cpp has not": ("mistral", {"sliding_window": 32}, "no window of 32 tokens for mistral"),
    "attention with a scale of its own": ("gemma3_text", {"query_pre_attn_scalar": 99}, "query_pre_attn_scalar = 99"),
}


@pytest.mark.model
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_cannot_say_is_refused_by_its_name_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    kind, changes, reason = REFUSED[name]
    save_kind(kind, tmp_path / "source", **changes)
    with pytest.raises(Unavailable, match=re.escape(reason)):
        export(tmp_path / "source", "float32", tmp_path / "out", 100)
    assert not list((tmp_path / "out").glob("*"))


def test_a_quantized_checkpoint_is_not_written(tmp_path: Path) -> None:
    save(tmp_path, quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(Unavailable, match="quantized already, by awq"):
        export(tmp_path, "float32", tmp_path / "out", 8)
