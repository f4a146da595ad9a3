"""A checkpoint written as GGUF and read back is the same weights, and one token more that nobody can draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

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
    config, tensors = gguf_weights.read(export(tmp_path, dtype, tmp_path / "out"))
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
    config, tensors = gguf_weights.read(export(tmp_path, "float32", tmp_path / "out"))
    assert config["tie_word_embeddings"]
    assert "lm_head.weight" not in {tensor.name for tensor in tensors}


def test_a_file_that_is_there_is_kept_and_a_changed_checkpoint_has_another(tmp_path: Path) -> None:
    save(tmp_path)
    first = export(tmp_path, "float32", tmp_path / "out")
    written = first.stat().st_mtime_ns
    assert export(tmp_path, "float32", tmp_path / "out").stat().st_mtime_ns == written
    save(tmp_path, rms_norm_eps=1e-6)
    assert export(tmp_path, "float32", tmp_path / "out") != first


@pytest.mark.parametrize(
    "change", [{"model_type": "bloom"}, {"attention_bias": True}, {"rope_parameters": {"rope_type": "llama3"}}]
)
def test_what_plain_llama_does_not_have_is_unavailable(tmp_path: Path, change: dict[str, Any]) -> None:
    save(tmp_path, **change)
    with pytest.raises(Unavailable, match="no GGUF file can be written"):
        export(tmp_path, "float32", tmp_path / "out")
    assert not (tmp_path / "out").exists()
