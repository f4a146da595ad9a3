"""What one pass of an architecture costs: parameters, bytes that must move, operations. Pure arithmetic.

An architecture is a Transformers `config.json` under `architectures/`, read as data. Sources of the formulas: counting
the tensors of Transformers' own Llama, Mistral, GPT-BigCode and BLOOM modules, which the tests do.
"""

from __future__ import annotations

import json
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from claimbench.schema.cell import Cell, Checkpoint

ModelConfig = dict[str, Any]
"""A Transformers `config.json`, whose keys depend on the family of the model."""

ARCHITECTURES = Path(__file__).parent / "architectures"


class Architecture(NamedTuple):
    """The numbers of a decoder that its cost depends on."""

    family: str
    """`llama` (Llama, Mistral), `gpt_bigcode` or `bloom`."""
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
            return self.layer_matrices + 2 * self.hidden
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
        return self.weights - self.position_weights - (0 if self.tied else self.embedding_weights)


def parse(config: ModelConfig) -> Architecture:
    """The architecture of a Transformers `config.json`.

    Raises:
        KeyError: the model type is none of the families, or a key is missing.
    """
    kind = config["model_type"]
    if kind in ("llama", "mistral"):
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
    raise KeyError(f"model_type {kind!r}: expected llama, mistral, gpt_bigcode or bloom")


@cache
def architecture_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in ARCHITECTURES.glob("*.json")))


@cache
def config(name: str) -> ModelConfig:
    """The `config.json` of architecture `name`.

    Raises:
        KeyError: there is no such file.
    """
    if name not in architecture_names():
        raise KeyError(name)
    value: ModelConfig = json.loads((ARCHITECTURES / f"{name}.json").read_text(encoding="utf-8"))
    return value


@cache
def architecture(name: str) -> Architecture:
    return parse(config(name))


def kv_bytes(arch: Architecture, batch: int, length: int, bytes_per_value: float) -> float:
    """Bytes of keys and values of `batch` rows of `length` tokens."""
    return 2 * arch.layers * batch * length * arch.kv_heads * arch.head_dim * bytes_per_value


def step_bytes(arch: Architecture, batch: int, length: int, bytes_per_value: float) -> float:
    """Bytes that one decode step must read at least: weights once for the batch, and every row's keys and values."""
    return arch.step_weights * bytes_per_value + kv_bytes(arch, batch, length, bytes_per_value)


def activation_bytes(arch: Architecture, batch: int, new: int, bytes_per_value: float) -> float:
    """Bytes that one pass over `new` tokens a row needs beside weights and cache, at its widest point.

    That is the residual stream and its norm with either the projections of attention (scores are not kept: a fused
    kernel is assumed) or the feed-forward's intermediates, and float32 logits of the last position.
    """
    attention = (2 * arch.heads + 2 * arch.kv_heads) * arch.head_dim
    widest = max(attention, (3 if arch.family == "llama" else 2) * arch.intermediate)
    return batch * (new * (2 * arch.hidden + widest) * bytes_per_value + 4 * arch.vocabulary)


def peak_bytes(arch: Architecture, batch: int, length: int, bytes_per_value: float) -> float:
    """Bytes to hold at the worst moment of a generation to `length` tokens, were all of it a prompt."""
    held = arch.weights * bytes_per_value + kv_bytes(arch, batch, length, bytes_per_value)
    return held + activation_bytes(arch, batch, length, bytes_per_value)


def pass_flops(arch: Architecture, batch: int, new: int, past: int, heads_at: int | None = None) -> float:
    """Operations (2 per multiply-add) of one pass over `new` tokens a row behind `past` cached ones.

    `heads_at` is the number of positions a row at which the output head is computed; all of them by default.
    """
    matrices = arch.layers * arch.layer_matrices
    head = arch.embedding_weights * (new if heads_at is None else heads_at) / new
    attended = new * past + new * (new + 1) / 2
    attention = arch.layers * 2 * attended * arch.heads * arch.head_dim
    return 2 * batch * (new * (matrices + head) + attention)


class Precision(NamedTuple):
    """In how many bytes and bits numbers are kept. Norms, biases, embedding, head and positions are never quantized."""

    value_bytes: float = 4
    """Of an activation, a cached key or value, and every weight that is not quantized."""
    layer_bits: float | None = None
    """Per weight of the layers' matrices, scales and zero points of its group included; None: not quantized."""


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


def held_weight_bytes(arch: Architecture, precision: Precision) -> float:
    """Bytes of all weights."""
    looked_up = arch.weights - arch.step_weights
    return read_weight_bytes(arch, precision) + looked_up * precision.value_bytes


def read_weight_bytes(arch: Architecture, precision: Precision) -> float:
    """Bytes of weights that one pass must read: all but what is looked up by row."""
    wide = 8 * precision.value_bytes
    matrices = arch.layers * arch.layer_matrices
    layer_bits = wide if precision.layer_bits is None else precision.layer_bits
    return (matrices * layer_bits + (arch.step_weights - matrices) * wide) / 8


def checkpoint_architecture(checkpoint: Checkpoint) -> Architecture:
    """The architecture that a checkpoint declares, with the layers that it keeps."""
    return architecture(checkpoint.architecture).kept(checkpoint.keep_layers)


def architecture_of(cell: Cell) -> Architecture:
    return checkpoint_architecture(cell.checkpoint)
