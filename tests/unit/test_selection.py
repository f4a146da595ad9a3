"""Gains that were chosen among many: few of their intervals miss, and nothing is named for luck alone."""

from __future__ import annotations

import math
from functools import partial
from statistics import NormalDist, mean

import numpy as np
import pytest

from claimbench.judging.selection import selected
from claimbench.schema.interval import Interval

NORMAL = NormalDist()
SPREAD = 0.05


def interval(log: float, error: float) -> Interval:
    half = NORMAL.inv_cdf(1 - error / 2) * SPREAD
    return Interval(math.exp(log), math.exp(log - half), math.exp(log + half), 3)


def misses(truth: list[float], seed: int, naive: bool) -> float:
    """The share of the chosen ratios whose interval does not hold the truth; 0 where none is chosen."""
    seen = np.random.default_rng(seed).normal(truth, SPREAD)
    ratios = [partial(interval, log) for log in seen]
    if naive:
        chosen, error = {n for n, ratio in enumerate(ratios) if ratio(0.05).low > 1.02}, 0.05  # type: ignore[operator]
    else:
        chosen, error = selected(ratios, 1.02)
    outside = 0
    for number in chosen:
        low, high = ratios[number](error).ends or (0.0, 0.0)
        outside += not low <= math.exp(truth[number]) <= high
    return outside / len(chosen) if chosen else 0.0


@pytest.mark.parametrize("paying", [0, 4, 20])
def test_of_what_is_shown_at_most_one_in_twenty_misses(paying: int) -> None:
    truth = [0.12] * paying + [0.0] * (40 - paying)
    found = mean(misses(truth, seed, naive=False) for seed in range(1000))
    assert found < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)
    assert mean(misses(truth, seed, naive=True) for seed in range(300)) > found


def test_where_all_pay_surely_nothing_is_widened() -> None:
    assert selected([partial(interval, 1.0)] * 7, 1.02) == (set(range(7)), pytest.approx(0.05))


def test_one_of_many_is_shown_wider() -> None:
    chosen, error = selected([partial(interval, 1.0), *[partial(interval, 0.0)] * 9], 1.02)
    assert (chosen, error) == ({0}, pytest.approx(0.005))


def test_what_has_no_interval_is_never_named() -> None:
    assert selected([lambda _: None, lambda _: Interval(9.0)], 1.02) == (set(), 0.05)
    assert selected([], 1.02) == (set(), 0.05)


def test_a_gain_that_clears_the_least_only_by_luck_is_not_named() -> None:
    lucky = math.log(1.02) + 2.1 * SPREAD  # above it at 5 %, and not at a fortieth of that
    ratios = [partial(interval, lucky), *[partial(interval, 0.0)] * 39]
    assert (interval(lucky, 0.05).low or 0) > 1.02
    assert selected(ratios, 1.02)[0] == set()
