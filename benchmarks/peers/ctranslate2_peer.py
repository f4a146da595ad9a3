"""CTranslate2. The checkpoint is written once as its float32 model, which it quantizes when it loads.

The weights are laid out here and not by `ct2-transformers-converter`: that one needs torch and Transformers beside it,
and Transformers 5 moved the rotary base, which an older reader then takes for 10000 without a word.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2.specs import TransformerDecoderModelSpec, common_spec
from serve import Emit, serve


def read_safetensors(folder: Path) -> dict[str, np.ndarray]:
    """float32 tensors by name: eight bytes of header length, a JSON header, then the data."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        data = np.memmap(file, mode="r", offset=8 + length)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "F32":
                raise ValueError(f"{file.name}: {name} is {entry['dtype']}: expected the float32 checkpoint")
            first, last = entry["data_offsets"]
            tensors[name] = data[first:last].view(np.float32).reshape(entry["shape"])
    if not tensors:
        raise FileNotFoundError(f"no safetensors in {folder}")
    return tensors


def convert(checkpoint: Path, target: Path) -> None:
    """Write a Llama checkpoint as a CTranslate2 model. Its words are token ids: no tokenizer takes part."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama":
        raise ValueError(f"expected a llama checkpoint, got {config['model_type']}")
    tensors = read_safetensors(checkpoint)
    spec = TransformerDecoderModelSpec.from_config(
        config["num_hidden_layers"],
        config["num_attention_heads"],
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_base=config["rope_parameters"]["rope_theta"],
        num_heads_kv=config["num_key_value_heads"],
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = tensors["model.embed_tokens.weight"]
    decoder.layer_norm.gamma = tensors["model.norm.weight"]
    decoder.projection.weight = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    for number, layer in enumerate(decoder.layer):
        of = f"model.layers.{number}."
        heads = [tensors[f"{of}self_attn.{name}_proj.weight"] for name in "qkv"]
        layer.self_attention.layer_norm.gamma = tensors[of + "input_layernorm.weight"]
        layer.self_attention.linear[0].weight = np.concatenate(heads)  # [q + k + v, hidden]
        layer.self_attention.linear[1].weight = tensors[of + "self_attn.o_proj.weight"]
        layer.ffn.layer_norm.gamma = tensors[of + "post_attention_layernorm.weight"]
        layer.ffn.linear_0.weight = tensors[of + "mlp.gate_proj.weight"]
        layer.ffn.linear_0_noact.weight = tensors[of + "mlp.up_proj.weight"]
        layer.ffn.linear_1.weight = tensors[of + "mlp.down_proj.weight"]
    spec.register_vocabulary([str(token) for token in range(config["vocab_size"])])
    spec.config.bos_token = str(config["bos_token_id"])
    spec.config.eos_token = str(config["eos_token_id"])
    spec.config.unk_token = "0"  # noqa: S105
    spec.config.layer_norm_epsilon = config["rms_norm_eps"]
    spec.validate()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        made.mkdir()
        spec.save(str(made))
        made.rename(target)


class CTranslate2:
    def __init__(self, request: dict[str, Any]) -> None:
        checkpoint = Path(request["checkpoint"])
        folder = Path(request["work"]) / f"ctranslate2-{checkpoint.name}"
        if not (folder / "model.bin").is_file():
            convert(checkpoint, folder)
        self.generator = ctranslate2.Generator(
            str(folder), compute_type=request["settings"]["compute_type"], intra_threads=request["threads"]
        )
        self.prompt = request["prompt"]
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        self.unlikely = config["vocab_size"] - 1  # the end must be some token, and the real one is ordinary here
        self.about = {
            "versions": {"ctranslate2": ctranslate2.__version__},
            "dtype": self.generator.compute_type,
            "threads": request["threads"],
        }

    def generate(self, new_tokens: int, emit: Emit) -> None:
        self.generator.generate_batch(
            [[str(token) for token in self.prompt]],
            max_length=new_tokens,
            end_token=[self.unlikely],
            include_prompt_in_result=False,
            callback=lambda step: emit(step.token_id),
        )

    def teacher_force(self, tokens: list[int]) -> list[int]:
        logits = self.generator.forward_batch([self.prompt + tokens[:-1]])
        return np.asarray(logits)[0, -len(tokens) :].argmax(-1).tolist()

    def close(self) -> dict[str, Any]:
        return {"compute_type": self.generator.compute_type}


if __name__ == "__main__":
    serve(CTranslate2)
