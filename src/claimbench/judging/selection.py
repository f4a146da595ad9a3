"""Which of many gains to name, and how wide an interval must be for having been chosen.

Whoever names the best of forty ratios names lucky ones, whose 95 % intervals miss more often than one time in twenty.
Of m ratios R are named: those whose interval of error `alpha` R / m lies above the least gain, R the largest number of
which that many do (Benjamini and Hochberg 1995, by inverting intervals). Each is shown with that interval, so that of
all that are shown at most `alpha` miss in expectation: the false coverage-statement rate of Benjamini and Yekutieli
(2005, Journal of the American Statistical Association 100, 71 to 81). It holds for ratios that are independent or
whose errors move together, as those with one base do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from claimbench.analysis.paired import ALPHA
from claimbench.schema.interval import Interval

IntervalAt = Callable[[float], Interval | None]
"""The interval of a ratio for an error that it may have; None, or one without ends: nothing is known of its spread."""


def selected(ratios: Sequence[IntervalAt], least: float, alpha: float = ALPHA) -> tuple[set[int], float]:
    """The places of the ratios that lie above `least`, and the error of the interval that each is to be shown with."""
    ranks = [_rank(ratio, len(ratios), least, alpha) for ratio in ratios]
    for count in range(len(ratios), 0, -1):
        chosen = {place for place, rank in enumerate(ranks) if rank <= count}
        if len(chosen) >= count:
            return chosen, alpha * count / len(ratios)
    return set(), alpha


def _rank(ratio: IntervalAt, of: int, least: float, alpha: float) -> int:
    """The smallest R of 1 to `of` for which the interval of error `alpha` R / `of` is above `least`; else `of` + 1."""

    def is_above(count: int) -> bool:
        found = ratio(alpha * count / of)
        return found is not None and found.ends is not None and found.ends[0] > least

    return 1 + bisect_left(range(1, of + 1), True, key=is_above)
