"""A GGUF file of each architecture gives back the model that was written into it: the same logits, nothing dropped."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.contract.models import SMALL, tiny_config

from claimbench.checkpoints import cards, gguf_weights, safetensors_file
from claimbench.checkpoints.shard import shard
from claimbench.checkpoints.tokenizer import byte_alphabet
from claimbench.errors import SourceError
from claimbench.schema.cell import Checkpoint

pytestmark = pytest.mark.model

WINDOWED = {"attention.sliding_window": 32}
EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
ROPE = {"rope.freq_base": 50000.0, "rope.dimension_count": 16}
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 8192,
}
LONG = [1.0 + at for at in range(8)]


def rope(**more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0} | more}


CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    # the architecture in GGUF, model_type, what its config has, and what GGUF says of it, beside `said`
    "llama": ("llama", "llama", rope(), ROPE),
    "llama, wide heads": ("llama", "llama", rope() | {"head_dim": 32}, ROPE | {"rope.dimension_count": 32}),
    "llama 3": ("llama", "llama", {"rope_parameters": LLAMA3}, ROPE | {"rope.freq_base": 500000.0}),
    "llama, linear": (
        *("llama", "llama", rope(rope_type="linear", factor=4.0)),
        ROPE | {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "qwen2": ("qwen2", "qwen2", rope(), {"rope.freq_base": 50000.0}),
    "qwen2, yarn": (
        *("qwen2", "qwen2", rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)),
        {"rope.freq_base": 50000.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
        | {"rope.scaling.original_context_length": 64},
    ),
    "qwen3": ("qwen3", "qwen3", rope() | {"head_dim": 32}, {"rope.freq_base": 50000.0}),
    "qwen2_moe": (
        *("qwen2moe", "qwen2_moe", rope()),
        EXPERTS | {"expert_shared_feed_forward_length": 32, "rope.freq_base": 50000.0},
    ),
    "qwen3_moe": ("qwen3moe", "qwen3_moe", rope() | {"num_experts": 4, "norm_topk_prob": True}, EXPERTS | ROPE),
    "gemma2": ("gemma2", "gemma2", {"final_logit_softcapping": 7.0}, WINDOWED | {"final_logit_softcapping": 7.0}),
    "gemma3": ("gemma3", "gemma3_text", {}, WINDOWED | {"rope.freq_base": 1000000.0}),
    "gemma3, longer": (
        *("gemma3", "gemma3_text"),
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            }
        },
        WINDOWED | {"rope.freq_base": 1000000.0, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "phi3": ("phi3", "phi3", rope(), ROPE | WINDOWED | {"rope.scaling.original_context_length": 4096}),
    "phi3, part of a head": (
        *("phi3", "phi3", rope(partial_rotary_factor=0.5) | {"sliding_window": None}),
        ROPE | {"rope.dimension_count": 8, "attention.sliding_window": 0},
    ),
    "phi3, long": (
        *("phi3", "phi3"),
        rope(rope_type="longrope", long_factor=LONG, short_factor=[1.5] * 8, original_max_position_embeddings=64)
        | {"original_max_position_embeddings": 64},
        ROPE | WINDOWED | {"rope.scaling.original_context_length": 64},
    ),
    "stablelm": ("stablelm", "stablelm", {"use_qkv_bias": True}, {"rope.dimension_count": 4}),
    "stablelm, whole heads": ("stablelm", "stablelm", rope(partial_rotary_factor=1.0), ROPE),
    "starcoder2": ("starcoder2", "starcoder2", rope() | {"sliding_window": None}, {"rope.freq_base": 50000.0}),
    "nemotron": ("nemotron", "nemotron", rope(partial_rotary_factor=0.25), ROPE | {"rope.dimension_count": 4}),
    "falcon": ("falcon", "falcon", {"layer_norm_epsilon": 1e-3}, {"attention.layer_norm_epsilon": 1e-3}),
    "gpt2": ("gpt2", "gpt2", {}, {"context_length": 256}),
    "bloom": ("bloom", "bloom", {}, {}),
    "mamba": ("mamba", "mamba", {}, {"ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.time_step_rank": 4}),
    "lfm2": ("lfm2", "lfm2", {"block_auto_adjust_ff_dim": False}, {"shortconv.l_cache": 3}),
}


def said(config: Any, architecture: str) -> dict[str, Any]:
    """What llama.cpp's converter writes of every model."""
    heads = getattr(config, "num_attention_heads", 0)
    keys = getattr(config, "num_kv_heads", None) or getattr(config, "num_key_value_heads", None) or heads
    rms = getattr(config, "rms_norm_eps", None)
    layers = getattr(config, "num_hidden_layers", 0)
    if architecture == "lfm2":
        keys = [keys if kind == "full_attention" else 0 for kind in config.layer_types]
    eps = next((getattr(config, name) for name in EPSILONS if getattr(config, name, None)), 1e-5)
    found = {
        "block_count": layers,
        "context_length": getattr(config, "max_position_embeddings", None) or 256,
        "embedding_length": config.hidden_size,
        "feed_forward_length": 128 if hasattr(config, "intermediate_size") else 4 * config.hidden_size,
        "attention.head_count": heads,
        "attention.head_count_kv": keys,
        f"attention.layer_norm_{'rms_' if rms or architecture in RMS else ''}epsilon": eps,
    }
    if getattr(config, "head_dim", None):
        found |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    return found


EPSILONS = ("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
RMS = ("mamba", "lfm2")


def as_written(architecture: str, name: str, value: Any, config: Any) -> dict[str, Any]:
    """A tensor as llama.cpp's converter writes it, by GGUF's name: what Transformers' processors undo."""
    import torch

    if architecture == "llama" and re.search(r"attn_[qk]\.weight", name):
        heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
        half = value.shape[0] // heads // 2
        value = value.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(value.shape)
    elif architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        value = value + 1
    elif architecture == "gpt2" and re.search(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight", name):
        value = value.T
    elif architecture == "bloom" and "attn_qkv" in name:
        split = value.reshape(config.n_head, 3, config.hidden_size // config.n_head, *value.shape[1:])
        value = torch.cat([split[:, at].reshape(-1, *value.shape[1:]) for at in range(3)])
    elif name.endswith(("ffn_gate_exps", "ffn_up_exps")):
        gate, up = value.chunk(2, dim=1)
        at = name.rpartition(".")[0]
        return {f"{at}.ffn_gate_exps.weight": gate, f"{at}.ffn_up_exps.weight": up}
    elif name.endswith("ffn_down_exps"):
        return {f"{name}.weight": value}
    elif name.endswith("ffn_gate_inp_shexp.weight"):
        value = value[0]
    elif name.endswith(("ssm_conv1d.weight", "shortconv.conv.weight")):
        value = value[:, 0]
    elif name.endswith("ssm_a"):
        value = -torch.exp(value)
    return {name: value}


def write(path: Path, model: Any, architecture: str, keys: dict[str, Any], tables: dict[str, Any]) -> None:
    import gguf as library
    from transformers import modeling_gguf_pytorch_utils as theirs

    writer = library.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    for key, value in keys.items():
        kinds = {list: writer.add_array, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        kinds.get(type(value), writer.add_uint32)(f"{architecture}.{key}", value)
    add_words(writer, model.config.vocab_size)
    processor = theirs.TENSOR_PROCESSORS.get(architecture, theirs.TensorProcessor)(config=model.config.to_dict())
    names = {theirs: ours for ours, theirs in theirs.get_gguf_hf_weights_map(model, processor).items()}
    kept = model.state_dict().keys()
    buffers = {name: one for name, one in model.named_buffers() if name in kept}
    for name, value in (*model.named_parameters(), *buffers.items()):
        for ours, written in as_written(architecture, names[name], value.detach(), model.config).items():
            writer.add_tensor(ours, np.ascontiguousarray(written.float().numpy()))
    for name, table in tables.items():
        writer.add_tensor(name, np.array(table, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_words(writer: Any, size: int) -> None:
    words = [*byte_alphabet(), "ab", "<|endoftext|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words + [f"<unused{number}>" for number in range(size - len(words))])
    writer.add_token_types([1] * 257 + [3] * (size - 257))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(257)


def made(name: str, path: Path, **more: Any) -> Any:
    """The model of a case, with random values everywhere, after it was written to `path`."""
    import torch
    from transformers import AutoModelForCausalLM

    architecture, kind, changes, keys = CASES[name]
    torch.manual_seed(0)
    config = tiny_config(kind, **changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    tables: dict[str, Any] = {}
    if name == "llama 3":
        plain = 500000.0 ** -(torch.arange(0, 16, 2) / 16)
        tables["rope_freqs.weight"] = plain / model.model.rotary_emb.inv_freq
    if name == "phi3, long":
        tables |= {"rope_factors_long.weight": LONG, "rope_factors_short.weight": [1.5] * 8}
    write(path, model, architecture, said(config, architecture) | keys | more, tables)
    return model


def read_back(path: Path, folder: Path) -> Any:
    """The model that Transformers loads from what the file was read as."""
    from transformers import AutoModelForCausalLM

    config, tensors = gguf_weights.read(path)
    folder.mkdir()
    safetensors_file.write(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_the_model_in_the_file_gives_the_logits_of_the_model_that_was_written(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    path = tmp_path / "tiny.gguf"
    model = made(name, path)
    with caplog.at_level(logging.WARNING, "claimbench"):
        again = read_back(path, tmp_path / "out")
    ids = torch.arange(2 * 100).reshape(2, 100)
    with torch.no_grad():
        expected, arrived = model(ids).logits, again(ids).logits
    assert expected.std() > 0.01
    torch.testing.assert_close(arrived, expected, rtol=1e-4, atol=1e-5)
    assert not [one for one in caplog.records if one.name.startswith("claimbench")]


def test_the_card_of_a_local_file_is_made_of_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.gguf"
    model = made("qwen3", path)
    card = cards.find(f"file://{path}").card
    assert card is not None
    assert card.weights == sum(one.numel() for one in model.parameters())
    assert (card.model_type, card.layers, card.vocabulary) == ("qwen3", 4, SMALL["vocab_size"])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it was counted again"))
    assert cards.find(f"file://{path}").card == card


def test_a_local_file_that_is_not_read_has_no_card_and_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.gguf"
    made("llama", path, **{"expert_count": 8})
    with pytest.raises(SourceError, match=r"llama\.expert_count = 8 has no place") as refused:
        cards.find(f"file://{path}")
    assert str(refused.value).count(str(path)) == 1
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SourceError, match="not a whole GGUF file"):
        cards.find(f"file://{path}")


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_a_file_of_another_family_is_sharded_with_its_tokenizer(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path / "tiny.gguf"
    model = made(name, path)
    shard(Checkpoint(name="tiny", source=f"file://{path}"), tmp_path / "fetched", tmp_path / "out", 100_000)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    ids = torch.arange(100)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").decode([72, 256]) == "Hab"
