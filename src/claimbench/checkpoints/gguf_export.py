"""A checkpoint of the Llama family as a GGUF file of the cell's own precision, so that llama.cpp runs the same weights.

Only token ids go in and out of the server, so its vocabulary needs no words: each token is called by its number. That
also keeps llama.cpp from holding back the bytes of a character until it is whole, and every token has an event of its
own. llama.cpp cannot run past an end of sequence, only forbid it; so that no token of the checkpoint is forbidden,
the end is one token more, behind all others, with weights of zero.
Query and key rows are in llama.cpp's order, neighbouring pairs in place of halves.
Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py, `LlamaModel.permute`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from claimbench.checkpoints.safetensors_file import TensorFile
from claimbench.checkpoints.tensors import Shape
from claimbench.cost_model.cost import ModelConfig
from claimbench.errors import Unavailable
from claimbench.schema.cell import Dtype

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from gguf import GGUFWriter
    from torch import Tensor

TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FORMAT = 1
"""Raised when the same checkpoint is to be written otherwise."""
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def export(checkpoint: Path, dtype: Dtype, folder: Path) -> Path:
    """The GGUF file of `checkpoint` in `dtype`, in `folder`; one that is there already is kept.

    Raises:
        Unavailable: the checkpoint has what llama.cpp's plain Llama does not.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    _check_plain(config)
    path = folder / f"{_content(checkpoint)}-{dtype}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".part{os.getpid()}")
        try:
            _write(part, checkpoint, config, dtype)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def _content(checkpoint: Path) -> str:
    """What a file follows from: the weights' files as they lie there, and how it is written."""
    files = sorted(path for path in checkpoint.iterdir() if path.suffix in (".json", ".safetensors"))
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([FORMAT, str(checkpoint.resolve()), facts]).encode()).hexdigest()[:16]


def _check_plain(config: ModelConfig) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    odd = [name for name in ("attention_bias", "mlp_bias") if config.get(name)]
    odd += ["scaled rotary positions"] if rope.get("rope_type", "default") != "default" else []
    if config["model_type"] not in ("llama", "mistral") or odd:
        raise Unavailable(
            f"no GGUF file can be written of {config['model_type']} with {', '.join(odd) or 'its layers'}"
        )


def _write(path: Path, checkpoint: Path, config: ModelConfig, dtype: Dtype) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    _add_settings(writer, config)
    _add_vocabulary(writer, config["vocab_size"])
    kinds = gguf.GGMLQuantizationType
    tensors = dict(_tensors(checkpoint, config))
    for name, (shape, _) in tensors.items():
        kind = kinds.F32 if len(shape) == 1 else kinds[TYPES[dtype]]
        size = 4 if kind == kinds.F32 else 2
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        writer.add_tensor_info(name, shape, _numpy_type(kind.name), count * size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for shape, load in tensors.values():
        writer.write_tensor_data(_as_array(load(), "F32" if len(shape) == 1 else TYPES[dtype]))
    writer.close()


def _add_settings(writer: GGUFWriter, config: ModelConfig) -> None:
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(dim)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"] + 1)


def _add_vocabulary(writer: GGUFWriter, size: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{id}" for id in range(size + 1)])
    writer.add_token_types([1] * (size + 1))
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(size)
    writer.add_eos_token_id(size)
    writer.add_add_bos_token(False)


class _Exported(NamedTuple):
    """A tensor that is not read yet, as the file holds it."""

    shape: Shape
    load: Callable[[], Tensor]


def _tensors(checkpoint: Path, config: ModelConfig) -> Iterator[tuple[str, _Exported]]:
    """By GGUF name, in the order in which they are written."""
    from safetensors import safe_open

    names = {source: name for name, source in TOP_NAMES.items()}
    for layer in range(config["num_hidden_layers"]):
        for ours, theirs in LAYER_NAMES.items():
            names[f"model.layers.{layer}.{theirs}.weight"] = f"blk.{layer}.{ours}.weight"
    heads = config["num_attention_heads"]
    turned = {"attn_q": heads, "attn_k": config.get("num_key_value_heads") or heads}
    for path in sorted(checkpoint.glob("*.safetensors")):
        file: TensorFile = safe_open(path, framework="pt")
        for source in sorted(file.keys()):
            if source not in names or (source == "lm_head.weight" and config.get("tie_word_embeddings")):
                continue
            name = names[source]
            shape = tuple(file.get_slice(source).get_shape())
            rotary = turned.get(name.split(".")[-2])
            by_token = name in ("token_embd.weight", "output.weight")
            shape = (shape[0] + 1, *shape[1:]) if by_token else shape

            def load(
                file: TensorFile = file, source: str = source, rotary: int | None = rotary, more: bool = by_token
            ) -> Tensor:
                tensor = file.get_tensor(source)
                if rotary:
                    tensor = _neighbouring(tensor, rotary)
                return _with_end(tensor) if more else tensor

            yield name, _Exported(shape, load)


def _neighbouring(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head from halves to neighbouring pairs: [heads, 2, half, in] -> [heads, half, 2, in]."""
    rows, width = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def _with_end(tensor: Tensor) -> Tensor:
    """One row of zeros more: [vocabulary, hidden] -> [vocabulary + 1, hidden]."""
    import torch

    return torch.cat([tensor, torch.zeros_like(tensor[:1])])


def _numpy_type(kind: str) -> np.dtype[np.generic]:
    import numpy as np

    types: dict[str, np.dtype[np.generic]] = {
        "F32": np.dtype(np.float32),
        "F16": np.dtype(np.float16),
        "BF16": np.dtype(np.uint16),
    }
    return types[kind]


def _as_array(tensor: Tensor, kind: str) -> npt.NDArray[np.generic]:
    import torch

    if kind == "BF16":
        return tensor.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
    return tensor.to(torch.float32 if kind == "F32" else torch.float16).contiguous().numpy()
