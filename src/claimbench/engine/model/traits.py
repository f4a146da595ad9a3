"""What a config says of a decoder in the terms of `Spec`: what readers of families share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from claimbench.cost_model import cost
from claimbench.engine.model.spec import SCALED, Activation, LongPositions, Names, Spec
from claimbench.errors import Unavailable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "tanh_gelu",
    "gelu_fast": "tanh_gelu",
    "gelu_pytorch_tanh": "tanh_gelu",
    "relu": "relu",
    "relu2": "squared_relu",
}
LLAMA = Names(
    embedding="model.embed_tokens",
    layers="model.layers",
    norm1="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    norm2="post_attention_layernorm",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    norm="model.norm",
)
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")


def architecture(text: PreTrainedConfig, **changes: Any) -> cost.Architecture:
    heads = text.num_attention_heads
    settings: dict[str, Any] = {
        "family": "other",
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "heads": heads,
        "kv_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // heads,
        "intermediate": getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        "vocabulary": text.vocab_size,
        "context": text.max_position_embeddings,
        "tied": bool(getattr(text, "tie_word_embeddings", False)),
    }
    return cost.Architecture(**settings | changes)


def activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise Unavailable(f"the engine has no activation {name}: it has {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def refuse(text: PreTrainedConfig, **unwanted: str) -> None:
    """Raises Unavailable where a setting is on; each is named with what the engine lacks for it."""
    for key, trait in unwanted.items():
        if getattr(text, key, None):
            raise Unavailable(f"the engine has no {trait} (config.json {key})")


def decoder(text: PreTrainedConfig, names: Names, **settings: Any) -> Spec:
    """One of RMS norms, rotary positions and a gate of SiLU, without positions yet, unless `settings` say otherwise."""
    eps = next(filter(None, (getattr(text, key, None) for key in EPSILONS)), 1e-5)
    usual: dict[str, Any] = {"norm": "rms", "positions": "rotary", "activation": "silu", "gate": True, "eps": eps}
    return Spec(arch=settings.pop("arch", None) or architecture(text), names=names, **usual | settings)


def with_qk_norm(names: Names, q_norm: str = "self_attn.q_norm", k_norm: str = "self_attn.k_norm") -> Names:
    return replace(names, q_norm=q_norm, k_norm=k_norm)


def turned(spec: Spec, text: PreTrainedConfig) -> Spec:
    """`spec` with the rotary positions that all layers share."""
    frequencies, scale = _frequencies(spec, text, text.rope_parameters)
    spec = replace(spec, frequencies=frequencies, rope_scale=scale)
    if text.rope_parameters.get("rope_type") != "longrope":
        return spec
    beyond = int(text.rope_parameters["original_max_position_embeddings"])
    far, _ = _frequencies(spec, text, text.rope_parameters, beyond + 1)
    return replace(spec, long=LongPositions(beyond, far))


def turned_by_layer(spec: Spec, text: PreTrainedConfig) -> Spec:
    """`spec` with rotary positions of their own in layers with a window."""
    ropes = text.rope_parameters
    frequencies, scale = _frequencies(spec, text, ropes["full_attention"])
    local, local_scale = _frequencies(spec, text, ropes["sliding_attention"])
    here = frozenset(number for number, kind in enumerate(text.layer_types) if kind == "sliding_attention")
    spec = replace(spec, frequencies=frequencies, rope_scale=scale)
    return replace(spec, local_layers=here, local_frequencies=local, local_rope_scale=local_scale)


def _frequencies(
    spec: Spec, text: PreTrainedConfig, rope: dict[str, Any], length: int | None = None
) -> tuple[tuple[float, ...], float]:
    """Of each pair, and what turned values are multiplied with; for sequences of `length`, where that counts."""
    kind = rope.get("rope_type", "default")
    if kind == "default":
        width = int(spec.arch.head_dim * (rope.get("partial_rotary_factor") or 1.0))
        return tuple(float(rope["rope_theta"]) ** (-each / width) for each in range(0, width, 2)), 1.0
    if kind not in SCALED:
        raise Unavailable(f"the engine scales rotary positions by {', '.join(SCALED)}, and this model does by {kind}")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found, scale = ROPE_INIT_FUNCTIONS[kind](with_settings(text, rope_parameters=rope), "cpu", seq_len=length)
    return tuple(found.tolist()), float(scale)


def windowed(spec: Spec, text: PreTrainedConfig) -> Spec:
    """`spec` with the window that the config has: in the layers that it names, or in all where it names none."""
    window = getattr(text, "sliding_window", None)
    if not window or getattr(text, "use_sliding_window", True) is False:
        return spec
    types = getattr(text, "layer_types", None) or ()
    everything = frozenset(number for number, kind in enumerate(types) if kind != "sliding_attention")
    return replace(spec, window=int(window), unwindowed=everything)


def with_settings(text: PreTrainedConfig, **changes: Any) -> PreTrainedConfig:
    from copy import copy

    made = copy(text)
    for key, value in changes.items():
        setattr(made, key, value)
    return made
