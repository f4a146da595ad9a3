"""The numbers of a decoder that its cost depends on, counted from the model itself, whatever its architecture is.

A uniform dense decoder (cost_model/cost.py: `Architecture`) has the same properties from a formula.
"""

from __future__ import annotations

from pydantic import Field

from claimbench.schema.frozen import Frozen


def attended(new: int, past: int, window: int | None = None) -> float:
    """Pairs of a query and a key in one row of a pass: a token sees itself and all before it, or a window of that."""
    whole = new * past + new * (new + 1) / 2
    if window is None or past + new <= window:
        return whole
    full = max(0, min(new, window - past))  # queries that see all there is
    return full * past + full * (full + 1) / 2 + (new - full) * window


class KeptLayers(Frozen):
    """What some layers of one kind keep between steps, and what their attention costs. Numbers are of one layer."""

    layers: int = Field(ge=1)
    token_values: int = Field(default=0, ge=0, description="kept for each token")
    fixed_values: int = Field(default=0, ge=0, description="kept whatever the length: a state, a convolution's tail")
    window: int | None = Field(
        default=None, ge=1, description="tokens that a query sees, itself among them; absent: all"
    )
    query_values: int = Field(default=0, ge=0, description="products for each pair of a query and a key")

    def values(self, length: int) -> float:
        """Kept for one row of `length` tokens by all of these layers: of a window all but the next token's place."""
        kept = length if self.window is None else min(length, self.window - 1)
        return self.layers * (self.fixed_values + self.token_values * kept)


class Experts(Frozen):
    """Of a mixture: every token passes through `active` of `count` experts of a layer."""

    weights: int = Field(ge=0, description="of all experts of all layers")
    biases: int = Field(default=0, ge=0, description="of them, those outside matrices")
    count: int = Field(ge=1)
    active: int = Field(ge=1)

    @property
    def matrices(self) -> int:
        return self.weights - self.biases

    @property
    def idle_share(self) -> float:
        """Of the experts, those that one token does not pass through."""
        return 1 - min(1.0, self.active / self.count)

    @property
    def idle(self) -> float:
        """Weights that a pass need not read, at most."""
        return self.weights * self.idle_share


class StoredFormat(Frozen):
    """How a quantized checkpoint keeps its matrices; all other values are as wide as the model computes."""

    bits: float = Field(gt=0, description="of a value at least, scales of its group included where they are known")
    experts_alone: bool = Field(default=False, description="a mixture's experts are kept so, and nothing else")


FLOAT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Types that a loader turns into the one that it computes in."""


class StoredBytes(Frozen):
    """Bytes in the files of a quantized checkpoint, by type as safetensors spells it."""

    held: dict[str, int] = Field(description="of everything")
    read: dict[str, int] = Field(default={}, description="of them, those that every pass over text reads, or looks up")
    experts: dict[str, int] = Field(default={}, description="and those of the experts of a mixture")

    def all_held(self, value_bytes: float) -> float:
        """Of everything, where values that are not quantized have `value_bytes` each."""
        return _floats_as(self.held, value_bytes, widen=True)

    def least_read(self, value_bytes: float, share: float, looked_up: int) -> float:
        """By one step, of a mixture's experts a `share`, and of `looked_up` values in tables no more than a row."""
        table = looked_up * max((FLOAT_BYTES[dtype] for dtype in self.read if dtype in FLOAT_BYTES), default=0)
        read = _floats_as(self.read, value_bytes, widen=False)
        return max(0.0, read + share * _floats_as(self.experts, value_bytes, widen=False) - table)


def _floats_as(sizes: dict[str, int], value_bytes: float, widen: bool) -> float:
    """All of `sizes`, with floats in `value_bytes`; those that are narrower stay where they are not widened."""
    total = 0.0
    for dtype, size in sizes.items():
        ratio = value_bytes / FLOAT_BYTES.get(dtype, value_bytes)
        total += size * (ratio if widen else min(1.0, ratio))
    return total


class Card(Frozen):
    model_type: str
    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    context: int | None = Field(default=None, ge=1, description="longest sequence, in tokens; absent: not limited")
    weights: int = Field(ge=1, description="parameters, a shared one once")
    looked_up: int = Field(default=0, ge=0, description="of them, those read by row: an embedding that is not the head")
    towers: int = Field(default=0, ge=0, description="and those that a pass over text never reads: vision, audio")
    in_layers: int = Field(ge=0, description="those of the decoder's layers")
    matrices: int = Field(ge=0, description="and of these, those in matrices, experts among them")
    largest: int = Field(ge=1, description="values of the largest tensor")
    widest: int = Field(ge=0, description="values that a token needs beside the residual stream, at the widest point")
    experts: Experts | None = None
    stored: StoredFormat | None = Field(default=None, description="absent: the checkpoint is not quantized")
    shape: dict[str, int | bool | str | tuple[str, ...]] | None = Field(
        default=None, description="fields of cost_model's Architecture, where the model is one"
    )
    kept: tuple[KeptLayers, ...] | None = Field(
        default=(), description="between steps; null where it cannot be counted: bounds are without it"
    )
    quantized: str | None = Field(default=None, description="the method that its config names")
    stored_bytes: StoredBytes | None = Field(
        default=None, description="of a quantized model, where its files are known: exact, and `stored` is a bound"
    )

    @property
    def step_weights(self) -> float:
        """Parameters that one decode step must read at least: of a mixture's experts those of one token."""
        return self.weights - self.looked_up - self.towers - (self.experts.idle if self.experts else 0)

    def expected_weights(self, tokens: int) -> float:
        """Parameters that one pass over `tokens` tokens reads where a router takes each expert as often as any other.

        That all tokens miss an expert has the chance that one does, to the power of their number.
        """
        missed = self.experts.weights * self.experts.idle_share**tokens if self.experts else 0
        return self.weights - self.looked_up - self.towers - missed

    @property
    def read_matrices(self) -> float:
        """Of the layers' matrices, what one token passes through."""
        return self.matrices - (self.expert_matrices - self.read_expert_matrices)

    @property
    def expert_matrices(self) -> int:
        return self.experts.matrices if self.experts else 0

    @property
    def read_expert_matrices(self) -> float:
        return self.expert_matrices * (1 - self.experts.idle_share) if self.experts else 0

    @property
    def embedding_weights(self) -> int:
        return self.vocabulary * self.hidden

    def kept_values(self, length: int) -> float:
        """Of one row of `length` tokens, by all layers."""
        return sum(each.values(length) for each in self.kept or ())

    def attention_products(self, new: int, past: int) -> float:
        """Multiply-adds of queries with keys and of scores with values, in one row of a pass."""
        kept = self.kept or ()
        return sum(each.layers * each.query_values * attended(new, past, each.window) for each in kept)
