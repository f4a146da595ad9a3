"""An estimate with its interval, and the samples that it is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Blocks = Sequence[Sequence[float]]
"""Samples of one cell's metric, by round; an empty round is a block that gave no number."""


class Interval(NamedTuple):
    """An estimate with its interval. One round cannot be repeated, so it has no interval: `low` and `high` are None."""

    estimate: float
    low: float | None
    high: float | None
    rounds: int
