"""Numbers and names as a reader sees them: rounded to what their interval supports, with their unit."""

from __future__ import annotations

import math
import re

from claimbench.schema.interval import Interval


def significant(value: float, digits: int = 3) -> float:
    """`value` rounded to `digits` significant digits."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def _decimals(found: Interval) -> int:
    """Decimal places that half the interval's width supports: its first digit, and its second behind a 1 or a 2.

    At least two and at most four digits of the estimate are shown.
    """
    magnitude = math.floor(math.log10(abs(found.estimate))) if found.estimate else 0
    at_least, at_most = 1 - magnitude, 3 - magnitude
    ends = found.ends
    if ends is None or ends[0] == ends[1]:
        return 2 - magnitude
    half = (ends[1] - ends[0]) / 2
    if not math.isfinite(half):
        return at_most
    order = math.floor(math.log10(half))
    digits = 2 if half < 3 * 10.0**order else 1
    return min(max(digits - 1 - order, at_least), at_most)


def _fixed(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:,.{max(decimals, 0)}f}"


def number(value: float) -> str:
    """`26.0`, of which nothing is known but its value."""
    return rounded(Interval(value))


def rounded(found: Interval) -> str:
    """`26.03`, without its interval but rounded to what the interval supports."""
    return _fixed(found.estimate, _decimals(found)) if math.isfinite(found.estimate) else "not finite"


def interval(found: Interval, sign: str = "") -> str:
    """`26.03 [25.91, 26.15]`, or `26.0` where there is no interval or no width to it; `sign` follows each number."""
    text, ends = rounded(found) + sign, found.ends
    if ends is None or ends[0] == ends[1]:
        return text
    low, high = (_fixed(end, _decimals(found)) for end in ends)
    return f"{text} [{low}{sign}, {high}{sign}]"


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
    if found.ends is None:
        return "one block: no interval"
    low, high = found.ends
    return f"{quantity(low, unit)} to {quantity(high, unit)}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
