"""An estimate with its interval, and the samples that it is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Blocks = Sequence[Sequence[float]]
"""Samples of one cell's metric, by round; an empty round is a block that gave no number."""


class Interval(NamedTuple):
    """An estimate with its interval. One round cannot be repeated, so it has no interval: `low` and `high` are None."""

    estimate: float
    low: float | None = None
    high: float | None = None
    rounds: int = 1

    @property
    def ends(self) -> tuple[float, float] | None:
        """`low` and `high`, where there is an interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def scaled(self, factor: float) -> Interval:
        ends = self.ends
        low, high = (ends[0] * factor, ends[1] * factor) if ends else (None, None)
        return Interval(self.estimate * factor, low, high, self.rounds)
