"""In how many bits a quantized checkpoint keeps its matrices, from its config's `quantization_config`.

A bound from below: scales are counted where the config says their number, and what a method leaves in 16 bits counts
as quantized. Sources: Transformers' quantization configs, and the OCP Microscaling specification for mxfp4.
"""

from __future__ import annotations

from typing import Any

from claimbench.cost_model.cost import ModelConfig
from claimbench.schema.card import StoredFormat

MXFP4 = StoredFormat(bits=4 + 8 / 32, experts_alone=True)
"""Blocks of 32 values share a scale of 8 bits; Transformers has it for the experts of gpt-oss alone."""
LEAST_BITS = 1.0
"""Of a method whose config says nothing that is known here."""
FIXED = {"fp8": 8.0, "fbgemm_fp8": 8.0, "finegrained_fp8": 8.0, "eetq": 8.0}
SCALE_BITS = 32


def stored_format(config: ModelConfig) -> StoredFormat | None:
    """None where the checkpoint is not quantized."""
    for part in (config, config.get("text_config")):
        said = part.get("quantization_config") if isinstance(part, dict) else None
        if isinstance(said, dict) and said:
            return MXFP4 if said.get("quant_method") == "mxfp4" else StoredFormat(bits=_bits(said))
    return None


def _bits(said: dict[str, Any]) -> float:
    method = said.get("quant_method")
    if isinstance(method, str) and method in FIXED:
        return FIXED[method] + _block_scale_bits(said.get("weight_block_size"))
    if method == "bitsandbytes":
        return 4.0 if said.get("load_in_4bit") else 8.0
    stated = [said.get("bits"), said.get("w_bit"), said.get("nbits"), *_of_groups(said.get("config_groups"))]
    known = [float(each) for each in stated if isinstance(each, int | float) and each > 0]
    return min(known, default=LEAST_BITS)


def _block_scale_bits(sides: object) -> float:
    """Of a value's share of its block's scale."""
    whole = [one for one in sides if isinstance(one, int) and one > 0] if isinstance(sides, list | tuple) else []
    return SCALE_BITS / (whole[0] * whole[1]) if len(whole) == 2 else 0.0


def _of_groups(groups: object) -> list[object]:
    """Of compressed-tensors, which keeps groups of layers in formats of their own."""
    kept = groups.values() if isinstance(groups, dict) else ()
    weights = (group.get("weights") for group in kept if isinstance(group, dict))
    return [each.get("num_bits") for each in weights if isinstance(each, dict)]
