"""Contrasts over rounds: do they cover the truth as often as they say, who pays for looks, and what breaks them?"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from claimbench.analysis import paired
from claimbench.analysis.paired import LOOKS, STEADY, Contrast, PairedRound, Prior

STUDIES = 1500


def rounds_of(
    random: np.random.Generator,
    rounds: int,
    passes: int = 6,
    *,
    effect: float = 0.0,
    between: float = 0.01,
    within: float = 0.06,
) -> list[PairedRound]:
    """Rounds whose spreads vary by comparison, with the heavy tails of a shared machine (t of 3 degrees)."""
    between, within = between * random.lognormal(0, 0.5), within * random.lognormal(0, 0.4)
    return [
        PairedRound(tuple(effect + between * random.normal() + within * random.standard_t(3, passes) / math.sqrt(3)))
        for _ in range(rounds)
    ]


def once(rounds: list[PairedRound], prior: Prior = STEADY) -> Contrast:
    """The interval of whoever looks only once, after all rounds."""
    return paired.contrast(rounds, prior, alpha=paired.ALPHA * 2 ** paired.look_number(len(rounds), prior.least))


def holds(found: Contrast, truth: float) -> bool:
    low, high = found.ends
    return low <= truth <= high


@pytest.mark.parametrize(("rounds", "passes"), [(2, 2), (2, 4), (2, 6), (3, 2), (3, 4), (3, 12), (6, 4)])
def test_intervals_hold_the_truth_as_often_as_they_say(rounds: int, passes: int) -> None:
    random = np.random.default_rng(rounds * 100 + passes)
    covered = np.mean([holds(once(rounds_of(random, rounds, passes, effect=0.05)), 0.05) for _ in range(STUDIES)])
    assert 0.93 <= covered <= 0.98


def test_the_spread_of_a_pass_is_told_over_that_of_rounds() -> None:
    """Of passes that vary by 0.06, with a floor of 0.01 and the prior's inflation."""
    random = np.random.default_rng(3)
    rounds = [PairedRound(tuple(0.06 * random.normal(size=400))) for _ in range(4)]
    expected = 0.06 * math.sqrt(STEADY.inflation) / STEADY.floor
    assert paired.pass_to_round_sd(rounds, STEADY) == pytest.approx(expected, rel=0.15)
    assert paired.pass_to_round_sd(rounds, paired.RESTLESS) < paired.pass_to_round_sd(rounds, STEADY)


def test_a_cell_that_differs_far_more_between_rounds_needs_the_other_prior() -> None:
    """A compiled cell, say: its prior asks for more, and with three rounds its interval holds."""
    random = np.random.default_rng(5)
    made = [rounds_of(random, 3, between=0.05) for _ in range(STUDIES)]
    held = {prior: np.mean([holds(once(each, prior), 0.0) for each in made]) for prior in (STEADY, paired.RESTLESS)}
    assert held[paired.RESTLESS] > held[STEADY]
    assert held[paired.RESTLESS] >= 0.9


def test_whoever_stops_at_the_first_difference_is_wrong_in_five_percent_at_most() -> None:
    random = np.random.default_rng(1)
    made = [rounds_of(random, 12) for _ in range(STUDIES)]
    stopped = [any(not holds(look, 0.0) for look in paired.looks(each)) for each in made]
    unpaid = [any(not holds(once(each[:end]), 0.0) for end in (2, 3, 4, 6, 8, 12)) for each in made]
    assert np.mean(stopped) <= 0.05
    assert np.mean(unpaid) > 0.08


def test_all_looks_together_spend_no_more_than_there_is() -> None:
    assert sum(paired.spent_at(look) for look in range(1, 60)) <= paired.ALPHA
    numbers = [paired.look_number(rounds) for rounds in LOOKS]
    assert numbers == list(range(1, len(LOOKS) + 1))
    assert paired.look_number(5) == paired.look_number(6) == 4
    assert all(after > before for before, after in pairwise(LOOKS))


def test_an_injected_slowdown_is_found_in_fewer_rounds_the_larger_it_is() -> None:
    random = np.random.default_rng(2)
    found = {}
    for effect in (0.02, 0.1, 0.2):
        made = [paired.looks(rounds_of(random, 8, effect=effect)) for _ in range(200)]
        found[effect] = float(np.mean([any(look.ends[0] > 0 for look in looks[:3]) for looks in made]))
    assert found[0.02] < found[0.1] < found[0.2]
    assert found[0.2] > 0.95


def test_one_hit_pass_moves_nothing() -> None:
    quiet = [PairedRound((0.1, 0.11, 0.09, 0.1, 0.1, 0.1)), PairedRound((0.1, 0.1, 0.11, 0.09, 0.1, 0.1))]
    hit = [quiet[0]._replace(logs=(0.1, 0.11, 0.09, 0.1, 0.1, 3.0)), quiet[1]]
    assert paired.contrast(hit).centre == pytest.approx(0.1, abs=0.01)
    assert paired.contrast(hit).half_width < 0.1


def test_two_rounds_that_differ_widen_the_interval_beyond_what_passes_explain() -> None:
    near = [PairedRound((0.0, 0.01, -0.01, 0.0)), PairedRound((0.01, 0.0, 0.0, -0.01))]
    far = [near[0], near[1]._replace(logs=tuple(log + 0.5 for log in near[1].logs))]
    assert paired.contrast(far).half_width > 5 * paired.contrast(near).half_width


def test_a_round_in_doubt_counts_less() -> None:
    doubted = [PairedRound((0.0, 0.0, 0.01)), PairedRound((0.3, 0.3, 0.31), weight=0.25)]
    assert paired.contrast(doubted).centre == pytest.approx(0.06, abs=0.01)
    assert paired.contrast([each._replace(weight=1) for each in doubted]).centre == pytest.approx(0.15, abs=0.01)


def test_a_count_has_an_interval_without_width() -> None:
    found = paired.contrast([PairedRound((math.log(0.5),)), PairedRound((math.log(0.5),))])
    assert found.ends == (math.log(0.5), math.log(0.5))


def test_one_round_has_no_interval_and_none_is_an_error() -> None:
    assert paired.contrast([PairedRound((0.1, 0.2, 0.1))]).half_width == math.inf
    with pytest.raises(ValueError, match="at least one round"):
        paired.contrast([])


def test_a_claim_is_judged_at_the_first_look_that_settles_it() -> None:
    """Later rounds, which other claims asked for, do not undo it."""
    tight = [PairedRound((0.1, 0.101, 0.099, 0.1)), PairedRound((0.1, 0.1, 0.101, 0.099))]
    wild = [PairedRound((-3.0, 2.0, -1.0, 0.5))]
    looks = paired.looks([*tight, *wild])
    assert [look.rounds for look in looks] == [2, 3]
    settled = paired.first_settled(looks, math.log(1.02), math.inf)
    assert settled is looks[0]
    assert not paired.settles(looks[1], math.log(1.02), math.inf)
    assert paired.first_settled(looks[1:], math.log(1.02), math.inf) is None


def test_what_is_undecided_says_how_many_rounds_would_settle_it() -> None:
    random = np.random.default_rng(3)
    rounds = rounds_of(random, 2, effect=0.06)
    centre = paired.contrast(rounds).centre
    near = paired.rounds_to_settle(rounds, STEADY, centre - 0.02, math.inf)
    far = paired.rounds_to_settle(rounds, STEADY, centre - 0.05, math.inf)
    assert near is not None
    assert far is not None
    assert near > far > 2
    assert paired.rounds_to_settle(rounds, STEADY, centre, math.inf) is None


def test_passes_that_should_settle_a_claim_do_so_more_often_than_not() -> None:
    """The whole rule: how many passes the second round has depends on what the first one showed."""
    random = np.random.default_rng(6)
    settled, asked = [], []
    for _ in range(400):
        (first,) = rounds_of(random, 1, 4, effect=0.3, between=0.005)
        passes = paired.passes_to_settle([first], STEADY, math.log(1.02), math.inf)
        if math.isinf(passes):
            continue
        (second,) = rounds_of(random, 1, max(2, math.ceil(1.5 * passes)), effect=0.3, between=0.005)
        asked.append(passes)
        settled.append(paired.contrast([first, second]).ends[0] > math.log(1.02))
    assert len(asked) > 100
    assert np.mean(settled) > 0.6


def test_a_claim_that_is_clear_needs_few_passes_and_one_at_its_limit_more_than_there_are() -> None:
    first = PairedRound((0.50, 0.55, 0.45, 0.5))
    assert paired.passes_to_settle([first], STEADY, 0.02, math.inf) < 2
    assert paired.passes_to_settle([first], STEADY, 0.5, math.inf) == math.inf
    assert paired.passes_to_settle([first], paired.RESTLESS, 0.02, math.inf) == math.inf  # two rounds are too few


@pytest.mark.parametrize(("passes", "df"), [(2, 2 + 1), (3, 4 + 1), (6, 5 + 1), (40, 5 + 1)])
def test_what_passes_explain_is_known_no_better_than_there_are_passes(passes: int, df: float) -> None:
    """Two rounds of two passes say little about their own spread: the prior does not make up for it."""
    random = np.random.default_rng(7)
    assert paired.contrast(rounds_of(random, 2, passes), STEADY._replace(floor=0.0)).df == pytest.approx(df)


def test_no_number_of_passes_takes_an_interval_below_what_processes_differ_by() -> None:
    """And what is known of that counts beside what the passes tell, with the degrees of either."""
    random = np.random.default_rng(7)
    many = paired.contrast(rounds_of(random, 2, 4000, between=0.0))
    assert many.standard_error * math.sqrt(2) == pytest.approx(STEADY.floor, rel=0.1)
    assert many.df == pytest.approx(STEADY.df + 1, rel=0.05)
    both = paired.contrast(rounds_of(random, 2, 12, between=0.0, within=0.1))
    assert STEADY.df + 1 < both.df < 2 * STEADY.df + 1


def test_a_restless_comparison_is_not_looked_at_before_its_third_round() -> None:
    """And its third round is its first look, so it spends no more than that."""
    random = np.random.default_rng(8)
    rounds = rounds_of(random, 4, effect=0.5, within=0.01)
    assert math.isfinite(paired.contrast(rounds[:2]).half_width)
    assert math.isinf(paired.contrast(rounds[:2], paired.RESTLESS).half_width)
    found = paired.looks(rounds, paired.RESTLESS)
    assert [(look.rounds, look.look) for look in found] == [(3, 1), (4, 2)]
    assert [(look.rounds, look.look) for look in paired.looks(rounds)] == [(2, 1), (3, 2), (4, 3)]


def test_a_round_s_location_and_variance_are_yuen_s() -> None:
    """A fifth of the passes is cut at either end, and counts as much as the last one that is kept."""
    passes = (9.0, 1.0, 3.0, 0.0, 4.0, 2.0, 5.0, 6.0, 7.0, -90.0)
    centre, variance = paired.location(passes)
    assert centre == pytest.approx((1 + 2 + 3 + 4 + 5 + 6) / 6)
    winsorised = [1, 1, 1, 2, 3, 4, 5, 6, 6, 6]
    assert variance == pytest.approx(float(np.var(winsorised)) * 10 / (6 * 5))
    assert paired.location((1.0, 2.0)) == (1.5, 0.25)
    assert paired.location((1.5,)) == (1.5, 0.0)


def test_a_single_pass_says_where_and_not_how_sure() -> None:
    assert paired.contrast([PairedRound((0.1,))]) == Contrast(0.1, math.inf, math.inf, 0.0, 1, 1)


def test_an_interval_is_of_student_s_t_with_the_error_that_its_look_may_spend() -> None:
    from scipy.stats import t

    for prior, rounds, look in ((STEADY, 2, 1), (STEADY, 5, 4), (paired.RESTLESS, 3, 1), (paired.RESTLESS, 4, 2)):
        error = paired.ALPHA / 2**look
        found = paired.contrast(rounds_of(np.random.default_rng(rounds), rounds, 8), prior)
        assert found.half_width == pytest.approx(t.ppf(1 - error / 2, found.df) * found.standard_error)
        quantile = paired._quantile(prior, 100.0, rounds)
        assert quantile == pytest.approx(t.ppf(1 - error / 2, prior.df + rounds - 1))
        assert paired._quantile(prior, 1.0, rounds) == pytest.approx(t.ppf(1 - error / 2, 1 + rounds - 1))


def test_a_restless_claim_that_is_clear_needs_the_round_of_its_first_look() -> None:
    clear = [PairedRound((2.0, 2.001, 1.999, 2.0)), PairedRound((2.0, 2.001, 1.999, 2.0))]
    assert paired.rounds_to_settle(clear, paired.RESTLESS, 0.02, math.inf) == 3
    assert paired.rounds_to_settle(clear[:1], STEADY, 0.02, math.inf) == 2


def test_a_claim_that_anything_satisfies_needs_no_more() -> None:
    rounds = [PairedRound((0.1, 0.12, 0.09, 0.1))]
    assert paired.passes_to_settle(rounds, STEADY, -math.inf, math.inf) == 0.0
    assert paired.rounds_to_settle(rounds, STEADY, -math.inf, math.inf) == 2


def test_passes_that_would_settle_it_follow_from_what_one_pass_varies_by() -> None:
    """Two rounds: the mean of what their passes explain must leave the gap to the limit, beside the floor's share."""
    from scipy.stats import t

    first = PairedRound((0.50, 0.55, 0.45, 0.5))
    (centre, explained), gap = paired.location(first.logs), 0.15
    known_df = (STEADY.inflation * explained + STEADY.floor**2) ** 2 / (
        (STEADY.inflation * explained) ** 2 / 3 + STEADY.floor**4 / STEADY.df
    )
    quantile = t.ppf(1 - paired.ALPHA / 2 / 2, min(STEADY.df, known_df + 1) + 1)
    allowed = ((gap / quantile) ** 2 * 2 - STEADY.floor**2) / STEADY.inflation * 2 - explained
    found = paired.passes_to_settle([first], STEADY, centre - gap, math.inf)
    assert found == pytest.approx(4 * explained / allowed)


def test_a_standard_error_is_that_of_a_weighted_mean_of_rounds() -> None:
    """Of rounds whose passes do not vary: what they differ by, each by its weight, over the degrees they leave."""
    rounds = [PairedRound((0.0,) * 3), PairedRound((0.3,) * 3, weight=0.5), PairedRound((0.6,) * 3)]
    centre = (0.0 + 0.15 + 0.6) / 2.5
    between = (centre**2 + 0.5 * (0.3 - centre) ** 2 + (0.6 - centre) ** 2) / (2.5 / 3)
    found = paired.contrast(rounds)
    assert (found.centre, found.df) == (pytest.approx(centre), 2)
    assert found.standard_error == pytest.approx(math.sqrt(between / 2) * math.sqrt(1 + 0.25 + 1) / 2.5)
