"""Quantized checkpoints as the hub has them: linked as they are, read narrow, or told why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.contract.conftest import rows_of, save_tokenizer
from tests.contract.models import save
from tests.contract.test_any_model import cell_of

from claimbench.backends import transformers as backend
from claimbench.checkpoints import counting, manifest, stored
from claimbench.checkpoints.shard import shard
from claimbench.cost_model.weight_bytes import least_step_bytes
from claimbench.errors import Unavailable
from claimbench.schema.card import Card, StoredBytes
from claimbench.schema.cell import Checkpoint

METHODS: dict[str, dict[str, Any]] = {
    "awq": {"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    "gptq": {"bits": 4, "group_size": 32, "sym": True, "desc_act": False},
    "fp8": {"weight_block_size": [32, 32], "activation_scheme": "dynamic"},
    "mxfp4": {"modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens", "lm_head"]},
}


def save_packed(folder: Path, method: str) -> Card:
    """A Llama, or a mixture as gpt-oss is, whose matrices are packed as `method` stores them; values mean nothing."""
    import torch
    from safetensors.torch import load_file, save_file

    save("gpt_oss" if method == "mxfp4" else "llama", folder)
    save_tokenizer(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.zeros(experts, outputs, inputs // 32, 16, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.zeros(experts, outputs, inputs // 32, dtype=torch.uint8)
    for name in [name for name in tensors if name.endswith("_proj.weight") and method != "mxfp4"]:
        matrix, base = tensors.pop(name), name.removesuffix("weight")
        outputs, inputs = matrix.shape
        if method == "fp8":
            tensors[name] = matrix.to(torch.float8_e4m3fn)
            tensors[base + "weight_scale_inv"] = torch.ones(-(-outputs // 32), -(-inputs // 32))
            continue
        tensors[base + "qweight"] = torch.zeros(inputs, outputs // 8, dtype=torch.int32)
        tensors[base + "qzeros"] = torch.zeros(inputs // 32, outputs // 8, dtype=torch.int32)
        tensors[base + "scales"] = torch.ones(inputs // 32, outputs, dtype=torch.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": method, **METHODS[method]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return stored.with_stored_bytes(counting.count(config), folder)


@pytest.mark.parametrize("method", METHODS)
def test_packed_tensors_are_linked_as_they_are_and_cost_what_is_stored(tmp_path: Path, method: str) -> None:
    card = save_packed(tmp_path / "source", method)
    checkpoint = Checkpoint(name="packed", source=f"file://{tmp_path / 'source'}", card=card)
    shard(checkpoint, tmp_path / "fetched", tmp_path / "made")
    assert manifest.verify(tmp_path / "made").sha256
    assert card.stored_bytes is not None
    assert sum(card.stored_bytes.held.values()) == sum(one.bytes for one in stored.entries(tmp_path / "made"))
    read = least_step_bytes(card, 4)
    assert 0 < read < 0.75 * card.step_weights * 4
    with pytest.raises(Unavailable):
        backend.load(cell_of(card, []), tmp_path / "made", None)


@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes_reads_narrow_and_no_less_than_the_ceiling_says(tmp_path: Path, bits: int) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    save("llama", tmp_path / "wide", hidden_size=128)
    how = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path / "wide", quantization_config=how, device_map="cpu")
    narrow.save_pretrained(tmp_path / "narrow")
    save_tokenizer(tmp_path / "narrow")
    config = json.loads((tmp_path / "narrow" / "config.json").read_text(encoding="utf-8"))
    card = counting.count(config)
    exact = least_step_bytes(stored.with_stored_bytes(card, tmp_path / "narrow"), 4)
    assert 0 < least_step_bytes(card, 4) <= exact, "what a config says is a bound"
    session = backend.load(cell_of(card, []), tmp_path / "narrow", None)
    assert len(rows_of(session)[0]) == 8
    session.prove()
    assert exact <= session.memory()["step_weights"] < 0.6 * card.step_weights * 4
    session.close()
    with pytest.raises(Unavailable, match="quantized already, by bitsandbytes"):
        backend.load(cell_of(card, [("bitsandbytes_int8", {})]), tmp_path / "narrow", None)


def test_a_model_that_the_library_widens_while_it_runs_is_not_measured_as_narrow(tmp_path: Path) -> None:
    """As compressed-tensors are: decompressed by the first pass, which no look at load time sees."""
    save("llama", tmp_path / "made")
    save_tokenizer(tmp_path / "made")
    card = counting.count(json.loads((tmp_path / "made" / "config.json").read_text(encoding="utf-8")))
    narrow = card.model_copy(update={"quantized": "test", "stored_bytes": StoredBytes(held={"I8": card.weights})})
    session = backend.load(cell_of(narrow, []), tmp_path / "made", None)
    with pytest.raises(Unavailable, match="widened the weights to float32"):
        session.prove()
    session.close()
