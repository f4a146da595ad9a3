"""Names and shapes of every tensor of an architecture, as Transformers spells them in a causal language model.

Matrices are (outputs, inputs). A tied head is the embedding and has no tensor of its own. The same table says what a
`random://` checkpoint is made of and what any other checkpoint must hold, no more and no less.
"""

from __future__ import annotations

import re

from claimbench.cost_model.cost import Architecture

Shape = tuple[int, ...]

IGNORED = re.compile(r"\.(attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq)$")
"""Buffers that old checkpoints store and that follow from the config."""

_PREFIX = {"llama": "model.", "gpt_bigcode": "transformer.", "bloom": "transformer."}


def shapes(arch: Architecture) -> dict[str, Shape]:
    """Every tensor by name, in the order in which a pass reads them."""
    table = {"llama": _llama, "gpt_bigcode": _gpt_bigcode, "bloom": _bloom}[arch.family](arch)
    if not arch.tied:
        table["lm_head.weight"] = (arch.vocabulary, arch.hidden)
    return table


def full_name(arch: Architecture, name: str) -> str:
    """`name` with the prefix of the causal language model, which checkpoints of the bare decoder lack."""
    prefix = _PREFIX[arch.family]
    return name if name == "lm_head.weight" or name.startswith(prefix) else prefix + name


def _llama(arch: Architecture) -> dict[str, Shape]:
    hidden, inner = arch.hidden, arch.intermediate
    queries, keys = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    table: dict[str, Shape] = {"model.embed_tokens.weight": (arch.vocabulary, hidden)}
    for layer in range(arch.layers):
        at = f"model.layers.{layer}"
        table[f"{at}.input_layernorm.weight"] = (hidden,)
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            table |= _matrix(f"{at}.self_attn.{name}_proj", rows, hidden, bias="qkv" in arch.biases)
        if arch.qk_norm:
            table |= {f"{at}.self_attn.{name}_norm.weight": (arch.head_dim,) for name in ("q", "k")}
        table |= _matrix(f"{at}.self_attn.o_proj", hidden, queries, bias="out" in arch.biases)
        table[f"{at}.post_attention_layernorm.weight"] = (hidden,)
        for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            table |= _matrix(f"{at}.mlp.{name}_proj", rows, columns, bias="mlp" in arch.biases)
    return table | {"model.norm.weight": (hidden,)}


def _matrix(name: str, *shape: int, bias: bool) -> dict[str, Shape]:
    return _with_bias(name, *shape) if bias else {f"{name}.weight": shape}


def _with_bias(name: str, *shape: int) -> dict[str, Shape]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _gpt_bigcode(arch: Architecture) -> dict[str, Shape]:
    hidden, inner = arch.hidden, arch.intermediate
    queries_keys_values = (arch.heads + 2 * arch.kv_heads) * arch.head_dim
    table: dict[str, Shape] = {
        "transformer.wte.weight": (arch.vocabulary, hidden),
        "transformer.wpe.weight": (arch.context, hidden),
    }
    for layer in range(arch.layers):
        at = f"transformer.h.{layer}"
        table |= _with_bias(f"{at}.ln_1", hidden)
        table |= _with_bias(f"{at}.attn.c_attn", queries_keys_values, hidden)
        table |= _with_bias(f"{at}.attn.c_proj", hidden, hidden)
        table |= _with_bias(f"{at}.ln_2", hidden)
        table |= _with_bias(f"{at}.mlp.c_fc", inner, hidden)
        table |= _with_bias(f"{at}.mlp.c_proj", hidden, inner)
    return table | _with_bias("transformer.ln_f", hidden)


def _bloom(arch: Architecture) -> dict[str, Shape]:
    hidden, inner = arch.hidden, arch.intermediate
    table: dict[str, Shape] = {"transformer.word_embeddings.weight": (arch.vocabulary, hidden)}
    table |= _with_bias("transformer.word_embeddings_layernorm", hidden)
    for layer in range(arch.layers):
        at = f"transformer.h.{layer}"
        table |= _with_bias(f"{at}.input_layernorm", hidden)
        table |= _with_bias(f"{at}.self_attention.query_key_value", 3 * hidden, hidden)
        table |= _with_bias(f"{at}.self_attention.dense", hidden, hidden)
        table |= _with_bias(f"{at}.post_attention_layernorm", hidden)
        table |= _with_bias(f"{at}.mlp.dense_h_to_4h", inner, hidden)
        table |= _with_bias(f"{at}.mlp.dense_4h_to_h", hidden, inner)
    return table | _with_bias("transformer.ln_f", hidden)
