"""A workload on a model that is spread over devices: what forecasts and limits on paper are computed from."""

from __future__ import annotations

from typing import Literal

from claimbench.schema.card import Card
from claimbench.schema.frozen import Frozen

Layout = Literal["pipeline", "tensor_parallel", "zero"]


class InferenceLoad(Frozen):
    """A workload on a model that is spread over devices, in the numbers that its cost depends on."""

    architecture: str | None = None
    layers: int | None = None
    """The first so many alone, where the model was cut."""
    card: Card | None = None
    """The model's numbers, where it is none of the architectures with a name."""
    layout: Layout
    devices: int
    value_bytes: float
    """Of an activation, a cached key or value, and every weight that is not quantized."""
    layer_bits: float | None = None
    """Per weight of the layers' matrices, where they are quantized."""
    batch: int
    prompt_tokens: int
    new_tokens: int

    @property
    def length(self) -> int:
        return self.prompt_tokens + self.new_tokens
