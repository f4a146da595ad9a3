"""A checkpoint as a GGUF file of the cell's own precision, so that llama.cpp runs the same weights.

What is written is the inverse of how Transformers reads a GGUF file: its names of tensors, its names of settings, and
for each architecture what it undoes to a tensor. The file's header is then read back by the product's own reader, and
must give the model's config again: a setting that GGUF has no place for is never dropped.

Only token ids go in and out of the server, so its vocabulary needs no words: each token is called by its number. That
also keeps llama.cpp from holding back the bytes of a character until it is whole, and every token has an event of its
own. llama.cpp cannot run past an end of sequence, only forbid it; so that no token of the checkpoint is forbidden,
the end is one token more, behind all others, with weights of zero.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from claimbench.checkpoints import counting, gguf, gguf_config
from claimbench.checkpoints.gguf_rotary import LLAMA3_TABLE
from claimbench.checkpoints.model_config import method_of
from claimbench.checkpoints.safetensors_file import TensorFile
from claimbench.checkpoints.tensors import Shape
from claimbench.cost_model.cost import ModelConfig
from claimbench.errors import SourceError, Unavailable
from claimbench.schema.cell import Dtype

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from gguf import GGUFWriter
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

ARCHITECTURES = {
    "bloom": "bloom",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "llama",
    "nemotron": "nemotron",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
}
"""What llama.cpp calls a type of model."""
WINDOWED = ("gemma2", "gemma3")
"""Architectures whose windows llama.cpp computes; others see everything."""
FORMAT = 2
"""Raised when the same checkpoint is to be written otherwise."""
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BY_TOKEN = ("token_embd.weight", "output.weight", "output.bias")
"""Tensors with a row for each token."""
ROUTER = re.compile(r"\.ffn_gate_inp(_shexp)?\.weight$")
"""Which llama.cpp has in float32, as it has all vectors."""
EXPERTS = re.compile(r"\.ffn_(gate|up|down)_exps$")
SAME_MODEL = (
    *("architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label", "label2id"),
    *("initializer_range", "model_type", "output_attentions", "output_hidden_states", "output_router_logits"),
    *("pad_token_id", "problem_type", "pretraining_tp", "return_dict", "router_aux_loss_coef", "sliding_window"),
    *("tokenizer_class", "torch_dtype", "transformers_version", "use_cache", "vocab_size", "max_window_layers"),
    *("use_sliding_window", "_sliding_window_pattern", "_name_or_path", "max_position_embeddings", "n_inner"),
)
"""Settings that change no logits, that shapes of tensors say as well, or that are checked for themselves."""


def export(checkpoint: Path, dtype: Dtype, folder: Path, length: int) -> Path:
    """The GGUF file of `checkpoint` in `dtype`, in `folder`; one that is there already is kept.

    Args:
        length: tokens of the longest sequence that will run; a window that is at least as long changes nothing.

    Raises:
        Unavailable: the model has what llama.cpp's has not, or what a GGUF file cannot say.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    architecture = ARCHITECTURES.get(config["model_type"])
    why = refusal(config["model_type"], method_of(config))
    if why or architecture is None:
        raise Unavailable(why)
    window = counting.completed(config).to_dict().get("sliding_window")
    if window and window < length and architecture not in WINDOWED:
        raise Unavailable(f"llama.cpp has no window of {window} tokens for {config['model_type']}")
    path = folder / f"{_content(checkpoint)}-{dtype}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".part{os.getpid()}")
        try:
            _write(part, checkpoint, config, architecture, dtype)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def refusal(model_type: str, quantized: str | None = None) -> str | None:
    """Why no file is written of a model of this type, whatever its numbers are."""
    if quantized:
        return f"the checkpoint is quantized already, by {quantized}: ask for the original one"
    if model_type in ARCHITECTURES:
        return None
    return f"no GGUF file can be written of {model_type}: its type is not among {', '.join(ARCHITECTURES)}"


def _content(checkpoint: Path) -> str:
    """What a file follows from: the weights' files as they lie there, and how it is written."""
    files = sorted(path for path in checkpoint.iterdir() if path.suffix in (".json", ".safetensors"))
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([FORMAT, str(checkpoint.resolve()), facts]).encode()).hexdigest()[:16]


class _Exported(NamedTuple):
    """A tensor that is not read yet, as the file holds it."""

    shape: Shape
    load: Callable[[], Tensor]


def _write(path: Path, checkpoint: Path, config: ModelConfig, architecture: str, dtype: Dtype) -> None:
    import gguf as library

    made, model = counting.completed(config), counting.meta_model(config)
    writer = library.GGUFWriter(path, architecture)
    for key, value in _settings(made, architecture).items():
        _add(writer, f"{architecture}.{key}", value)
    _add_vocabulary(writer, made.vocab_size)
    kinds = library.GGMLQuantizationType
    tensors = {**_tensors(checkpoint, made, model, architecture), **_rotary_tables(made, model)}
    held = {
        name: "F32" if len(one.shape) == 1 or ROUTER.search(name) else TYPES[dtype] for name, one in tensors.items()
    }
    for name, (shape, _) in tensors.items():
        kind = kinds[held[name]]
        size = prod(shape) * (4 if kind == kinds.F32 else 2)
        writer.add_tensor_info(name, shape, _numpy_type(kind.name), size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, (shape, load) in tensors.items():
        array = _as_array(load(), held[name])
        assert array.shape == shape, (name, array.shape, shape)
        writer.write_tensor_data(array)
    writer.close()
    _require_same(path, made, architecture)


def _settings(made: PreTrainedConfig, architecture: str) -> dict[str, Any]:
    """By the last parts of their keys."""
    found: dict[str, Any] = {}
    for key, names in gguf_config.NAMES.items():
        values = (getattr(made, name, None) for name in names)
        value = next((value for value in values if value is not None), None)
        if value is not None and (key != "attention.sliding_window" or architecture in WINDOWED):
            found[key] = value
    heads, hidden = made.num_attention_heads, made.hidden_size
    width = getattr(made, "head_dim", None) or hidden // heads
    found |= {"attention.key_length": width, "attention.value_length": width, "vocab_size": made.vocab_size + 1}
    found.setdefault("attention.head_count_kv", heads)
    found.setdefault("context_length", 1 << 20)
    found.setdefault("feed_forward_length", 4 * hidden)
    period = _period(getattr(made, "layer_types", None) or [])
    return found | ({"attention.sliding_window_pattern": period} if period else {}) | _rotary(made, width)


def _period(kinds: list[str]) -> int | None:
    """After how many layers one sees everything, where others have windows."""
    whole = [at for at, kind in enumerate(kinds) if kind == "full_attention"]
    return whole[0] + 1 if whole and len(whole) < len(kinds) else None


def _rotary(made: PreTrainedConfig, width: int) -> dict[str, Any]:
    """Raises Unavailable where positions are scaled by a rule that is not written."""
    rules = getattr(made, "rope_parameters", None)
    if not rules:
        return {}
    nested = isinstance(next(iter(rules.values())), dict)
    rule = rules["full_attention"] if nested else rules
    found = {
        "rope.freq_base": float(rule.get("rope_theta") or 10000.0),
        "rope.dimension_count": int(width * (rule.get("partial_rotary_factor") or 1.0)),
    }
    if nested:
        found["rope.freq_base_swa"] = float(rules["sliding_attention"]["rope_theta"])
    kind = rule.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rule["factor"])}
    if kind == "yarn":
        found["rope.scaling.original_context_length"] = rule["original_max_position_embeddings"]
        for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if rule.get(name) is not None:
                found[f"rope.scaling.{key}"] = float(rule[name])
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise Unavailable(f"no GGUF file can be written of rotary positions that are scaled by {kind!r}")
    return found


def _rotary_tables(made: PreTrainedConfig, model: PreTrainedModel) -> dict[str, _Exported]:
    """Llama 3's scaling is a table: by how much each frequency is divided."""
    import torch

    rule = getattr(made, "rope_parameters", None) or {}
    if rule.get("rope_type") != "llama3":
        return {}
    rotary = type(model.model.rotary_emb)(made)  # on a real device, with values
    scaled = rotary.inv_freq.float()
    plain = rule["rope_theta"] ** -(torch.arange(len(scaled)).float() / len(scaled))
    return {LLAMA3_TABLE: _Exported((len(scaled),), lambda: plain / scaled)}


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    kinds: dict[type, Callable[[str, Any], None]] = {
        float: writer.add_float32,
        str: writer.add_string,
        bool: writer.add_bool,
        int: writer.add_uint32,
    }
    kinds[type(value)](key, value)


def _add_vocabulary(writer: GGUFWriter, size: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{id}" for id in range(size + 1)])
    writer.add_token_types([1] * (size + 1))
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(size)
    writer.add_eos_token_id(size)
    writer.add_add_bos_token(False)


def _tensors(
    checkpoint: Path, made: PreTrainedConfig, model: PreTrainedModel, architecture: str
) -> dict[str, _Exported]:
    """By GGUF name, in the order in which they are written.

    Raises:
        Unavailable: a tensor of the model has no name in GGUF, or the files have it under another.
    """
    from safetensors import safe_open
    from transformers import modeling_gguf_pytorch_utils as theirs

    files: dict[str, TensorFile] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        file: TensorFile = safe_open(path, framework="pt")
        files |= dict.fromkeys(file.keys(), file)
    processor = theirs.TENSOR_PROCESSORS.get(architecture, theirs.TensorProcessor)(config=made.to_dict())
    names = theirs.get_gguf_hf_weights_map(model, processor, model_type=architecture)
    tied = bool(getattr(made, "tie_word_embeddings", False))
    wanted = {name for name, _ in model.named_parameters()}
    unnamed = sorted(wanted - set(names.values()))
    if unnamed:
        raise Unavailable(f"no GGUF file can be written of {made.model_type}: it has no name for {unnamed[0]}")
    found: dict[str, _Exported] = {}
    for name, source in names.items():
        if source not in wanted or (tied and name == "output.weight"):
            continue
        one = _experts(files, name, source, made) if EXPERTS.search(name) else _plain(files, name, source)
        if one is None:
            raise Unavailable(f"no GGUF file can be written of a checkpoint whose files call {source} otherwise")
        full = f"{name}.weight" if EXPERTS.search(name) else name
        found[full] = _turned(one, architecture, full, made)
    return found


def _plain(files: dict[str, TensorFile], name: str, source: str) -> _Exported | None:
    """Some checkpoints were saved from the decoder alone, without the name of the model that it is in."""
    known = next((each for each in (source, source.partition(".")[2]) if each in files), None)
    if known is None:
        return None
    file = files[known]
    return _Exported(tuple(file.get_slice(known).get_shape()), lambda: file.get_tensor(known))


def _experts(files: dict[str, TensorFile], name: str, source: str, made: PreTrainedConfig) -> _Exported | None:
    """One matrix of all experts of a layer: [experts, outputs, inputs], of one tensor each or of a fused one."""
    import torch

    match = EXPERTS.search(name)
    assert match is not None
    part, at = match[1], source.rpartition(".")[0]
    if source in files:
        file, shape = files[source], tuple(files[source].get_slice(source).get_shape())
        if part == "down":
            return _Exported(shape, lambda: file.get_tensor(source))
        half = 0 if part == "gate" else 1
        return _Exported((shape[0], shape[1] // 2, *shape[2:]), lambda: file.get_tensor(source).chunk(2, dim=1)[half])
    each = [f"{at}.{expert}.{part}_proj.weight" for expert in range(made.num_experts)]
    if any(one not in files for one in each):
        return None
    shape = (len(each), *files[each[0]].get_slice(each[0]).get_shape())
    return _Exported(shape, lambda: torch.stack([files[one].get_tensor(one) for one in each]))


def _turned(one: _Exported, architecture: str, name: str, made: PreTrainedConfig) -> _Exported:
    """The tensor as llama.cpp has it, which Transformers' reader undoes, and with a row for the end."""
    shape, load = one
    if architecture == "llama" and (match := re.search(r"\.attn_([qk])\.", name)):
        heads = made.num_attention_heads if match[1] == "q" else made.num_key_value_heads
        return _Exported(shape, lambda: _neighbouring(load(), heads))
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return _Exported(shape, lambda: load().float() + 1)
    if architecture == "gpt2" and re.search(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$", name):
        return _Exported(shape[::-1], lambda: load().T)
    if architecture == "bloom" and ".attn_qkv." in name:
        return _Exported(shape, lambda: _by_kind(load(), made.num_attention_heads))
    if name.endswith("ffn_gate_inp_shexp.weight"):
        return _Exported(shape[1:], lambda: load()[0])
    if name in BY_TOKEN:
        return _Exported((shape[0] + 1, *shape[1:]), lambda: _with_end(load()))
    return one


def _neighbouring(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head from halves to neighbouring pairs: [heads, 2, half, ...] -> [heads, half, 2, ...].

    Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py, `LlamaModel.permute`.
    """
    half = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, 2, half, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def _by_kind(tensor: Tensor, heads: int) -> Tensor:
    """Rows from (query, key, value) of each head to all queries, all keys, all values."""
    width = tensor.shape[0] // heads // 3
    return tensor.reshape(heads, 3, width, *tensor.shape[1:]).swapaxes(0, 1).reshape(tensor.shape)


def _with_end(tensor: Tensor) -> Tensor:
    """One row of zeros more: [vocabulary, hidden] -> [vocabulary + 1, hidden]."""
    import torch

    return torch.cat([tensor, torch.zeros_like(tensor[:1])])


def _require_same(path: Path, made: PreTrainedConfig, architecture: str) -> None:
    """Raises Unavailable where the file says another model than `made`."""
    try:
        again = counting.completed(gguf_config.of(gguf.read(path)))
    except SourceError as error:
        reason = str(error).replace(str(path), "the file")
        raise Unavailable(f"no GGUF file can be written of {made.model_type}: {reason}") from error
    expected, found = made.to_dict(), again.to_dict()
    names = type(made)().to_dict().keys() - set(SAME_MODEL)
    for name in sorted(names | ({"sliding_window"} if architecture in WINDOWED else set())):
        if not _alike(expected.get(name), found.get(name)):
            raise Unavailable(
                f"no GGUF file can be written of {made.model_type} with {name} = {expected.get(name)!r}: "
                f"it would be read as {found.get(name)!r}"
            )


def _alike(one: Any, other: Any) -> bool:
    """Numbers pass through float32, and a rule without a number has it by default."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_alike(one.get(name), other.get(name)) for name in one.keys() | other.keys())
    if isinstance(one, float | int) and isinstance(other, float | int):
        return abs(one - other) <= 1e-6 * max(abs(one), abs(other))
    return bool(one == other)


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
