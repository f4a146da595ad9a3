"""Decoders beside Llama's, GPT-BigCode's and BLOOM's: what their layers do, and what their weights are called.

Each reads a config that Transformers has completed. What only changes numbers is folded into weights when they are
read (a norm's weight that is one larger, a factor of the residual stream or of the logits), in the cell's own type.

Sources of the maths: Transformers' own modules, which the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from claimbench.checkpoints import counting
from claimbench.cost_model import cost
from claimbench.engine.model.spec import SCALED, Activation, Mixture, Names, Spec
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
    text = config.get("text_config") or config
    types = {str(each) for each in text.get("layer_types") or ()}
    if text.get("kv_lora_rank"):
        return "latent attention"
    if any("linear" in each or "mamba" in each or "conv" in each for each in types) or "mamba" in str(text):
        return "state spaces, linear attention or convolutions"
    if any(text.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")):
        return "mixtures of experts"
    return None


def _arch(text: PreTrainedConfig, **changes: Any) -> cost.Architecture:
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


def _activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise Unavailable(f"the engine has no activation {name}: it has {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _refuse(text: PreTrainedConfig, **unwanted: str) -> None:
    """Raises Unavailable where a setting is on; each is named with what the engine lacks for it."""
    for key, trait in unwanted.items():
        if getattr(text, key, None):
            raise Unavailable(f"the engine has no {trait} (config.json {key})")


def _turned(spec: Spec, text: PreTrainedConfig, rope: dict[str, Any] | None = None) -> Spec:
    """`spec` with rotary positions as the config has them."""
    rope = dict(rope or text.rope_parameters)
    kind = rope.get("rope_type", "default")
    width = int(spec.arch.head_dim * (rope.get("partial_rotary_factor") or 1.0))
    if kind == "default":
        frequencies = tuple(float(rope["rope_theta"]) ** (-each / width) for each in range(0, width, 2))
        return replace(spec, frequencies=frequencies)
    if kind not in SCALED:
        raise Unavailable(f"the engine scales rotary positions by {', '.join(SCALED)}, and this model does by {kind}")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found, scale = ROPE_INIT_FUNCTIONS[kind](text, "cpu")
    return replace(spec, frequencies=tuple(found.tolist()), rope_scale=float(scale))


def _spec(text: PreTrainedConfig, names: Names, **settings: Any) -> Spec:
    """A decoder of RMS norms, rotary positions and a gate of SiLU, unless `settings` say otherwise."""
    usual: dict[str, Any] = {"norm": "rms", "positions": "rotary", "activation": "silu", "gate": True}
    eps = getattr(text, "rms_norm_eps", None) or getattr(text, "layer_norm_eps", None) or 1e-5
    return Spec(arch=settings.pop("arch", None) or _arch(text), eps=float(eps), names=names, **usual | settings)


def _gpt_neox(text: PreTrainedConfig) -> Spec:
    names = Names(
        embedding="gpt_neox.embed_in",
        layers="gpt_neox.layers",
        norm1="input_layernorm",
        qkv=("attention.query_key_value",),
        joined_by_head=True,
        out="attention.dense",
        norm2="post_attention_layernorm",
        up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        norm="gpt_neox.final_layer_norm",
        head=("embed_out", "lm_head"),
    )
    kind = {"norm": "layer", "gate": False, "parallel": text.use_parallel_residual}
    return _turned(_spec(text, names, activation=_activation(text.hidden_act), **kind), text)


def _phi(text: PreTrainedConfig) -> Spec:
    _refuse(text, qk_layernorm="norm of queries and keys with a mean")
    names = replace(
        LLAMA,
        out="self_attn.dense",
        norm2=None,
        up=("mlp.fc1",),
        down="mlp.fc2",
        norm="model.final_layernorm",
        head_bias=True,
    )
    kind = {"norm": "layer", "gate": False, "parallel": True}
    return _turned(_spec(text, names, activation=_activation(text.hidden_act), **kind), text)


def _stablelm(text: PreTrainedConfig) -> Spec:
    _refuse(text, qk_layernorm="norm of queries and keys for each head")
    parallel = bool(text.use_parallel_residual)
    names = replace(LLAMA, norm2=None) if parallel else LLAMA
    spec = _spec(text, names, norm="layer", activation=_activation(text.hidden_act), parallel=parallel)
    return _turned(spec, text)


def _starcoder2(text: PreTrainedConfig) -> Spec:
    names = replace(LLAMA, up=("mlp.c_fc",), down="mlp.c_proj")
    spec = _spec(text, names, norm="layer", activation=_activation(text.hidden_act), gate=False)
    return _turned(replace(spec, eps=float(text.norm_epsilon), window=text.sliding_window), text)


def _opt(text: PreTrainedConfig) -> Spec:
    if not text.do_layer_norm_before or getattr(text, "_remove_final_layer_norm", False):
        raise Unavailable("the engine has no norm behind a layer's halves alone (config.json do_layer_norm_before)")
    if text.word_embed_proj_dim != text.hidden_size:
        raise Unavailable("the engine has no projection of embeddings (config.json word_embed_proj_dim)")
    names = Names(
        embedding="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        first_position=2,
        layers="model.decoder.layers",
        norm1="self_attn_layer_norm",
        qkv=LLAMA.qkv,
        out="self_attn.out_proj",
        norm2="final_layer_norm",
        up=("fc1",),
        down="fc2",
        norm="model.decoder.final_layer_norm",
    )
    arch = _arch(text, intermediate=text.ffn_dim)
    activation = _activation(text.activation_function)
    return _spec(text, names, arch=arch, norm="layer", positions="learned", activation=activation, gate=False)


def _gemma(text: PreTrainedConfig) -> Spec:
    activation = _activation(getattr(text, "hidden_activation", None) or "gelu_pytorch_tanh")
    scale = text.hidden_size**0.5
    spec = _spec(text, replace(LLAMA, norm_offset=1.0), activation=activation, embedding_scale=scale)
    return _turned(spec, text)


def _gemma2(text: PreTrainedConfig) -> Spec:
    _refuse(text, attn_logit_softcapping="soft cap on scores", final_logit_softcapping="soft cap on logits")
    names = replace(
        LLAMA,
        norm_offset=1.0,
        after_attention="post_attention_layernorm",
        norm2="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
    )
    activation, window = _activation(text.hidden_activation), text.sliding_window
    spec = _spec(text, names, activation=activation, embedding_scale=text.hidden_size**0.5, window=window)
    return _turned(replace(spec, attention_scale=text.query_pre_attn_scalar**-0.5), text)


def _gemma3(text: PreTrainedConfig) -> Spec:
    """Queries and keys have norms, and layers with a window turn by a base of their own."""
    ropes = text.rope_parameters
    spec = _gemma2_like(text, ropes["full_attention"])
    local = tuple(number for number, kind in enumerate(text.layer_types) if kind == "sliding_attention")
    other = _turned(spec, text, ropes["sliding_attention"]).frequencies
    return replace(spec, local_layers=frozenset(local), local_frequencies=other)


def _gemma2_like(text: PreTrainedConfig, rope: dict[str, Any]) -> Spec:
    spec = _gemma2(_with(text, rope_parameters=rope))
    assert spec.names is not None
    return replace(spec, names=replace(spec.names, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"))


def _with(text: PreTrainedConfig, **changes: Any) -> PreTrainedConfig:
    from copy import copy

    made = copy(text)
    for key, value in changes.items():
        setattr(made, key, value)
    return made


def _granite(text: PreTrainedConfig) -> Spec:
    names = replace(LLAMA, residual_scale=text.residual_multiplier, logits_scale=1 / text.logits_scaling)
    scales = {"embedding_scale": text.embedding_multiplier, "attention_scale": text.attention_multiplier}
    return _turned(_spec(text, names, activation=_activation(text.hidden_act), **scales), text)


def _olmo2(text: PreTrainedConfig) -> Spec:
    """Norms behind each half of a layer, none before, and one over all queries and one over all keys."""
    names = replace(
        LLAMA,
        norm1=None,
        after_attention="post_attention_layernorm",
        norm2=None,
        after_mlp="post_feedforward_layernorm",
        q_norm="self_attn.q_norm",
        k_norm="self_attn.k_norm",
    )
    return _turned(_spec(text, names, activation=_activation(text.hidden_act), whole_qk_norm=True), text)


def _smollm3(text: PreTrainedConfig) -> Spec:
    """Every fourth layer has no positions."""
    unturned = frozenset(number for number, turns in enumerate(text.no_rope_layers) if not turns)
    window = text.sliding_window if text.use_sliding_window else None
    spec = _spec(text, LLAMA, activation=_activation(text.hidden_act), unturned=unturned, window=window)
    return _turned(spec, text)


def _glm(text: PreTrainedConfig) -> Spec:
    names = replace(LLAMA, neighbours_turn=True, up=("mlp.gate_up_proj",))
    return _turned(_spec(text, names, activation=_activation(text.hidden_act)), text)


def _glm4(text: PreTrainedConfig) -> Spec:
    spec = _glm(text)
    assert spec.names is not None
    names = replace(spec.names, after_attention="post_self_attn_layernorm", after_mlp="post_mlp_layernorm")
    return replace(spec, names=names)


def _phi3(text: PreTrainedConfig) -> Spec:
    names = replace(LLAMA, qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",))
    spec = _spec(text, names, activation=_activation(text.hidden_act), window=text.sliding_window)
    return _turned(spec, text)


def _qwen3_moe(text: PreTrainedConfig) -> Spec:
    if text.mlp_only_layers or text.decoder_sparse_step != 1:
        raise Unavailable(
            "the engine has no layers without experts among those with some (config.json mlp_only_layers)"
        )
    names = replace(LLAMA, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
    mixture = Mixture(
        count=text.num_experts,
        active=text.num_experts_per_tok,
        renormalised=text.norm_topk_prob,
        router="mlp.gate",
        experts="mlp.experts",
        up=("gate_proj", "up_proj"),
        down="down_proj",
    )
    window = text.sliding_window if getattr(text, "use_sliding_window", False) else None
    spec = _spec(text, names, activation=_activation(text.hidden_act), mixture=mixture, window=window)
    return _turned(spec, text)


def _olmoe(text: PreTrainedConfig) -> Spec:
    _refuse(text, clip_qkv="clipped queries, keys and values")
    text.mlp_only_layers, text.decoder_sparse_step = [], 1
    return replace(_qwen3_moe(text), whole_qk_norm=True)


def _mixtral(text: PreTrainedConfig) -> Spec:
    mixture = Mixture(
        count=text.num_local_experts,
        active=text.num_experts_per_tok,
        renormalised=True,
        router="block_sparse_moe.gate",
        experts="block_sparse_moe.experts",
        up=("w1", "w3"),
        down="w2",
    )
    spec = _spec(text, LLAMA, activation=_activation(text.hidden_act), mixture=mixture, window=text.sliding_window)
    return _turned(spec, text)


def _plain(text: PreTrainedConfig) -> Spec:
    """Llama's layers under another name."""
    return _turned(_spec(text, LLAMA, activation=_activation(text.hidden_act)), text)


FAMILIES: dict[object, Callable[[PreTrainedConfig], Spec]] = {
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "glm": _glm,
    "glm4": _glm4,
    "gpt_neox": _gpt_neox,
    "granite": _granite,
    "mixtral": _mixtral,
    "olmo2": _olmo2,
    "olmoe": _olmoe,
    "opt": _opt,
    "phi": _phi,
    "phi3": _phi3,
    "qwen3_moe": _qwen3_moe,
    "seed_oss": _plain,
    "smollm3": _smollm3,
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
}
