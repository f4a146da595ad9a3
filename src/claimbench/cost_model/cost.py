"""What one pass of a decoder costs: parameters, bytes that must move, operations. Pure arithmetic.

A decoder is either an `Architecture`, whose numbers follow from a formula, or a `Card`, whose numbers were counted from
the model. Under `architectures/` lie the `config.json` of the documents' own models, read as data: they may be asked
about before anything is fetched, and random weights are drawn for them. Sources of the formulas: counting the tensors
of Transformers' own Llama, Mistral, GPT-BigCode and BLOOM modules, which the tests do.
"""

from __future__ import annotations

import json
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from claimbench.cost_model.decoder import Decoder
from claimbench.cost_model.weight_bytes import held_bytes, least_step_bytes
from claimbench.schema.card import attended
from claimbench.schema.cell import Checkpoint

ModelConfig = dict[str, Any]
"""A Transformers `config.json`, whose keys depend on the family of the model."""

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers are Llama's, biases and norms of queries and keys aside."""

FAMILIES = (*LLAMA_LIKE, "gpt_bigcode", "bloom")
"""Model types that there is a formula for."""

ARCHITECTURES = Path(__file__).parent / "architectures"


class Architecture(NamedTuple):
    """A dense decoder all of whose layers are alike and attend to everything."""

    family: str
    """`llama` (`LLAMA_LIKE`), `gpt_bigcode` or `bloom`."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context: int
    """Longest sequence, in tokens."""
    tied: bool
    """The output head is the embedding."""
    biases: tuple[str, ...] = ()
    """Of the Llama family's matrices, those with biases: `qkv`, `out`, `mlp`."""
    qk_norm: bool = False
    """Each query and key is normalised, by a norm of one head's width."""

    def kept(self, layers: int | None) -> Architecture:
        """With its first `layers` layers alone; whole where it has no more, or without a number."""
        return self if layers is None else self._replace(layers=min(layers, self.layers))

    @property
    def embedding_weights(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer's matrices: what is multiplied, and what quantization makes smaller."""
        attention_in = self.hidden * (self.heads + 2 * self.kv_heads) * self.head_dim
        attention_out = self.heads * self.head_dim * self.hidden
        feed_forward = (3 if self.family == "llama" else 2) * self.hidden * self.intermediate
        return attention_in + attention_out + feed_forward

    @property
    def layer_weights(self) -> int:
        """Parameters of one layer, norms and biases included."""
        if self.family == "llama":
            widths = {
                "qkv": (self.heads + 2 * self.kv_heads) * self.head_dim,
                "out": self.hidden,
                "mlp": 2 * self.intermediate + self.hidden,
            }
            norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
            return self.layer_matrices + norms + sum(widths[name] for name in self.biases)
        biases = (self.heads + 2 * self.kv_heads) * self.head_dim + self.hidden + self.intermediate + self.hidden
        return self.layer_matrices + biases + 4 * self.hidden

    @property
    def other_weights(self) -> int:
        """Embedding, positions, final norm and, where it is not tied, the head."""
        norms = {"llama": self.hidden, "gpt_bigcode": 2 * self.hidden, "bloom": 4 * self.hidden}[self.family]
        return self.embedding_weights * (1 if self.tied else 2) + self.position_weights + norms

    @property
    def position_weights(self) -> int:
        """The table of learned positions, where the family has one."""
        return self.context * self.hidden if self.family == "gpt_bigcode" else 0

    @property
    def weights(self) -> int:
        return self.layers * self.layer_weights + self.other_weights

    @property
    def step_weights(self) -> int:
        """Parameters that one decode step must read: all but what is looked up by row, unless it is also the head."""
        return self.weights - self.looked_up

    @property
    def looked_up(self) -> int:
        return self.position_weights + (0 if self.tied else self.embedding_weights)

    def expected_weights(self, tokens: int) -> int:
        return self.step_weights

    @property
    def in_layers(self) -> int:
        return self.layers * self.layer_weights

    @property
    def matrices(self) -> int:
        return self.layers * self.layer_matrices

    @property
    def read_matrices(self) -> int:
        return self.matrices

    @property
    def expert_matrices(self) -> int:
        return 0

    @property
    def read_expert_matrices(self) -> int:
        return 0

    @property
    def largest(self) -> int:
        """Values of the largest tensor."""
        return max(self.embedding_weights, self.hidden * self.intermediate)

    @property
    def widest(self) -> int:
        """Projections of attention (scores are not kept: a fused kernel is assumed), or the feed-forward's own."""
        attention = (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        return max(attention, (3 if self.family == "llama" else 2) * self.intermediate)

    def kept_values(self, length: int) -> int:
        return 2 * self.layers * length * self.kv_heads * self.head_dim

    def attention_products(self, new: int, past: int) -> float:
        return self.layers * 2 * attended(new, past) * self.heads * self.head_dim


def parse(config: ModelConfig) -> Architecture:
    """The architecture of a Transformers `config.json`.

    Raises:
        KeyError: the model type is none of the families, or a key is missing.
    """
    kind = config["model_type"]
    if kind in LLAMA_LIKE:
        heads = config["num_attention_heads"]
        return Architecture(
            family="llama",
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            context=config["max_position_embeddings"],
            tied=bool(config.get("tie_word_embeddings", False)),
            biases=_biases(config),
            qk_norm=kind == "qwen3",
        )
    if kind == "gpt_bigcode":
        heads = config["n_head"]
        return Architecture(
            family="gpt_bigcode",
            layers=config["n_layer"],
            hidden=config["n_embd"],
            heads=heads,
            kv_heads=1 if config.get("multi_query", True) else heads,
            head_dim=config["n_embd"] // heads,
            intermediate=config.get("n_inner") or 4 * config["n_embd"],
            vocabulary=config["vocab_size"],
            context=config["n_positions"],
            tied=bool(config.get("tie_word_embeddings", True)),
        )
    if kind == "bloom":
        heads = config["n_head"]
        return Architecture(
            family="bloom",
            layers=config["n_layer"],
            hidden=config["hidden_size"],
            heads=heads,
            kv_heads=heads,
            head_dim=config["hidden_size"] // heads,
            intermediate=4 * config["hidden_size"],
            vocabulary=config["vocab_size"],
            context=config.get("seq_length", 2048),
            tied=bool(config.get("tie_word_embeddings", True)),
        )
    raise KeyError(f"model_type {kind!r}: expected one of {', '.join(FAMILIES)}")


def _biases(config: ModelConfig) -> tuple[str, ...]:
    if config["model_type"] == "qwen2":
        return ("qkv",)
    of_attention = ("qkv", "out") if config.get("attention_bias") else ()
    return (*of_attention, *(("mlp",) if config.get("mlp_bias") else ()))


@cache
def shape_names() -> tuple[str, ...]:
    """Configs with a name, of whatever model Transformers knows."""
    return tuple(sorted(path.stem for path in ARCHITECTURES.glob("*.json")))


@cache
def architecture_names() -> tuple[str, ...]:
    """Those whose numbers follow from a formula; the others' are counted from the model."""
    return tuple(name for name in shape_names() if config(name)["model_type"] in FAMILIES)


@cache
def config(name: str) -> ModelConfig:
    """The `config.json` of the shape `name`.

    Raises:
        KeyError: there is no such file.
    """
    if name not in shape_names():
        raise KeyError(name)
    value: ModelConfig = json.loads((ARCHITECTURES / f"{name}.json").read_text(encoding="utf-8"))
    return value


@cache
def architecture(name: str) -> Architecture:
    return parse(config(name))


def kv_bytes(model: Decoder, batch: int, length: int, bytes_per_value: float) -> float:
    """Bytes that are kept between steps of `batch` rows of `length` tokens: keys and values, or a state."""
    return batch * model.kept_values(length) * bytes_per_value


def step_bytes(model: Decoder, batch: int, length: int, bytes_per_value: float) -> float:
    """Bytes that one decode step must read at least: weights once for the batch, and every row's keys and values."""
    return least_step_bytes(model, bytes_per_value) + kv_bytes(model, batch, length, bytes_per_value)


def memory_of(model: Decoder, batch: int, length: int, bytes_per_value: float) -> dict[str, int]:
    """What a system holds and reads that does not say it itself."""
    return {
        "weights": int(held_bytes(model, bytes_per_value)),
        "step_weights": int(least_step_bytes(model, bytes_per_value)),
        "kv_cache": int(kv_bytes(model, batch, length, bytes_per_value)),
    }


def activation_bytes(model: Decoder, batch: int, new: int, bytes_per_value: float) -> float:
    """Bytes that one pass over `new` tokens a row needs beside weights and cache, at its widest point.

    That is the residual stream and its norm with either the projections of attention or the feed-forward's
    intermediates, and float32 logits of the last position.
    """
    return batch * (new * (2 * model.hidden + model.widest) * bytes_per_value + 4 * model.vocabulary)


def peak_bytes(model: Decoder, batch: int, length: int, bytes_per_value: float) -> float:
    """Bytes to hold at the worst moment of a generation to `length` tokens, were all of it a prompt."""
    held = held_bytes(model, bytes_per_value) + kv_bytes(model, batch, length, bytes_per_value)
    return held + activation_bytes(model, batch, length, bytes_per_value)


def pass_flops(model: Decoder, batch: int, new: int, past: int, heads_at: int | None = None) -> float:
    """Operations (2 per multiply-add) of one pass over `new` tokens a row behind `past` cached ones.

    `heads_at` is the number of positions a row at which the output head is computed; all of them by default.
    """
    head = model.embedding_weights * (new if heads_at is None else heads_at) / new
    return 2 * batch * (new * (model.read_matrices + head) + model.attention_products(new, past))


def device_share(arch: Architecture, devices: int) -> Architecture:
    """What the fullest of `devices` tensor-parallel devices holds and computes, as an architecture of its own.

    Query heads and the feed-forward's width are split into equal parts. Key-value heads and the vocabulary's rows need
    not divide, and no head or row is ever cut, so the fullest device has the quotient rounded up: one key-value head
    where devices outnumber them (each has the head that its queries read), and of the vocabulary what the first device
    has, whose share is larger than the last one's. That is the least that the fullest device can hold, so it is a lower
    bound on memory for every way to cut, and exactly what `tp_partition` gives to its rank 0.

    The residual stream with its norms, the biases that are added to it and the table of positions are on every device.

    Raises:
        ValueError: heads or the feed-forward's width cannot be split into so many equal parts.
    """
    for name, size in (("heads", arch.heads), ("intermediate", arch.intermediate)):
        if size % devices:
            raise ValueError(f"{name}: expected a multiple of {devices} devices, got {size}")
    return arch._replace(
        heads=arch.heads // devices,
        kv_heads=ceil(arch.kv_heads / devices),
        intermediate=arch.intermediate // devices,
        vocabulary=ceil(arch.vocabulary / devices),
    )


def decoder_of(checkpoint: Checkpoint) -> Decoder | None:
    """What a checkpoint's cost is computed from; None: nothing is known of it before it is fetched."""
    card = checkpoint.card
    return card if card is not None and card.quantized else architecture_of(checkpoint) or card


def architecture_of(checkpoint: Checkpoint) -> Architecture | None:
    """The architecture that a checkpoint declares or turned out to be, with the layers that it keeps.

    None where nothing is known of it, and where its layers are not alike or it is of another family.

    Raises:
        KeyError: there is none of the name that it declares.
    """
    if checkpoint.architecture is not None and config(checkpoint.architecture)["model_type"] in FAMILIES:
        return architecture(checkpoint.architecture).kept(checkpoint.keep_layers)
    if checkpoint.card is None or checkpoint.card.shape is None:
        return None
    return Architecture(**checkpoint.card.shape)  # type: ignore[arg-type]
