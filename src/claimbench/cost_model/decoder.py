"""The numbers of a decoder that its cost depends on, whether they follow from a formula or were counted."""

from __future__ import annotations

from typing import Protocol


class Decoder(Protocol):
    """The numbers that a decoder's cost depends on."""

    @property
    def layers(self) -> int: ...

    @property
    def hidden(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def context(self) -> int | None: ...

    @property
    def weights(self) -> int:
        """Parameters, a shared one once."""

    @property
    def step_weights(self) -> float:
        """Parameters that one decode step must read at least."""

    @property
    def looked_up(self) -> int:
        """Parameters of which a step reads a row a token: no head is among them."""

    def expected_weights(self, tokens: int) -> float:
        """Parameters that one pass over `tokens` tokens will read, for forecasts: no bound."""

    @property
    def in_layers(self) -> int:
        """Parameters of the layers."""

    @property
    def matrices(self) -> int:
        """Of these, those in matrices: what is multiplied, and what quantization makes smaller."""

    @property
    def read_matrices(self) -> float:
        """And of these, what one token passes through."""

    @property
    def expert_matrices(self) -> int:
        """Of the matrices, those of a mixture's experts."""

    @property
    def read_expert_matrices(self) -> float:
        """And of these, what one token passes through."""

    @property
    def embedding_weights(self) -> int: ...

    @property
    def largest(self) -> int:
        """Values of the largest tensor."""

    @property
    def widest(self) -> int:
        """Values that a token needs beside the residual stream, at the widest point of a layer."""

    def kept_values(self, length: int) -> float:
        """Values that are kept between steps for one row of `length` tokens."""

    def attention_products(self, new: int, past: int) -> float:
        """Multiply-adds of attention in one row of a pass over `new` tokens behind `past` cached ones."""
