"""Decoders of Llama's kind: norms before, behind or around a layer's halves, windows, bases and scales.

Each reader takes a config that Transformers has completed. What only changes numbers is folded into weights when they
are read (a norm's weight that is one larger, a factor of the residual stream or of the logits), in the cell's own type.

Sources of the maths: Transformers' own modules, which the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from claimbench.checkpoints import counting
from claimbench.cost_model import cost
from claimbench.engine.model import gpt_families, mixtures
from claimbench.engine.model.spec import Spec
from claimbench.engine.model.traits import (
    LLAMA,
    activation,
    decoder,
    turned,
    turned_by_layer,
    windowed,
    with_qk_norm,
)
from claimbench.errors import Unavailable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def read(config: cost.ModelConfig) -> Spec:
    """The decoder of a Transformers `config.json`.

    Raises:
        Unavailable: its layers do what the engine does not; says what.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise Unavailable(f"the engine has no {lacking(config) or f'layers of model_type {kind!r}'}")
    return FAMILIES[kind](counting.completed(config))


def lacking(config: cost.ModelConfig) -> str | None:
    """The trait of a model that the engine does not have, by name; None: none that a config shows."""
    types = {str(each) for each in config.get("layer_types") or ()}
    keys = set(config)
    if config.get("kv_lora_rank"):
        return "latent attention"
    if any("linear" in each for each in types) or any(key.startswith("linear_") for key in keys):
        return "linear attention"
    if keys & STATES or any("mamba" in each for each in types) or "mamba" in str(config.get("model_type")):
        return "state spaces"
    if any("conv" in each for each in types) or any(key.startswith("conv_") for key in keys):
        return "convolutions"
    if any(config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")):
        return f"mixture of experts of model_type {config.get('model_type')!r}"
    return None


STATES = {"state_size", "ssm_cfg", "mamba_d_state", "mamba_expand", "ssm_state_size", "attn_layer_period"}
"""Settings that only models with state spaces have."""


def _llama(text: PreTrainedConfig, **names: Any) -> Spec:
    """Llama's layers, with other weights or under another name."""
    spec = decoder(text, replace(LLAMA, **names), activation=activation(text.hidden_act))
    return windowed(turned(spec, text), text)


def _ministral3(text: PreTrainedConfig) -> Spec:
    spec, rope = _llama(text), text.rope_parameters
    beyond = int(rope["original_max_position_embeddings"]) if rope.get("llama_4_scaling_beta") else None
    return replace(spec, queries_grow_beyond=beyond)


def _gemma(text: PreTrainedConfig) -> Spec:
    name = getattr(text, "hidden_activation", None) or "gelu_pytorch_tanh"
    names, scale = replace(LLAMA, norm_offset=1.0), text.hidden_size**0.5
    return turned(decoder(text, names, activation=activation(name), embedding_scale=scale), text)


def _gemma2(text: PreTrainedConfig) -> Spec:
    return turned(_norms_around(text), text)


def _norms_around(text: PreTrainedConfig) -> Spec:
    """Gemma 2's layers, without positions."""
    names = replace(
        LLAMA,
        norm_offset=1.0,
        after_attention="post_attention_layernorm",
        norm2="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
    )
    spec = decoder(
        text,
        names,
        activation=activation(text.hidden_activation),
        embedding_scale=text.hidden_size**0.5,
        attention_scale=text.query_pre_attn_scalar**-0.5,
        score_cap=text.attn_logit_softcapping,
        logit_cap=text.final_logit_softcapping,
    )
    return windowed(spec, text)


def _gemma3(text: PreTrainedConfig) -> Spec:
    """Queries and keys have norms, and layers with a window turn by a base of their own."""
    if getattr(text, "use_bidirectional_attention", False):
        raise Unavailable("the engine has no attention to later tokens (config.json use_bidirectional_attention)")
    spec = _norms_around(text)
    return turned_by_layer(replace(spec, names=with_qk_norm(spec.names)), text)


def _granite(text: PreTrainedConfig) -> Spec:
    spec = _llama(text, residual_scale=text.residual_multiplier, logits_scale=1 / text.logits_scaling)
    return replace(spec, embedding_scale=text.embedding_multiplier, attention_scale=text.attention_multiplier)


def _olmo2(text: PreTrainedConfig) -> Spec:
    return turned(_norms_behind(text), text)


def _olmo3(text: PreTrainedConfig) -> Spec:
    return windowed(turned_by_layer(_norms_behind(text), text), text)


def _norms_behind(text: PreTrainedConfig) -> Spec:
    """Norms behind each half of a layer, none before, and one over all queries and one over all keys."""
    names = replace(
        with_qk_norm(LLAMA),
        norm1=None,
        after_attention="post_attention_layernorm",
        norm2=None,
        after_mlp="post_feedforward_layernorm",
    )
    return decoder(text, names, activation=activation(text.hidden_act), whole_qk_norm=True)


def _smollm3(text: PreTrainedConfig) -> Spec:
    """Every fourth layer has no positions."""
    unturned = frozenset(number for number, turns in enumerate(text.no_rope_layers) if not turns)
    return replace(_llama(text), unturned=unturned)


def _glm(text: PreTrainedConfig, **names: Any) -> Spec:
    return _llama(text, neighbours_turn=True, up=("mlp.gate_up_proj",), **names)


def _glm4(text: PreTrainedConfig) -> Spec:
    return _glm(text, after_attention="post_self_attn_layernorm", after_mlp="post_mlp_layernorm")


def _phi3(text: PreTrainedConfig) -> Spec:
    return _llama(text, qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",))


def _cohere(text: PreTrainedConfig) -> Spec:
    """Both halves read one norm, which has a mean and no bias."""
    names = replace(LLAMA, norm2=None, neighbours_turn=True, logits_scale=text.logit_scale)
    names = with_qk_norm(names) if getattr(text, "use_qk_norm", False) else names
    spec = decoder(text, names, norm="layer", activation=activation(text.hidden_act), parallel=True)
    return turned(spec, text)


def _cohere2(text: PreTrainedConfig) -> Spec:
    """Layers that see everything have no positions."""
    spec = windowed(_cohere(text), text)
    unturned = (number for number, kind in enumerate(text.layer_types) if kind != "sliding_attention")
    return replace(spec, unturned=frozenset(unturned))


FAMILIES: dict[object, Callable[[PreTrainedConfig], Spec]] = {
    "arcee": lambda text: replace(_llama(text, up=("mlp.up_proj",)), gate=False),
    "cohere": _cohere,
    "cohere2": _cohere2,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "glm": _glm,
    "glm4": _glm4,
    "granite": _granite,
    "ministral3": _ministral3,
    "olmo2": _olmo2,
    "olmo3": _olmo3,
    "phi3": _phi3,
    "seed_oss": _llama,
    "smollm3": _smollm3,
    **gpt_families.FAMILIES,
    **mixtures.FAMILIES,
}
