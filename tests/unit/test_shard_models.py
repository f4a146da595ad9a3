"""Transformers loads what `shard` writes, and computes with it what it should."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from claimbench.checkpoints.shard import shard
from claimbench.checkpoints.tensors import shapes
from claimbench.checkpoints.tokenizer import byte_alphabet
from claimbench.cost_model import cost
from claimbench.schema.cell import Checkpoint

pytestmark = pytest.mark.model
TEXT = "Wörter, numbers 123\n\tand\n  spaces."


def make(tmp_path: Path, source: str, architecture: str, folder: str = "out", keep_layers: int | None = None) -> Path:
    checkpoint = Checkpoint(name="tiny", source=source, architecture=architecture, keep_layers=keep_layers)
    shard(checkpoint, tmp_path / f"{folder}-fetched", tmp_path / folder, 100_000)
    return tmp_path / folder


@pytest.mark.parametrize("architecture", cost.architecture_names())
def test_the_table_of_tensors_is_that_of_transformers(architecture: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = dict(cost.config(architecture))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert shapes(cost.architecture(architecture)) == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["tiny-llama", "tiny-bigcode", "tiny-bloom"])
def test_random_weights_load_and_stay_finite_in_half_precision(architecture: str, dtype: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = make(tmp_path, f"random://{architecture}?seed=5&dtype={dtype}", architecture)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert str(model.dtype) == f"torch.{dtype}"
    ids = torch.arange(2 * 64).reshape(2, 64)
    with torch.no_grad():
        logits = model(ids).logits.float()  # (2, 64, vocabulary)
    assert torch.isfinite(logits).all()
    assert 0.05 < logits.std() < 20
    assert len(set(logits.argmax(-1).flatten().tolist())) > 8


@pytest.mark.parametrize("architecture", ["tiny-llama", "tiny-bigcode", "tiny-bloom"])
def test_the_tokenizer_of_a_random_checkpoint_loads_offline_and_is_lossless(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = make(tmp_path, f"random://{architecture}", architecture)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(TEXT)["input_ids"]
    assert ids == list(TEXT.encode())
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 256
    assert len(tokenizer) <= cost.architecture(architecture).vocabulary


def test_a_checkpoint_that_transformers_saved_gives_the_same_logits(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = make(tmp_path, "random://tiny-llama?dtype=float32", "tiny-llama", "first")
    model = AutoModelForCausalLM.from_pretrained(folder)
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    (saved / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    again = AutoModelForCausalLM.from_pretrained(make(tmp_path, f"file://{saved}", "tiny-llama", "second"))
    ids = torch.arange(32)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_the_first_layers_of_a_checkpoint_are_a_model(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make(tmp_path, "random://tiny-llama?dtype=float32", "tiny-llama", "a"))
    source = "random://tiny-llama?dtype=float32"
    cut = AutoModelForCausalLM.from_pretrained(make(tmp_path, source, "tiny-llama", "b", keep_layers=1))
    del model.model.layers[1:]
    ids = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, cut(ids).logits)


def write_gguf(path: Path, quantization: str, tied: bool = False) -> None:
    """A GGUF file of tiny-llama's shape with random weights, a byte tokenizer and two merges."""
    import gguf

    arch = cost.architecture("tiny-llama")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(arch.layers)
    writer.add_context_length(arch.context)
    writer.add_embedding_length(arch.hidden)
    writer.add_feed_forward_length(arch.intermediate)
    writer.add_head_count(arch.heads)
    writer.add_head_count_kv(arch.kv_heads)
    writer.add_rope_dimension_count(arch.head_dim)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(arch.vocabulary)
    tokens = [*byte_alphabet(), "ab", "cd", "<|endoftext|>"]
    tokens += [f"<unused{number}>" for number in range(arch.vocabulary - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 258 + [3] * (arch.vocabulary - 258))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(258)
    kind = gguf.GGMLQuantizationType[quantization]
    generator = np.random.default_rng(0)
    for name, shape in gguf_shapes().items():
        if name == "output.weight" and tied:
            continue
        data = generator.standard_normal(shape).astype(np.float32) * (1.0 if len(shape) == 1 else shape[1] ** -0.5)
        if len(shape) == 1:
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_shapes() -> dict[str, tuple[int, ...]]:
    arch = cost.architecture("tiny-llama")
    keys = arch.kv_heads * arch.head_dim
    table: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (arch.vocabulary, arch.hidden),
        "output_norm.weight": (arch.hidden,),
        "output.weight": (arch.vocabulary, arch.hidden),
    }
    for layer in range(arch.layers):
        at = f"blk.{layer}"
        table |= {
            f"{at}.attn_norm.weight": (arch.hidden,),
            f"{at}.attn_q.weight": (arch.hidden, arch.hidden),
            f"{at}.attn_k.weight": (keys, arch.hidden),
            f"{at}.attn_v.weight": (keys, arch.hidden),
            f"{at}.attn_output.weight": (arch.hidden, arch.hidden),
            f"{at}.ffn_norm.weight": (arch.hidden,),
            f"{at}.ffn_gate.weight": (arch.intermediate, arch.hidden),
            f"{at}.ffn_up.weight": (arch.intermediate, arch.hidden),
            f"{at}.ffn_down.weight": (arch.hidden, arch.intermediate),
        }
    return table


@pytest.mark.parametrize("quantization", ["F32", "F16", "Q8_0", "Q4_1"])
def test_gguf_gives_the_logits_and_tokens_that_transformers_gets_from_it(quantization: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path / "tiny.gguf"
    write_gguf(path, quantization)
    folder = make(tmp_path, f"file://{path}", "tiny-llama")
    ours = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"]
    assert stored == ("float16" if quantization == "F16" else "float32"), "halves stay halves"
    assert ours.dtype == theirs.dtype == torch.float32
    ids = torch.arange(3 * 40).reshape(3, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=0)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert tokenizer(TEXT)["input_ids"] == their_tokenizer(TEXT)["input_ids"]
    assert tokenizer("abcd")["input_ids"] == [256, 257]
    assert ours.config.rope_parameters["rope_theta"] == 50000.0


def test_gguf_without_a_head_is_tied_and_therefore_another_architecture(tmp_path: Path) -> None:
    from claimbench.errors import SourceError

    path = tmp_path / "tiny.gguf"
    write_gguf(path, "F32", tied=True)
    with pytest.raises(SourceError, match="expected tied False; arrived tied True"):
        make(tmp_path, f"file://{path}", "tiny-llama")
