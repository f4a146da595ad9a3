"""Where a number must lie, and what an interval says about it. Also the words for both."""

from __future__ import annotations

import math
from typing import Literal

from claimbench.metrics import METRICS
from claimbench.stats import Interval
from claimbench.study import Expectation

Verdict = Literal["supported", "refuted", "undecided", "not runnable here"]
Bounds = tuple[float, float]


def bounds(expect: Expectation, tolerance: float) -> Bounds:
    """The closed range that `expect` means; `above` and `below` leave out the ends of `same`: no number is both."""
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
        return f"above {number(1 + tolerance)}" if expect == "above" else f"below {number(1 - tolerance)}"
    if math.isinf(high):
        return f"at least {number(low, unit)}"
    if math.isinf(low):
        return f"at most {number(high, unit)}"
    return f"{number(low, unit)} to {number(high, unit)}"


def verdict(found: Interval, wanted: Bounds) -> Verdict:
    """Supported where all of the interval lies inside, refuted where none does; else, or without one, undecided."""
    if found.low is None or found.high is None:
        return "undecided"
    if wanted[0] <= found.low and found.high <= wanted[1]:
        return "supported"
    return "refuted" if found.high < wanted[0] or found.low > wanted[1] else "undecided"


def direction(found: Interval, tolerance: float) -> str:
    """What a ratio shows by itself, whatever was claimed."""
    for name in ("same", "above", "below"):
        if verdict(found, bounds(name, tolerance)) == "supported":
            return {"same": "the same", "above": "higher", "below": "lower"}[name]
    return "too close to call" if found.low is not None else "one block cannot tell"


def number(value: float, unit: str = "") -> str:
    """Three digits that count, with the unit; bytes as MB or GB, which are powers of ten here."""
    if unit == "B":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if abs(value) >= size:
                return f"{value / size:.4g} {name}"
        return f"{value:.4g} B"
    smallest = 0.995 if unit else 0.095  # a ratio of 0.99 has two decimals, a time of 0.021 ms two digits
    text = f"{value:.2f}" if smallest <= abs(value) < 10 else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{text} {unit}".rstrip()


def power(value: float) -> str:
    """An exponent with two decimals, and no minus before a zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def range_text(found: Interval, unit: str = "") -> str:
    if found.low is None or found.high is None:
        return "one block: no interval"
    return f"{number(found.low, unit)} to {number(found.high, unit)}"


def unit_of(metric: str) -> str:
    return METRICS[metric].unit if metric in METRICS else ""
