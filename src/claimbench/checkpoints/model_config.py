"""The `config.json` that every reader of a checkpoint sees: the same keys whatever the source and the library version.

Transformers 5 writes `rope_parameters` and 4 reads `rope_theta` (and takes 10000 where it is absent, without a word),
so both are written. BLOOM's published configs say `n_embed` and `num_attention_heads` where newer ones say
`hidden_size` and `n_head`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from claimbench.cost_model import cost
from claimbench.cost_model.cost import Architecture, ModelConfig
from claimbench.errors import SourceError
from claimbench.schema.cell import Checkpoint

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt_bigcode": "GPTBigCodeForCausalLM",
    "bloom": "BloomForCausalLM",
}
_SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt_bigcode": {
        "n_embd": ("hidden_size",),
        "n_layer": ("num_hidden_layers",),
        "n_head": ("num_attention_heads",),
        "n_positions": ("max_position_embeddings",),
    },
    "bloom": {
        "hidden_size": ("n_embed", "n_embd"),
        "n_layer": ("num_hidden_layers",),
        "n_head": ("num_attention_heads",),
    },
}
_DROPPED = ("_name_or_path", "transformers_version", "auto_map", "torch_dtype", "dtype")
_LAYERS_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_BY_LAYER = ("layer_types", "layers_block_type", "no_rope_layers", "mlp_layer_types")
"""Lists that have an entry for each layer."""


@contextmanager
def _of_right_types(where: str) -> Iterator[None]:
    """Whatever a value of a wrong type does to whoever reads it is the config's mistake."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise SourceError(f"{where}: config.json: a value is of a wrong type or impossible ({error})") from error


def normalise(config: ModelConfig, where: str) -> ModelConfig:
    """`config` with one spelling of every key.

    Raises:
        SourceError: it is of another model family, or asks for what the table of tensors does not have.
    """
    with _of_right_types(where):
        return _normalised(config, where)


def _normalised(config: ModelConfig, where: str) -> ModelConfig:
    kind = config.get("model_type")
    if kind not in CLASSES:
        raise SourceError(f"{where}: model_type: expected one of {', '.join(CLASSES)}, got {kind!r}")
    if config.get("quantization_config"):
        raise SourceError(
            f"{where}: expected unquantized weights, got a quantization_config: use the original checkpoint"
        )
    result = {key: value for key, value in config.items() if key not in _DROPPED}
    result["architectures"] = [CLASSES[kind]]
    for name, synonyms in _SYNONYMS.get(kind, {}).items():
        for synonym in synonyms:
            value = result.pop(synonym, None)
            if value is not None:
                result.setdefault(name, value)
    if kind in cost.LLAMA_LIKE:
        _spell_rope(result)
    return result


def _spell_rope(config: ModelConfig) -> None:
    """Rotary settings under the names of Transformers 5 (`rope_parameters`) and 4 (`rope_theta`, `rope_scaling`)."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    rope["rope_type"] = rope.get("rope_type") or rope.pop("type", None) or "default"
    config["rope_parameters"] = rope | {"rope_theta": theta}
    config["rope_theta"] = theta
    config.pop("rope_scaling", None)
    if rope["rope_type"] != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}


def parse(config: ModelConfig, where: str) -> Architecture:
    """The architecture that `config` describes.

    Raises:
        SourceError: a key is missing, or is no number that can be.
    """
    try:
        with _of_right_types(where):
            found = cost.parse(config)
    except KeyError as error:
        raise SourceError(f"{where}: expected the key {error}, which is missing") from error
    for field, value in found._asdict().items():
        if Architecture.__annotations__[field] == "int" and not (type(value) is int and 1 <= value < 1 << 31):
            raise SourceError(f"{where}: config.json: expected a whole number of {field}, got {str(value)[:40]}")
    return found


def require_declared(checkpoint: Checkpoint, arrived: Architecture) -> None:
    """Raises SourceError where the checkpoint is not of the architecture that its entry in params.yaml names."""
    if checkpoint.architecture is None:
        return
    try:
        declared = cost.architecture(checkpoint.architecture)
    except KeyError:
        raise SourceError(f"{checkpoint.name}: unknown architecture '{checkpoint.architecture}'") from None
    compared = [field for field in Architecture._fields if field != "context" or declared.family == "gpt_bigcode"]
    different = [field for field in compared if getattr(declared, field) != getattr(arrived, field)]
    if different:
        expected = ", ".join(f"{field} {getattr(declared, field)}" for field in different)
        found = ", ".join(f"{field} {getattr(arrived, field)}" for field in different)
        raise SourceError(
            f"{checkpoint.name}: {checkpoint.source} is not a '{checkpoint.architecture}': expected {expected}; "
            f"arrived {found}. Name the right architecture in params.yaml"
        )


def kept_layers(checkpoint: Checkpoint, arch: Architecture) -> int:
    keep = checkpoint.keep_layers or arch.layers
    if keep > arch.layers:
        raise SourceError(f"{checkpoint.name}: keep_layers: expected at most {arch.layers}, got {keep}")
    return keep


def with_layers(config: ModelConfig, layers: int) -> ModelConfig:
    """The config of the model's first layers, whose language part may have a config of its own."""
    if isinstance(config.get("text_config"), dict):
        return config | {"text_config": with_layers(config["text_config"], layers)}
    result = dict(config)
    result |= {key: layers for key in _LAYERS_KEYS if key in config}
    result |= {key: config[key][:layers] for key in _BY_LAYER if isinstance(config.get(key), list)}
    return result


def method_of(config: ModelConfig) -> str | None:
    """How a checkpoint's weights are quantized, of the model or of its language part; None: they are not."""
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    found = next((part["quantization_config"] for part in parts if part.get("quantization_config")), None)
    return str(found.get("quant_method", "an unnamed method")) if isinstance(found, dict) else None


def with_floats(value: Any) -> Any:
    """JSON has no infinity: Transformers writes {"__float__": "Infinity"} in its place."""
    if isinstance(value, dict):
        infinite = set(value) == {"__float__"}
        return float(value["__float__"]) if infinite else {key: with_floats(one) for key, one in value.items()}
    return [with_floats(one) for one in value] if isinstance(value, list) else value
