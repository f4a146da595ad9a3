"""How what runs here departs from what a document measured, one thing at a time."""

from __future__ import annotations

from typing import Literal

from claimbench.schema.frozen import Frozen

Of = Literal[
    "model",
    "weights",
    "draft",
    "device",
    "devices",
    "streams",
    "system",
    "options",
    "versions",
    "dtype",
    "attention",
    "batch",
    "prompt",
    "prompt tokens",
    "shortest row",
    "new tokens",
    "cache length",
    "warm-up",
    "samples",
    "statistic",
]

OF_THE_RUN = ("device", "weights", "prompt", "versions", "warm-up", "samples", "statistic")
"""Of these a figure stays comparable: the work is the same, or the check asks for its hardware by itself."""


class Deviation(Frozen):
    of: Of
    here: str
    documented: str

    @property
    def text(self) -> str:
        return f"{self.of}: {self.here} in place of {self.documented}"

    @property
    def is_other_work(self) -> bool:
        """Whether what ran is not the work that the document's figure is of."""
        return self.of not in OF_THE_RUN
