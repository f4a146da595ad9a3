"""The Transformers config that the metadata of a GGUF file stands for, with nothing dropped in silence.

Transformers' reader knows the architectures and maps most keys. It passes over others, among them the scaling of
rotary positions, partial rotary positions, soft caps and some epsilons, or maps them to names that its own config does
not have; then defaults compute something else than the file says. Each key is applied here, or refused by its name.

    echo '{"path": "model.gguf"}' | python -m claimbench.checkpoints.gguf_config    prints it, or says why there is none
"""

from __future__ import annotations

import json
import logging
import struct
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claimbench.checkpoints import gguf, gguf_rotary
from claimbench.checkpoints.gguf import Header
from claimbench.cost_model.cost import ModelConfig
from claimbench.errors import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

EPSILONS = ("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
NAMES: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_epsilon": EPSILONS,
    "attention.layer_norm_rms_epsilon": EPSILONS,
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
}
"""What configs call a number, by the last parts of its key; the first name that the model's own config has counts."""
SHAPED = ("context_length", "embedding_length", "feed_forward_length", "vocab_size", "attention.key_length")
"""Numbers that the shapes of tensors have to agree with, so that a config may have no name for them."""
HARMLESS = ("attention.value_length", "attention.causal", "use_parallel_residual", "tensor_data_layout")
"""Checked elsewhere, or what Transformers reads from the tensors."""
MATHEMATICS = ("rope.", "attention.", "attn_", "expert_", "ssm.", "hyper_")
NEUTRAL = (0, False, "", "none", "None")

logger = logging.getLogger(__name__)


def of(header: Header) -> ModelConfig:
    """The config of the model in the file.

    Raises:
        SourceError: Transformers does not read the architecture, or a key says what its config cannot.
    """
    _require_alone(header)
    config = _by_transformers(header)
    _require_numbers(header)
    default = _default(header, config)
    left = _under_architecture(header)
    for key in [key for key in left if key in NAMES]:
        _set(header, config, default, key, left.pop(key))
    _complete(header, config, default, left)
    gguf_rotary.apply(header, config, default, left)
    _require_nothing_left(header, left)
    return config


def unread(path: Path, error: Exception) -> SourceError:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return SourceError(f"{path}: Transformers does not read it ({first})")


def _require_alone(header: Header) -> None:
    """Raises SourceError where the file is no whole model."""
    many, kind = header.values.get("split.count", 0), header.values.get("general.type", "model")
    if many not in (0, 1):
        raise SourceError(f"{header.path}: expected a whole file, got one of {many}: join them with llama-gguf-split")
    if kind != "model":
        raise SourceError(f"{header.path}: general.type: expected 'model', got {kind!r}")
    if "token_embd.weight" not in header.names:
        raise SourceError(f"{header.path}: expected a tensor token_embd.weight, which is missing")


def _require_numbers(header: Header) -> None:
    """Raises SourceError where the file has no sizes, or claims more layers than it has tensors."""
    for word, most in (("embedding_length", 1 << 31), ("block_count", len(header.tensors))):
        key = f"{header.architecture}.{word}"
        value = header.values.get(key)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise SourceError(f"{header.path}: {key}: expected a whole number from 1 to {most}, got {value!r}")


def _under_architecture(header: Header) -> dict[str, Any]:
    prefix = f"{header.architecture}."
    return {key.removeprefix(prefix): value for key, value in header.values.items() if key.startswith(prefix)}


def _by_transformers(header: Header) -> ModelConfig:
    """As its reader maps it, which is given the header without the vocabulary: it takes minutes with one."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(_slim(header))
        file.flush()
        try:
            config = dict(load_gguf_checkpoint(file.name)["config"])
        except Exception as error:  # a converter of another library: anything it raises means that it cannot
            raise unread(header.path, error) from error
    config.pop("_model_name_or_path", None)
    embedding = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    tied = "output.weight" not in header.names
    return {f"{word}_token_id": None for word in ("bos", "eos", "pad")} | {
        **{key: _decimal(value) for key, value in config.items()},
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": tied,
    }


def _slim(header: Header) -> bytes:
    """A GGUF file with the same keys but for long arrays, and tensors of the same names with one block of zeros."""
    entries = [one for one in header.entries.values() if one is not None]
    words = b"tokenizer.ggml.tokens"
    entries.append(struct.pack("<Q", len(words)) + words + struct.pack("<IIQQ", gguf.ARRAY, gguf.STRING, 1, 1) + b"a")
    parts = [gguf.MAGIC, struct.pack("<IQQ", header.version, len(header.tensors), len(entries)), *entries]
    for tensor in header.tensors:
        name = tensor.name.encode()
        parts.append(struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 1, 0, 0))
    alignment = header.values.get("general.alignment", gguf.ALIGNMENT)
    return b"".join(parts) + bytes(2 * alignment)


def _decimal(value: Any) -> Any:
    """The shortest decimal that is the same float32: GGUF stores 1e-05 as 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value))) if isinstance(value, float) else value


def _default(header: Header, config: ModelConfig) -> PreTrainedConfig:
    """What Transformers takes where nothing is said."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise SourceError(f"{header.path}: Transformers knows no model_type {kind!r}")
    found: PreTrainedConfig = CONFIG_MAPPING[kind]()
    return found


def _has(default: PreTrainedConfig, name: str) -> bool:
    """Whether a config has `name` as a setting, and not as something that follows from others."""
    return hasattr(default, name) and not isinstance(getattr(type(default), name, None), property)


def _set(header: Header, config: ModelConfig, default: PreTrainedConfig, key: str, value: Any) -> None:
    """Put a number under the name that the config has for it, where Transformers' reader has not made more of it."""
    where = f"{header.path}: {header.architecture}.{key}"
    if header.architecture == "gemma4" and key == "attention.key_length":
        return  # of the layers without a window alone, as Transformers' reader has it
    if isinstance(value, list):
        if isinstance(config.get(_mapped(header, key) or key), int):
            return
        raise SourceError(f"{where}: expected one number, got {value!r}: use the original checkpoint")
    name = next((name for name in NAMES[key] if _has(default, name)), None)
    if name is not None:
        config[name] = _decimal(value) or (None if key == "attention.sliding_window" else value)
    elif value not in NEUTRAL and key not in SHAPED and not _means_all(config, key, value):
        raise SourceError(f"{where} = {value!r} has no place in the config that Transformers makes of it")


def _means_all(config: ModelConfig, key: str, value: object) -> bool:
    """As many heads of keys as of queries need no name of their own."""
    return key == "attention.head_count_kv" and value in (config.get("num_attention_heads"), config.get("n_head"))


def _mapped(header: Header, key: str) -> str | None:
    """What Transformers' reader calls a key."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    own = header.architecture.replace("-", "_").replace("moe", "_moe")
    known = GGUF_CONFIG_MAPPING.get(header.architecture) or GGUF_CONFIG_MAPPING.get(own) or {}
    name: str | None = known.get(key)
    return name


def _complete(header: Header, config: ModelConfig, default: PreTrainedConfig, left: dict[str, Any]) -> None:
    """What follows from several numbers, or from the architecture alone."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if _has(default, "head_dim") and "attention.key_length" not in _under_architecture(header):
        config["head_dim"] = hidden // heads if heads and hidden else None
    width = left.get("attention.value_length")
    if width not in (None, 0, config.get("head_dim"), hidden // heads if heads and hidden else None):
        raise SourceError(f"{header.path}: {header.architecture}.attention.value_length = {width} is not that of keys")
    if header.architecture in ("gemma2", "gemma3"):
        # llama.cpp's rule, in src/models/gemma3.cpp: the key is not in the file
        largest = config["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}[header.architecture]
        config["query_pre_attn_scalar"] = hidden // heads if largest and heads and hidden else config["head_dim"]
    if header.architecture == "falcon" and config.get("num_kv_heads") != 1:
        raise SourceError(
            f"{header.path}: falcon with {config.get('num_kv_heads')} heads of keys has rows in an order that "
            "Transformers does not undo: use the original checkpoint"
        )
    pattern = left.pop("attention.sliding_window_pattern", None)
    if pattern and hasattr(default, "layer_types"):
        config["layer_types"] = _layer_types(pattern, config["num_hidden_layers"])


def _layer_types(pattern: int | list[bool], layers: int) -> list[str]:
    slides = pattern if isinstance(pattern, list) else [bool((layer + 1) % pattern) for layer in range(layers)]
    return ["sliding_attention" if slide else "full_attention" for slide in slides[:layers]]


def _require_nothing_left(header: Header, left: dict[str, Any]) -> None:
    dropped = {
        key: value
        for key, value in left.items()
        if key not in HARMLESS and value not in NEUTRAL and not _mapped(header, key)
    }
    for key, value in dropped.items():
        where = f"{header.path}: {header.architecture}.{key} = {value!r}"
        if key.startswith(MATHEMATICS) or key.endswith(("scale", "softcapping")):
            raise SourceError(f"{where} has no place in the config that Transformers makes of it")
        logger.warning("%s is dropped: the config that Transformers makes of it has no such key", where)


def main() -> int:
    try:
        config = of(gguf.read(Path(json.load(sys.stdin)["path"])))
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
