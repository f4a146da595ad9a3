"""Decoders of GPT's kind: norms with a mean, positions that are learned or turn a part of a head, parallel layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from claimbench.engine.model.spec import Names, Spec
from claimbench.engine.model.traits import (
    LLAMA,
    activation,
    architecture,
    decoder,
    refuse,
    turned,
    windowed,
    with_qk_norm,
)
from claimbench.errors import Unavailable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

GPT2 = Names(
    embedding="transformer.wte",
    positions="transformer.wpe",
    layers="transformer.h",
    norm1="ln_1",
    qkv=("attn.c_attn",),
    out="attn.c_proj",
    norm2="ln_2",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    norm="transformer.ln_f",
)
GPT_BIGCODE = replace(GPT2, joined_by_head=True)
BLOOM = replace(
    GPT2,
    embedding="transformer.word_embeddings",
    embedding_norm="transformer.word_embeddings_layernorm",
    positions=None,
    norm1="input_layernorm",
    qkv=("self_attention.query_key_value",),
    joined_by_head=True,
    out="self_attention.dense",
    norm2="post_attention_layernorm",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
)
QK_LAYERNORM = ("self_attn.q_layernorm", "self_attn.k_layernorm")


def _gpt(text: PreTrainedConfig, names: Names, act: str, **settings: Any) -> Spec:
    """A decoder of norms with a mean and of no gate."""
    usual: dict[str, Any] = {"norm": "layer", "gate": False, "activation": activation(act)}
    return decoder(text, names, **usual | settings)


def _inner(text: PreTrainedConfig) -> int:
    return int(getattr(text, "n_inner", None) or getattr(text, "intermediate_size", None) or 4 * text.hidden_size)


def _gpt2(text: PreTrainedConfig) -> Spec:
    refuse(text, add_cross_attention="attention to another sequence")
    if text.scale_attn_by_inverse_layer_idx or not text.scale_attn_weights:
        raise Unavailable("the engine has no scale of scores of a layer's own (config.json scale_attn_*)")
    names, arch = replace(GPT2, transposed=True), architecture(text, intermediate=_inner(text))
    return _gpt(text, names, text.activation_function, positions="learned", arch=arch)


def _gpt_neo(text: PreTrainedConfig) -> Spec:
    """Scores are not scaled, and every other layer has a window."""
    names = replace(
        GPT2,
        qkv=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
        out="attn.attention.out_proj",
    )
    everything = frozenset(number for number, kind in enumerate(text.attention_layers) if kind == "global")
    settings = {"arch": architecture(text, intermediate=_inner(text)), "attention_scale": 1.0}
    window = {"window": text.window_size, "unwindowed": everything}
    return _gpt(text, names, text.activation_function, positions="learned", **settings, **window)


def _gptj(text: PreTrainedConfig) -> Spec:
    names = replace(
        GPT2,
        positions=None,
        qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        neighbours_turn=True,
        out="attn.out_proj",
        norm2=None,
        up=("mlp.fc_in",),
        down="mlp.fc_out",
        head_bias=True,
    )
    width = text.rotary_dim or text.hidden_size // text.num_attention_heads
    frequencies = tuple(10000.0 ** (-each / width) for each in range(0, width, 2))
    settings = {"arch": architecture(text, intermediate=_inner(text)), "frequencies": frequencies}
    return _gpt(text, names, text.activation_function, parallel=True, **settings)


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
    return turned(_gpt(text, names, text.hidden_act, parallel=text.use_parallel_residual), text)


def _falcon(text: PreTrainedConfig) -> Spec:
    """Queries, keys and values come from one matrix, by key-value heads; both halves read a norm or one each."""
    refuse(text, alibi="distances that count in Falcon's own scale")
    names = replace(BLOOM, embedding_norm=None, norm2=None if text.parallel_attn else "post_attention_layernorm")
    kv_heads = 1 if text.multi_query else text.num_attention_heads
    if text.new_decoder_architecture:
        kv_heads = text.num_kv_heads
        if text.num_ln_in_parallel_attn in (None, 2):
            names = replace(names, norm1="ln_attn", norm2="ln_mlp")
    arch = architecture(text, kv_heads=kv_heads, intermediate=text.ffn_hidden_size)
    parallel = bool(text.parallel_attn or text.new_decoder_architecture)
    return turned(_gpt(text, names, text.activation, arch=arch, parallel=parallel), text)


def _phi(text: PreTrainedConfig) -> Spec:
    names = with_qk_norm(LLAMA, *QK_LAYERNORM) if text.qk_layernorm else LLAMA
    names = replace(
        names,
        out="self_attn.dense",
        norm2=None,
        up=("mlp.fc1",),
        down="mlp.fc2",
        norm="model.final_layernorm",
        head_bias=True,
    )
    return turned(_gpt(text, names, text.hidden_act, parallel=True), text)


def _stablelm(text: PreTrainedConfig) -> Spec:
    parallel = bool(text.use_parallel_residual)
    names = replace(LLAMA, norm2=None) if parallel else LLAMA
    if text.qk_layernorm:
        names = replace(with_qk_norm(names, *QK_LAYERNORM), norms_by_head=True)
    return turned(_gpt(text, names, text.hidden_act, gate=True, parallel=parallel), text)


def _starcoder2(text: PreTrainedConfig) -> Spec:
    names = replace(LLAMA, up=("mlp.c_fc",), down="mlp.c_proj")
    return windowed(turned(_gpt(text, names, text.hidden_act), text), text)


def _nemotron(text: PreTrainedConfig) -> Spec:
    names = replace(LLAMA, up=("mlp.up_proj",), norm_offset=1.0)
    return turned(_gpt(text, names, text.hidden_act), text)


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
    arch = architecture(text, intermediate=text.ffn_dim)
    return _gpt(text, names, text.activation_function, arch=arch, positions="learned")


FAMILIES: dict[object, Callable[[PreTrainedConfig], Spec]] = {
    "falcon": _falcon,
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gpt_neox": _gpt_neox,
    "gptj": _gptj,
    "nemotron": _nemotron,
    "opt": _opt,
    "phi": _phi,
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
}
