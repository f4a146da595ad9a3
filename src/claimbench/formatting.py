"""Numbers and names as a reader sees them: rounded to what their interval supports, with their unit."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from claimbench.schema.interval import Interval


class Estimate(NamedTuple):
    """A value and its interval; without one, `low` and `high` are None."""

    value: float
    low: float | None = None
    high: float | None = None

    def scaled(self, factor: float) -> Estimate:
        return Estimate(
            self.value * factor,
            None if self.low is None else self.low * factor,
            None if self.high is None else self.high * factor,
        )


def significant(value: float, digits: int = 3) -> float:
    """`value` rounded to `digits` significant digits."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def _decimals(estimate: Estimate) -> int:
    """Decimal places that half the interval's width supports: its first digit, and its second behind a 1 or a 2.

    At least two and at most four digits of the value are shown.
    """
    magnitude = math.floor(math.log10(abs(estimate.value))) if estimate.value else 0
    at_least, at_most = 1 - magnitude, 3 - magnitude
    if estimate.low is None or estimate.high is None or estimate.low == estimate.high:
        return 2 - magnitude
    half = (estimate.high - estimate.low) / 2
    if not math.isfinite(half):
        return at_most
    order = math.floor(math.log10(half))
    digits = 2 if half < 3 * 10.0**order else 1
    return min(max(digits - 1 - order, at_least), at_most)


def _fixed(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:,.{max(decimals, 0)}f}"


def number(value: float, low: float | None = None, high: float | None = None) -> str:
    """`26.03`, without its interval but rounded to what the interval supports."""
    if not math.isfinite(value):
        return "not finite"
    return _fixed(value, _decimals(Estimate(value, low, high)))


def interval(estimate: Estimate, sign: str = "") -> str:
    """`26.03 [25.91, 26.15]`, or `26.0` where there is no interval or no width to it; `sign` follows each number."""
    text = number(*estimate) + sign
    if estimate.low is None or estimate.high is None or estimate.low == estimate.high:
        return text
    decimals = _decimals(estimate)
    return f"{text} [{_fixed(estimate.low, decimals)}{sign}, {_fixed(estimate.high, decimals)}{sign}]"


def percent(fraction: float) -> str:
    """`68 %`, `4.2 %`, `2 %`, `0.31 %`."""
    return f"{_fixed(100 * fraction, 0) if abs(fraction) >= 0.1 else f'{100 * fraction:.2g}'} %"


def cell_text(text: object) -> str:
    """`text` safe inside one cell of a Markdown table."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;").strip()


def slug(text: str) -> str:
    """A file name, or an anchor, made of `text`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def count(number_of: int, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{number_of} {noun}" if number_of == 1 else f"{number_of} {noun}s"


def quantity(value: float, unit: str = "") -> str:
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
    return f"{quantity(found.low, unit)} to {quantity(found.high, unit)}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
