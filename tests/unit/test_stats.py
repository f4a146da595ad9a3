"""Intervals: do they cover the truth as often as they say, and would one without the correction not?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from claimbench.analysis import stats
from claimbench.schema import interval

TRUE_RATIO = 1.25
positive = some.floats(min_value=0.1, max_value=1e3)
block_lists = some.lists(some.lists(positive, min_size=1, max_size=4), min_size=2, max_size=5)


def experiment(
    random: np.random.Generator, rounds: int, samples: int, between: float, within: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Two cells whose medians differ by `TRUE_RATIO`; a slow round is slow for both, a slow block for itself alone."""
    common = random.normal(0, 0.05, (rounds, 1))

    def cell(level: float) -> list[list[float]]:
        noise = common + random.normal(0, between, (rounds, 1)) + random.normal(0, within, (rounds, samples))
        values: list[list[float]] = (level * np.exp(noise)).tolist()
        return values

    return cell(TRUE_RATIO), cell(1.0)


def coverage(rounds: int, between: float, within: float, widen: bool) -> float:
    random = np.random.default_rng(7)
    trials, hits = 600, 0
    for trial in range(trials):
        of, to = experiment(random, rounds, 3, between, within)
        found = stats.ratio_interval(of, to, resamples=400, seed=trial, widen=widen)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= TRUE_RATIO <= found.high
    return hits / trials


@pytest.mark.parametrize("rounds", [3, 5, 10])
@pytest.mark.parametrize(("between", "within"), [(0.03, 0.003), (0.02, 0.02)])
def test_the_interval_covers_the_truth_as_often_as_it_says(rounds: int, between: float, within: float) -> None:
    assert coverage(rounds, between, within, widen=True) >= 0.93


def test_without_the_correction_three_blocks_would_cover_far_too_seldom() -> None:
    assert coverage(3, 0.03, 0.003, widen=False) < 0.85


def test_pairing_by_round_cancels_what_hits_both_cells() -> None:
    slow_rounds = np.exp(np.random.default_rng(3).normal(0, 0.5, 5))
    of = [[2.0 * slow, 2.02 * slow] for slow in slow_rounds]
    to = [[1.0 * slow, 1.01 * slow] for slow in slow_rounds]
    found = stats.ratio_interval(of, to)
    assert found is not None
    assert found.estimate == pytest.approx(2.0, rel=1e-6)
    assert found.high is not None
    assert found.low is not None
    assert found.high / found.low < 1.06


def test_the_estimate_is_the_geometric_mean_over_rounds_of_the_ratio_of_medians() -> None:
    found = stats.ratio_interval([[1, 4, 100], [9]], [[2], [1, 1, 7]])
    assert found is not None
    assert found.estimate == pytest.approx(math.sqrt((4 / 2) * (9 / 1)))
    assert found.rounds == 2


def test_one_round_has_an_estimate_and_no_interval() -> None:
    assert stats.ratio_interval([[2.0, 2.0]], [[1.0]]) == interval.Interval(2.0, None, None, 1)


def test_rounds_that_one_side_lacks_are_left_out() -> None:
    found = stats.ratio_interval([[2.0], [], [4.0], [50.0]], [[1.0], [9.0], [1.0]])
    assert found is not None
    assert found.rounds == 2
    assert found.estimate == pytest.approx(math.sqrt(8))
    assert stats.ratio_interval([[], [1.0]], [[1.0]]) is None


def test_a_ratio_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        stats.ratio_interval([[0.0], [1.0]], [[1.0], [1.0]])


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    of, to = experiment(np.random.default_rng(1), 4, 3, 0.02, 0.02)
    assert stats.ratio_interval(of, to, seed=5) == stats.ratio_interval(of, to, seed=5)
    assert stats.ratio_interval(of, to, seed=5) != stats.ratio_interval(of, to, seed=6)


@settings(max_examples=60, deadline=None)
@given(of=block_lists, to=block_lists)
def test_the_estimate_lies_inside_and_turning_the_ratio_over_turns_the_estimate_over(
    of: list[list[float]], to: list[list[float]]
) -> None:
    found, turned = stats.ratio_interval(of, to, resamples=200), stats.ratio_interval(to, of, resamples=200)
    assert found is not None
    assert turned is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.estimate <= found.high
    assert found.estimate == pytest.approx(1 / turned.estimate)


def test_an_interval_of_one_cell_holds_its_level() -> None:
    found = stats.interval([[10.0, 10.2], [9.9, 10.1], [10.0, 10.0]])
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < 10.03 < found.high
    assert found.estimate == pytest.approx((10.1 * 10.0 * 10.0) ** (1 / 3))


def test_constants_have_an_interval_of_no_width() -> None:
    assert stats.interval([[512.0], [512.0, 512.0]]) == pytest.approx((512, 512, 512, 2))


def test_zeros_are_taken_on_the_linear_scale() -> None:
    found = stats.interval([[0.0], [0.0], [3.0]])
    assert found is not None
    assert found.estimate == pytest.approx(1.0)
    assert stats.interval([[], []]) is None


def noisy_curve(exponent: float, xs: list[float], level: float = 3.0) -> list[tuple[float, list[list[float]]]]:
    random = np.random.default_rng(11)
    return [(x, (level * x**exponent * np.exp(random.normal(0, 0.02, (4, 3)))).tolist()) for x in xs]


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(exponent: float) -> None:
    found = stats.exponent_interval(noisy_curve(exponent, [1, 2, 4, 8]))
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < exponent < found.high
    assert found.high - found.low < 0.2


def test_the_exponent_of_a_ratio_is_the_difference_of_the_exponents() -> None:
    xs = [16.0, 64.0, 256.0]
    found = stats.exponent_interval(noisy_curve(2, xs), noisy_curve(0.5, xs))
    assert found is not None
    assert found.estimate == pytest.approx(1.5, abs=0.05)


def test_groups_share_the_exponent_and_not_the_level() -> None:
    both = noisy_curve(1, [1, 2], level=1) + noisy_curve(1, [4, 8], level=900)
    found = stats.exponent_interval(both, groups=["a", "a", "b", "b"])
    assert found is not None
    assert found.estimate == pytest.approx(1.0, abs=0.05)


def test_a_curve_of_one_point_has_no_exponent() -> None:
    with pytest.raises(ValueError, match="two different"):
        stats.exponent_interval(noisy_curve(1, [4]))
    with pytest.raises(ValueError, match="different points"):
        stats.exponent_interval(noisy_curve(1, [1, 2]), noisy_curve(1, [1, 4]))


def test_a_gain_is_the_ratio_of_two_ratios_over_the_rounds_that_all_four_have() -> None:
    """Each round hits all four alike, so it cancels."""
    slow = [1.0, 1.5, 0.7, 3.0]
    of, to, than_of, than_to = ([[level * each] for each in slow] for level in (12.0, 2.0, 6.0, 3.0))
    found = stats.gain_interval(of, to, than_of, than_to[:3])
    assert found is not None
    assert (found.estimate, found.rounds) == (pytest.approx(3.0), 3)
    assert found.ends == pytest.approx((3.0, 3.0))
    noisy = [
        [[level * each] for each in np.exp(np.random.default_rng(int(level)).normal(0, 0.1, 5))]
        for level in (2, 3, 4, 5)
    ]
    one, other = (stats.gain_interval(*noisy, seed=seed) for seed in (0, 1))
    assert one == stats.gain_interval(*noisy)
    assert one != other
    assert stats.gain_interval([[]], to, than_of, than_to) is None


def test_an_interval_with_more_confidence_is_wider_by_what_t_and_the_few_rounds_ask() -> None:
    from scipy.stats import norm, t

    blocks = [[1.0], [1.1], [0.9], [1.05]]
    usual, widened = stats.ratio_interval(blocks, [[1.0]] * 4, widen=False), stats.ratio_interval(blocks, [[1.0]] * 4)
    assert usual is not None
    assert widened is not None
    assert usual.ends is not None
    assert widened.ends is not None
    factor = math.sqrt(4 / 3) * t.ppf(0.975, 3) / norm.ppf(0.975)
    for narrow, wide in zip(usual.ends, widened.ends, strict=True):
        assert math.log(wide / usual.estimate) == pytest.approx(factor * math.log(narrow / usual.estimate))
    more = stats.ratio_interval(blocks, [[1.0]] * 4, confidence=0.99, widen=False)
    assert more is not None
    assert more.ends is not None
    assert more.ends[0] < usual.ends[0] < usual.ends[1] < more.ends[1]


@pytest.mark.parametrize("xs", [[0.0, 1.0], [-1.0, 1.0]])
def test_an_exponent_of_what_is_not_positive_is_refused(xs: list[float]) -> None:
    with pytest.raises(ValueError, match="positive values of x"):
        stats.slope_weights(xs, [None, None])


def test_weights_of_a_slope_are_those_of_least_squares() -> None:
    xs, ys = [1.0, 2.0, 5.0, 9.0], [3.0, 1.0, 4.0, 2.0]
    weights = stats.slope_weights(xs, [None] * 4)
    expected = float(np.polyfit(np.log(xs), np.log(ys), 1)[0])
    assert sum(weight * math.log(y) for weight, y in zip(weights, ys, strict=True)) == pytest.approx(expected)
    assert stats.slope_weights([1.0, 4.0], ["a", "a"]) == pytest.approx([-1 / math.log(4), 1 / math.log(4)])


def test_the_interval_of_an_exponent_is_widened_as_well() -> None:
    """As far as that of a ratio of the same rounds: of x = e, 1 an exponent is the ratio's logarithm."""
    of, to = [[1.0], [1.1], [0.9], [1.05]], [[1.0]] * 4
    ratio, exponent = stats.ratio_interval(of, to), stats.exponent_interval([(math.e, of), (1.0, to)])
    assert ratio is not None
    assert exponent is not None
    assert exponent == pytest.approx((*(math.log(each) for each in ratio[:3]), 4))  # type: ignore[arg-type]
