"""Bytes of a decoder's weights: of all of them, and of those that a pass reads. Pure arithmetic."""

from __future__ import annotations

from typing import NamedTuple

from claimbench.cost_model.decoder import Decoder
from claimbench.schema.card import Card


class Precision(NamedTuple):
    """In how many bytes and bits numbers are kept. Norms, biases, embedding, head and positions are never quantized."""

    value_bytes: float = 4
    """Of an activation, a cached key or value, and every weight that is not quantized."""
    layer_bits: float | None = None
    """Per weight of the layers' matrices, scales and zero points of its group included; None: not quantized."""
    experts_alone: bool = False
    """Of the matrices, only those of a mixture's experts are quantized."""


def stored_precision(model: Decoder, value_bytes: float) -> Precision:
    """That of a model as its checkpoint is stored, whose other values are computed with `value_bytes` each."""
    stored = model.stored if isinstance(model, Card) else None
    if stored is None:
        return Precision(value_bytes)
    return Precision(value_bytes, min(stored.bits, 8 * value_bytes), stored.experts_alone)


def held_bytes(model: Decoder, value_bytes: float) -> float:
    """Bytes of all weights as they are stored, where those that are not quantized have `value_bytes` each."""
    if isinstance(model, Card) and model.stored_bytes is not None:
        return model.stored_bytes.all_held(value_bytes)
    return held_weight_bytes(model, stored_precision(model, value_bytes))


def least_step_bytes(model: Decoder, value_bytes: float) -> float:
    """And of those that one decode step must read at least."""
    if isinstance(model, Card) and model.stored_bytes is not None:
        share = 1 - model.experts.idle_share if model.experts else 1.0
        return model.stored_bytes.least_read(value_bytes, share, model.looked_up)
    return read_weight_bytes(model, stored_precision(model, value_bytes))


def held_weight_bytes(model: Decoder, precision: Precision) -> float:
    """Bytes of all weights."""
    quantized = model.expert_matrices if precision.experts_alone else model.matrices
    return _weight_bytes(quantized, model.weights - quantized, precision)


def read_weight_bytes(model: Decoder, precision: Precision) -> float:
    """Bytes of weights that one pass must read at least."""
    quantized = model.read_expert_matrices if precision.experts_alone else model.read_matrices
    return _weight_bytes(quantized, model.step_weights - quantized, precision)


def expected_weight_bytes(model: Decoder, tokens: int, precision: Precision) -> float:
    """Bytes of weights that one pass over `tokens` tokens will read, for forecasts: no bound."""
    more = model.expected_weights(tokens) - model.step_weights  # of experts
    return read_weight_bytes(model, precision) + _weight_bytes(more, 0, precision)


def _weight_bytes(matrices: float, others: float, precision: Precision) -> float:
    layer_bits = 8 * precision.value_bytes if precision.layer_bits is None else precision.layer_bits
    return matrices * layer_bits / 8 + others * precision.value_bytes
