"""Contrasts of cells that took turns: what pairs, what repeats, and when a claim about them is settled.

In a round the cells that are compared sit together and generate in turn; one generation of each is a pass. Drift that
is slow against a pass moves both sides of a ratio alike, so what is kept of a pass is one number: the logarithm of the
ratio (or any other contrast of logarithms). Passes of one round share its processes and its minutes and do not repeat
the experiment: rounds do.

1. Location of a round: the mean of its passes without the fifth at either end, and its variance by Winsorised passes
   (Tukey and McLaughlin 1963; Yuen 1974), since single passes are hit hard on a shared machine.
2. Variance between rounds. Two rounds alone say next to nothing of it: their t quantile is 12.7. But what the passes
   explain is known well, and by how much processes of one cell differ was measured. So the variance of a round's
   location is shrunk towards `inflation` times what its own passes explain and the square of `floor`, each with the
   weight of `df` degrees of freedom (the moderated t of Smyth 2004, limma), or of fewer where there are few passes.
   The prior is frozen, and scaled by this comparison's own passes alone: a noisy cell in the same study widens no other
   interval, and later data of other cells undo no verdict.
3. Looks are paid for. Whoever looks after each round and stops when it looks good is wrong more often than in 5 % of
   cases. Look k spends 5 % / 2^k of the error (a union bound: it holds however looks depend on each other), and a claim
   is judged at the first look that settles it. The 5 % are of each claim, not of a study. The first look is after two
   rounds, or after three for cells that differ more from process to process.

A voided round is not here at all, and one in doubt counts less (`weight`): both by rules that do not see the figures,
see validity.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ALPHA = 0.05
TRIM = 0.2
ROUNDING = 1e-20
"""A smaller variance is of numbers that are the same, and were divided and averaged."""
LOOKS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of rounds at which a claim is looked at: ever rarer, since each look costs width."""


class PairedRound(NamedTuple):
    """A contrast in one round: its logarithm at each pass."""

    logs: tuple[float, ...]
    weight: float = 1.0


class Prior(NamedTuple):
    """What is known of the variance between rounds before any is measured."""

    inflation: float
    """Variance of a round's location over what its passes explain."""
    floor: float
    """Standard deviation between rounds, on the log scale, that no number of passes explains: of the processes."""
    df: float
    least: int = 2
    """Rounds before the first look."""


STEADY = Prior(inflation=1.3, floor=0.01, df=5.0)
"""Between rounds of one comparison the variance was 1.33 times what passes explain (147 degrees of freedom; seven runs,
quiet and noisy hours): beside the inflation 0.005 is left, and the floor is twice that. Intervals of recorded rounds
(tests/unit/data) hold the truth in 96 to 98 % of the runs that it was fitted to, and in 93 to 97 % of later ones."""
RESTLESS = Prior(inflation=1.3, floor=0.03, df=3.0, least=3)
"""Of compiled and quantised cells, which differ more from process to process, and from hour to hour: 0.03 was left in
quiet ones, 0.06 in noisy ones. Few degrees of freedom let the rounds themselves tell: 96 to 98 % as well,
and 95 % of the later ones."""


class Contrast(NamedTuple):
    """A contrast on the log scale, at one look."""

    centre: float
    half_width: float
    """Infinite before the first look."""
    standard_error: float
    df: float
    rounds: int
    look: int
    """Which look it is, from 1."""

    @property
    def ends(self) -> tuple[float, float]:
        return self.centre - self.half_width, self.centre + self.half_width

    @property
    def finds_a_difference(self) -> bool:
        """The interval of a ratio leaves 1 out, or that of an exponent 0."""
        return abs(self.centre) > self.half_width


def look_number(rounds: int, least: int = 2) -> int:
    """Which look the one after `rounds` rounds is: those of `LOOKS` before it, from `least` rounds on, and itself."""
    return 1 + sum(1 for look in LOOKS if least <= look < rounds)


def spent_at(look: int, alpha: float = ALPHA) -> float:
    """The error that look `look` may spend; all looks together spend less than `alpha`."""
    return alpha / 2.0**look


def location(logs: Sequence[float]) -> tuple[float, float]:
    """The trimmed mean of a round's passes, and its variance as far as passes explain it (0 for a single pass)."""
    values = np.sort(np.asarray(logs, dtype=np.float64))
    count, cut = len(values), int(TRIM * len(values))
    kept = values[cut : count - cut]
    centre = float(kept.mean())
    if count < 2:
        return centre, 0.0
    winsorised = np.clip(values, kept[0], kept[-1])
    deviations = float(((winsorised - winsorised.mean()) ** 2).sum())
    return centre, deviations / (len(kept) * (len(kept) - 1))


def contrast(rounds: Sequence[PairedRound], prior: Prior = STEADY, alpha: float = ALPHA) -> Contrast:
    """The contrast over `rounds`, with the interval of the look after them.

    Raises:
        ValueError: there is no round, or a round has no pass.
    """
    if not rounds:
        raise ValueError("expected at least one round")
    from scipy.special import stdtrit  # scipy.stats has it too, and takes half a second to import

    count = len(rounds)
    found = [location(each.logs) for each in rounds]
    centres, weights = np.array([centre for centre, _ in found]), np.array([each.weight for each in rounds])
    centre = float(np.average(centres, weights=weights))
    look = look_number(count, prior.least)
    between = float((weights * (centres - centre) ** 2).sum() / weights.mean())
    explained = float(np.average([variance for _, variance in found], weights=weights))
    known, known_df = _known(rounds, explained, prior)
    df = known_df + count - 1
    if df == 0:
        return Contrast(centre, math.inf, math.inf, 0.0, count, look)
    variance = (known_df * known + between) / df
    standard_error = math.sqrt(variance * float((weights**2).sum())) / float(weights.sum())
    if count < prior.least:
        return Contrast(centre, math.inf, standard_error, df, count, look)
    quantile = float(stdtrit(df, 1 - spent_at(look, alpha) / 2))
    return Contrast(centre, quantile * standard_error, standard_error, df, count, look)


def _known(rounds: Sequence[PairedRound], explained: float, prior: Prior) -> tuple[float, float]:
    """The variance of a round's location that is expected before rounds are compared, and its degrees of freedom.

    What the passes explain is known no better than there are passes to tell it from; the sum with the floor has the
    degrees of Satterthwaite (1946). Of passes that do not vary at all, such as counts, nothing is expected.
    """
    told = min(prior.df, float(sum(len(each.logs) - 1 for each in rounds)))
    if explained < ROUNDING or not told:
        return 0.0, 0.0
    within, floor = prior.inflation * explained, prior.floor**2
    return within + floor, (within + floor) ** 2 / (within**2 / told + floor**2 / prior.df)


def looks(rounds: Sequence[PairedRound], prior: Prior = STEADY, alpha: float = ALPHA) -> list[Contrast]:
    """The contrast at every look that `rounds`, in the order in which they were measured, had or end in."""
    earlier = {look for look in LOOKS if prior.least <= look < len(rounds)}
    ends = sorted(earlier | {len(rounds)}) if rounds else []
    return [contrast(rounds[:end], prior, alpha) for end in ends]


def first_settled(found: Sequence[Contrast], low: float, high: float) -> Contrast | None:
    """The first look whose interval lies within [low, high] on the log scale, or wholly outside; None: none does."""
    return next((each for each in found if settles(each, low, high)), None)


def settles(found: Contrast, low: float, high: float) -> bool:
    left, right = found.ends
    return (low <= left and right <= high) or right < low or left > high


def rounds_to_settle(rounds: Sequence[PairedRound], prior: Prior, low: float, high: float) -> int | None:
    """Rounds in all that would settle it if the estimate and the spread stayed; None: more than the last of `LOOKS`.

    Raises:
        ValueError: there is no round yet.
    """
    found, gap = _gap(rounds, prior, low, high)
    one_round = found.standard_error * math.sqrt(found.rounds)
    for count in (look for look in LOOKS if look > found.rounds and look >= prior.least):
        if _quantile(prior, prior.df, count) * one_round / math.sqrt(count) < gap:
            return count
    return None


def passes_to_settle(rounds: Sequence[PairedRound], prior: Prior, low: float, high: float) -> float:
    """Passes of one more round that would settle it if the estimate and the spread stayed; infinite where none do.

    Raises:
        ValueError: there is no round yet.
    """
    found, gap = _gap(rounds, prior, low, high)
    count = found.rounds + 1
    if math.isinf(found.standard_error) or count < prior.least:
        return math.inf
    each = [location(one.logs)[1] for one in rounds]
    _, known_df = _known(rounds, float(np.mean(each)), prior)
    of_a_round = (gap / _quantile(prior, known_df + 1, count)) ** 2 * count
    allowed = (of_a_round - prior.floor**2) / prior.inflation  # mean of what passes may explain
    of_one_pass = _of_one_pass(rounds)
    left = allowed * count - sum(each)
    return of_one_pass / left if left > 0 else math.inf


def pass_to_round_sd(rounds: Sequence[PairedRound], prior: Prior) -> float:
    """Standard deviation of a single pass over that of rounds, beside what their passes explain.

    With a start of a round that takes s times as long as a pass, sqrt(s) times as many passes narrow an interval most
    for their time (the best number of elements of a cluster: Cochran, Sampling Techniques, 1977, section 10.6).
    """
    return math.sqrt(prior.inflation * _of_one_pass(rounds)) / prior.floor


def _of_one_pass(rounds: Sequence[PairedRound]) -> float:
    """The variance of a single pass, as the mean of what rounds show of it."""
    return float(np.mean([location(one.logs)[1] * len(one.logs) for one in rounds]))


def _gap(rounds: Sequence[PairedRound], prior: Prior, low: float, high: float) -> tuple[Contrast, float]:
    """The contrast, and how far its centre is from the nearer end of [low, high]."""
    found = contrast(rounds, prior)
    return found, min((abs(found.centre - end) for end in (low, high) if math.isfinite(end)), default=math.inf)


def _quantile(prior: Prior, known_df: float, rounds: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(min(prior.df, known_df) + rounds - 1, 1 - spent_at(look_number(rounds, prior.least)) / 2))
