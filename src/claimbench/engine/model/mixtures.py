"""Decoders whose feed-forward is a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from claimbench.engine.model.spec import Mixture, Names, SharedExpert, Spec
from claimbench.engine.model.traits import LLAMA, activation, decoder, refuse, turned, windowed, with_qk_norm
from claimbench.errors import Unavailable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _mixture(text: PreTrainedConfig, mixture: Mixture, names: Names = LLAMA) -> Spec:
    return turned(decoder(text, names, activation=activation(text.hidden_act), mixture=mixture), text)


def _of_qwen(text: PreTrainedConfig, intermediate: int, shared: SharedExpert | None = None) -> Mixture:
    if getattr(text, "mlp_only_layers", None) or getattr(text, "decoder_sparse_step", 1) != 1:
        raise Unavailable(
            "the engine has no layers without experts among those with some (config.json mlp_only_layers)"
        )
    return Mixture(
        count=text.num_experts,
        active=text.num_experts_per_tok,
        intermediate=intermediate,
        renormalised=text.norm_topk_prob,
        router="mlp.gate",
        experts="mlp.experts",
        up=("gate_proj", "up_proj"),
        down="down_proj",
        shared=shared,
    )


def _qwen2_moe(text: PreTrainedConfig) -> Spec:
    shared = SharedExpert(
        gate="mlp.shared_expert_gate",
        up=("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
        down="mlp.shared_expert.down_proj",
    )
    return windowed(_mixture(text, _of_qwen(text, text.moe_intermediate_size, shared)), text)


def _qwen3_moe(text: PreTrainedConfig) -> Spec:
    return windowed(_mixture(text, _of_qwen(text, text.moe_intermediate_size), with_qk_norm(LLAMA)), text)


def _olmoe(text: PreTrainedConfig) -> Spec:
    refuse(text, clip_qkv="clipped queries, keys and values")
    return replace(_mixture(text, _of_qwen(text, text.intermediate_size), with_qk_norm(LLAMA)), whole_qk_norm=True)


def _mixtral(text: PreTrainedConfig) -> Spec:
    mixture = Mixture(
        count=text.num_local_experts,
        active=text.num_experts_per_tok,
        intermediate=text.intermediate_size,
        renormalised=True,
        router="block_sparse_moe.gate",
        experts="block_sparse_moe.experts",
        up=("w1", "w3"),
        down="w2",
    )
    return windowed(_mixture(text, mixture), text)


def _gpt_oss(text: PreTrainedConfig) -> Spec:
    """Heads have sinks, and experts biases and a gate that is held within bounds."""
    mixture = Mixture(
        count=text.num_local_experts,
        active=text.num_experts_per_tok,
        intermediate=text.intermediate_size,
        renormalised=True,
        router="mlp.router",
        experts="mlp.experts",
        up=("gate_up_proj",),
        down="down_proj",
    )
    spec = decoder(
        text,
        replace(LLAMA, sinks="self_attn.sinks"),
        mixture=mixture,
        activation="clamped_swish",
        swish=(float(getattr(text, "swiglu_alpha", 1.702)), float(getattr(text, "swiglu_limit", 7.0))),
    )
    return windowed(turned(spec, text), text)


FAMILIES: dict[object, Callable[[PreTrainedConfig], Spec]] = {
    "gpt_oss": _gpt_oss,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
}
