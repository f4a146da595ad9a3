"""Intervals over blocks: how far a number would move if the whole experiment were done again.

Samples inside one process share its memory layout, its compiled code and its neighbours, so they are not independent;
blocks (fresh processes, interleaved in rounds) are. All intervals here come from one hierarchical bootstrap on the log
scale: draw rounds with replacement, then samples within each drawn block (Kalibera and Jones, 2013). Blocks of two
cells are paired by round, so a slow minute that hits both cancels.

A percentile bootstrap of few values is too narrow, at three blocks by more than half. It is widened on the log scale by
sqrt(n / (n - 1)) * t_{n-1} / z, the correction for narrowness of Hesterberg (2015, "What teachers should know about
the bootstrap"), which turns the interval into a t interval where the data are normal. Where blocks differ by nothing
but the noise inside them, that noise is counted at both levels and the interval is wider than it need be: it errs
towards `undecided`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from claimbench.schema.interval import Blocks, Interval

Floats = NDArray[np.float64]


def ratio_interval(
    of: Blocks, to: Blocks, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0, widen: bool = True
) -> Interval | None:
    """The ratio of two cells' metric over the rounds that both have; None if they share none.

    The estimate is the geometric mean over rounds of median(of) / median(to). `widen=False` leaves the correction for
    few blocks out; it is there for the tests that show why it is needed.

    Raises:
        ValueError: a value is not positive, so a ratio means nothing.
    """
    return _log_contrast([of, to], [1.0, -1.0], confidence, resamples, seed, widen, np.exp)


def gain_interval(
    of: Blocks, to: Blocks, than_of: Blocks, than_to: Blocks, *, confidence: float = 0.95, seed: int = 0
) -> Interval | None:
    """(of / to) / (than_of / than_to) over the rounds that all four have: how much more is gained here than there.

    Raises:
        ValueError: a value is not positive.
    """
    return _log_contrast([of, to, than_of, than_to], [1.0, -1.0, -1.0, 1.0], confidence, 2000, seed, True, np.exp)


def interval(samples: Blocks, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval | None:
    """One cell's metric over its blocks; None if no block has a number.

    The estimate is the geometric mean of the blocks' medians. Where a value is zero or negative it is their mean, and
    the interval is on the linear scale.
    """
    if all(value > 0 for block in samples for value in block):
        return _log_contrast([samples], [1.0], confidence, resamples, seed, True, np.exp)
    return _contrast([samples], [1.0], confidence, resamples, seed, True, _same, _same)


def exponent_interval(
    curve: Sequence[tuple[float, Blocks]],
    to: Sequence[tuple[float, Blocks]] | None = None,
    *,
    groups: Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """The exponent k of metric ~ x^k, by least squares on the log-log scale; with `to`, of the ratio of two curves.

    A curve is a list of (x, blocks); `to` has the same x in the same order. Points of different `groups` have levels of
    their own and share the exponent. None if no round is common to all points.

    Raises:
        ValueError: no group has two different x, an x or a value is not positive, or the curves have different x.
    """
    xs = [x for x, _ in curve]
    if to is not None and [x for x, _ in to] != xs:
        raise ValueError(f"the two curves have different points: {xs} and {[x for x, _ in to]}")
    weights = slope_weights(xs, groups if groups is not None else [None] * len(xs))
    series = [blocks for _, blocks in curve]
    if to is not None:
        series += [blocks for _, blocks in to]
        weights = [*weights, *(-weight for weight in weights)]
    return _log_contrast(series, weights, confidence, resamples, seed, True, _same)


def slope_weights(xs: Sequence[float], groups: Sequence[object]) -> list[float]:
    """Weights w with slope = sum of w * log(y): least squares with one intercept per group."""
    if any(x <= 0 for x in xs):
        raise ValueError(f"an exponent needs positive values of x, got {list(xs)}")
    logs = [math.log(x) for x in xs]
    centred = []
    for log, group in zip(logs, groups, strict=True):
        peers = [other for other, peer in zip(logs, groups, strict=True) if peer == group]
        centred.append(log - sum(peers) / len(peers))
    spread = sum(value**2 for value in centred)
    if spread < 1e-12:
        raise ValueError(f"an exponent needs at least two different values of x, got {list(xs)}")
    return [value / spread for value in centred]


def _same(values: Floats) -> Floats:
    return values


def _log_contrast(
    series: Sequence[Blocks],
    weights: Sequence[float],
    confidence: float,
    resamples: int,
    seed: int,
    widen: bool,
    back: Callable[[Floats], Floats],
) -> Interval | None:
    if any(value <= 0 for blocks in series for block in blocks for value in block):
        raise ValueError("expected positive values: the logarithm of zero does not exist")
    return _contrast(series, weights, confidence, resamples, seed, widen, np.log, back)


def _contrast(
    series: Sequence[Blocks],
    weights: Sequence[float],
    confidence: float,
    resamples: int,
    seed: int,
    widen: bool,
    scale: Callable[[Floats], Floats],
    back: Callable[[Floats], Floats],
) -> Interval | None:
    """Interval of the mean over rounds of sum_k weights[k] * scale(median(series[k][round])), put through `back`."""
    common = [r for r in range(min(len(blocks) for blocks in series)) if all(len(blocks[r]) for blocks in series)]
    if not common:
        return None
    arrays = [[np.asarray(blocks[r], dtype=np.float64) for r in common] for blocks in series]
    rounds = len(common)
    by_round = sum(
        weight * scale(np.array([np.median(block) for block in blocks]))
        for weight, blocks in zip(weights, arrays, strict=True)
    )
    centre = float(np.mean(by_round))
    if rounds < 2:
        return Interval(_number(back, centre), None, None, rounds)
    if all(np.ptp(np.concatenate(blocks)) == 0 for blocks in arrays):  # a count of bytes, say: nothing to draw from
        return Interval(_number(back, centre), _number(back, centre), _number(back, centre), rounds)

    random = np.random.default_rng(seed)
    drawn = random.integers(rounds, size=(resamples, rounds))  # [resamples, rounds]: which round stands in each place
    values = np.zeros((resamples, rounds))
    for weight, blocks in zip(weights, arrays, strict=True):
        medians = np.empty((resamples, rounds))
        for index, block in enumerate(blocks):
            places = drawn == index
            picks = random.integers(len(block), size=(int(places.sum()), len(block)))
            medians[places] = np.median(block[picks], axis=1)
        values += weight * scale(medians)
    tail = (1 - confidence) / 2
    low, high = np.quantile(values.mean(axis=1), [tail, 1 - tail])
    factor = _widening(rounds, confidence) if widen else 1.0
    ends = centre + factor * (np.array([low, high]) - centre)
    return Interval(
        _number(back, centre), _number(back, min(ends[0], centre)), _number(back, max(ends[1], centre)), rounds
    )


def _number(back: Callable[[Floats], Floats], value: float) -> float:
    return float(back(np.asarray(value)))


def _widening(rounds: int, confidence: float) -> float:
    """How much too narrow a percentile bootstrap of `rounds` values is."""
    from scipy.special import ndtri, stdtrit  # scipy.stats has them too, and takes half a second to import

    upper = (1 + confidence) / 2
    narrow = math.sqrt(rounds / (rounds - 1))
    return float(narrow * stdtrit(rounds - 1, upper) / ndtri(upper))
