"""A workload on a model that is spread over devices: what forecasts and limits on paper are computed from."""

from __future__ import annotations

from typing import Literal

from claimbench.schema.cell import Frozen

Layout = Literal["pipeline", "tensor_parallel", "zero"]


class InferenceLoad(Frozen):
    """A workload on a model that is spread over devices, in the numbers that its cost depends on."""

    architecture: str
    layers: int | None = None
    """The first so many alone, where the model was cut."""
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
