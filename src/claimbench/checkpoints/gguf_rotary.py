"""Rotary positions of a GGUF file: their base, their share of a head, and how they are scaled.

Transformers' reader takes the base alone. Scaled positions of Llama 3 lie in a GGUF as a tensor of factors, which its
writer made from a rule; the rule is found again and must give the same factors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from claimbench.checkpoints.gguf import Header, dequantized
from claimbench.cost_model.cost import ModelConfig
from claimbench.errors import SourceError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedConfig

LLAMA3_TABLE, LONG_TABLE, SHORT_TABLE = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
ROTARY_TABLES = (LLAMA3_TABLE, LONG_TABLE, SHORT_TABLE)
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""As in every published Llama 3.1, 3.2 and 3.3."""
YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "attn_factor": "attention_factor"}


def apply(header: Header, config: ModelConfig, default: PreTrainedConfig, left: dict[str, Any]) -> None:
    """Write `rope_parameters` into `config`, and take the keys that they come from out of `left`.

    Raises:
        SourceError: positions are scaled by a rule that is not known here.
    """
    usual = getattr(default, "rope_parameters", None)
    if not usual:
        return
    nested = isinstance(next(iter(usual.values())), dict)
    base = left.pop("rope.freq_base", None) or config.get("rope_theta")
    local = left.pop("rope.freq_base_swa", None)
    made = dict(usual["full_attention"] if nested else usual) | _scaling(header, config, base, left)
    if base is not None:
        made["rope_theta"] = _plain(base)
    turned = left.pop("rope.dimension_count", None)
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if turned and (turned != width or made.get("partial_rotary_factor", 1.0) != 1.0):
        made["partial_rotary_factor"] = turned / width
    config.pop("rope_theta", None)
    if nested:
        sliding = dict(usual["sliding_attention"]) | ({"rope_theta": _plain(local)} if local else {})
        config["rope_parameters"] = {"full_attention": made, "sliding_attention": sliding}
    else:
        config["rope_parameters"] = made


def require_rotated(header: Header, model: Any) -> None:
    """Raises SourceError where the model turns another part of each head than the file says."""
    turned = header.values.get(f"{header.architecture}.rope.dimension_count")
    found = {2 * one.shape[-1] for name, one in model.named_buffers() if name.endswith("inv_freq")}
    if turned and found and found != {turned}:
        raise SourceError(
            f"{header.path}: {header.architecture}.rope.dimension_count = {turned}, but the model that Transformers "
            f"makes of it turns {', '.join(map(str, sorted(found)))} of a head's values"
        )


def _plain(value: float) -> float:
    """See `gguf_config._decimal`."""
    import numpy as np

    return float(str(np.float32(value)))


def _scaling(header: Header, config: ModelConfig, base: float | None, left: dict[str, Any]) -> dict[str, Any]:
    begin = "rope.scaling."
    rule = {key.removeprefix(begin): left.pop(key) for key in list(left) if key.startswith(begin)}
    rule.pop("finetuned", None)
    kind, factor = rule.pop("type", "none"), rule.pop("factor", None)
    context = rule.pop("original_context_length", None)
    if LLAMA3_TABLE in header.names:
        return _llama3(header, base or 10000.0)
    if LONG_TABLE in header.names or kind == "longrope":
        return _longrope(header, config, context, rule)
    if kind == "none" or factor in (None, 0.0, 1.0):
        return {}
    given = {YARN[key]: _plain(value) for key, value in rule.items() if key in YARN}
    if kind == "linear" and not rule:
        return {"rope_type": "linear", "factor": _plain(factor)}
    if kind == "yarn" and context and not rule.keys() - YARN.keys():
        return {"rope_type": "yarn", "factor": _plain(factor), "original_max_position_embeddings": context} | given
    names = ", ".join(sorted(rule)) or "a factor alone"
    raise SourceError(f"{header.path}: rotary positions scaled by {kind!r} with {names} are not known here")


def table(header: Header, name: str) -> npt.NDArray[np.float32]:
    """Raises SourceError where the file has no such table of factors, or not as numbers."""
    stored = next((tensor for tensor in header.tensors if tensor.name == name), None)
    if stored is None or len(stored.shape) != 1:
        raise SourceError(f"{header.path}: expected a tensor {name} with one side, which is missing")
    return dequantized(header.path, stored)


def _longrope(header: Header, config: ModelConfig, context: int | None, rule: dict[str, Any]) -> dict[str, Any]:
    if not context:
        raise SourceError(f"{header.path}: expected rope.scaling.original_context_length beside {LONG_TABLE}")
    config["original_max_position_embeddings"] = context
    attention = rule.get("attn_factor")
    return {
        "rope_type": "longrope",
        "long_factor": [_plain(value) for value in table(header, LONG_TABLE)],
        "short_factor": [_plain(value) for value in table(header, SHORT_TABLE)],
        "original_max_position_embeddings": context,
        "factor": config["max_position_embeddings"] / context,
    } | ({"attention_factor": _plain(attention)} if attention else {})


def _llama3(header: Header, base: float) -> dict[str, Any]:
    """The settings that give the factors in the file."""
    factors = [float(value) for value in table(header, LLAMA3_TABLE)]
    largest = max(factors)
    if largest == 1.0:
        return {}
    settings = {"rope_type": "llama3", "factor": _plain(largest)} | LLAMA3
    expected = [_llama3_factor(base ** (2 * at / (2 * len(factors))), largest) for at in range(len(factors))]
    if any(not math.isclose(one, other, rel_tol=1e-4) for one, other in zip(factors, expected, strict=True)):
        raise SourceError(
            f"{header.path}: the factors in {LLAMA3_TABLE} are not those of Llama 3's rule: not known here"
        )
    return settings


def _llama3_factor(period: float, factor: float) -> float:
    """By how much a frequency is divided whose wave has `period` tokens a radian.

    Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py, `generate_extra_tensors`
    """
    waves = LLAMA3["original_max_position_embeddings"] / (2 * math.pi * period)
    smooth = (waves - LLAMA3["low_freq_factor"]) / (LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"])
    smooth = min(1.0, max(0.0, smooth))
    return 1 / ((1 - smooth) / factor + smooth)
