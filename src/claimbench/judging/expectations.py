"""Where a quantity must lie, and what an interval says about it. Also the words for both."""

from __future__ import annotations

import math

from claimbench.formatting import quantity
from claimbench.schema.checks import Expectation
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS
from claimbench.schema.verdicts import Verdict

Bounds = tuple[float, float]


def bounds(expect: Expectation, tolerance: float) -> Bounds:
    """The closed range that `expect` means; `above` and `below` leave out the ends of `same`: no quantity is both."""
    if expect == "same":
        return 1 - tolerance, 1 + tolerance
    if expect == "above":
        return math.nextafter(1 + tolerance, math.inf), math.inf
    if expect == "below":
        return -math.inf, math.nextafter(1 - tolerance, -math.inf)
    if expect.about is not None and expect.within is not None:
        ends = sorted((expect.about * (1 - expect.within), expect.about * (1 + expect.within)))
        return ends[0], ends[1]
    return (
        -math.inf if expect.at_least is None else expect.at_least,
        math.inf if expect.at_most is None else expect.at_most,
    )


def bounds_text(expect: Expectation, tolerance: float, unit: str = "") -> str:
    low, high = bounds(expect, tolerance)
    if isinstance(expect, str) and expect != "same":
        return f"above {quantity(1 + tolerance)}" if expect == "above" else f"below {quantity(1 - tolerance)}"
    if math.isinf(high):
        return f"at least {quantity(low, unit)}"
    if math.isinf(low):
        return f"at most {quantity(high, unit)}"
    return f"{quantity(low, unit)} to {quantity(high, unit)}"


def verdict(found: Interval, wanted: Bounds) -> Verdict:
    """Supported where all of the interval lies inside, refuted where none does; else, or without one, undecided."""
    if found.ends is None:
        return Verdict.UNDECIDED
    low, high = found.ends
    if wanted[0] <= low and high <= wanted[1]:
        return Verdict.SUPPORTED
    return Verdict.REFUTED if high < wanted[0] or low > wanted[1] else Verdict.UNDECIDED


def largest_difference(found: Interval, wanted: Bounds) -> float | None:
    """How far from 1 a ratio may be that is claimed to be about 1, and was not found to differ; None for others."""
    if found.ends is None or not all(map(math.isfinite, wanted)) or not wanted[0] < 1 < wanted[1]:
        return None
    low, high = found.ends
    return max(1 - low, high - 1) if low <= 1 <= high else None


def place(found: Interval, wanted: Bounds) -> str:
    """Where an interval lies beside the range that is asked for, in the words that its verdict allows."""
    if found.ends is None:
        return "too early to tell"
    return {
        Verdict.SUPPORTED: "inside the range asked for",
        Verdict.REFUTED: "below the range asked for" if found.ends[1] < wanted[0] else "above the range asked for",
    }.get(verdict(found, wanted), "on both sides of an end of the range asked for")


def unit_of(metric: str) -> str:
    return METRICS[metric].unit if metric in METRICS else ""
