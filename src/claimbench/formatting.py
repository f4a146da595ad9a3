"""Numbers and names as a reader sees them: rounded to what their interval supports, with their unit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from claimbench.schema.interval import Interval

NUMBER = re.compile(r"\d+(?:\.\d+)?%?")
BYTE_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def _magnitude(value: float) -> int:
    """The power of ten of the first digit that counts: 2 for 345, -1 for 0.345, 0 for 0."""
    return math.floor(math.log10(abs(value))) if value else 0


def significant(value: float, digits: int) -> float:
    """`value` rounded to `digits` significant digits."""
    return round(value, digits - 1 - _magnitude(value)) if math.isfinite(value) else value


def _rounded(value: float, decimals: int, zeros: bool = True) -> str:
    """The one rule of rounding: `value` to `decimals` places, with commas and without a minus before zero.

    Negative `decimals` round the whole number. Without `zeros`, those at the end of the decimals are left out.
    """
    if not math.isfinite(value):
        return "not finite"
    text = f"{round(value, decimals) + 0.0:,.{max(decimals, 0)}f}"
    return text if zeros or "." not in text else text.rstrip("0").rstrip(".")


def _decimals(found: Interval) -> int:
    """Decimal places that half the interval's width supports: its first digit, and its second behind a 1 or a 2.

    At least two and at most four digits of the estimate are shown; three where there is no interval or no width to it.
    """
    if not math.isfinite(found.estimate):
        return 0
    magnitude = _magnitude(found.estimate)
    at_least, at_most = 1 - magnitude, 3 - magnitude
    ends = found.ends
    if ends is None or ends[0] == ends[1]:
        return 2 - magnitude
    half = (ends[1] - ends[0]) / 2
    if not math.isfinite(half):
        return at_most
    digits = 2 if half < 3 * 10.0 ** _magnitude(half) else 1
    return min(max(digits - 1 - _magnitude(half), at_least), at_most)


def number(value: float) -> str:
    """`26.0`: what is measured or computed, to three digits, where nothing is known of its interval.

    For tables and figures, whose head says the unit. Zeros at the end are digits that are known. See `quantity`.
    """
    return rounded(Interval(value))


def rounded(found: Interval) -> str:
    """`26.03`, without its interval but rounded to what the interval supports."""
    return _rounded(found.estimate, _decimals(found))


def quantity(value: float, unit: str = "") -> str:
    """`14.48 GB`, `0.99`, `12,345 tok/s`: a number inside a sentence, with its unit.

    Also for what was published or asked for: nothing says how many of its digits are known, so that 12 ms stay `12 ms`
    and every digit before the point is shown. Three digits that count, two decimals below 10, four digits of bytes,
    whose MB and GB are powers of ten. See `number`.
    """
    if not math.isfinite(value):
        return "not finite"
    if unit == "B":
        name, size = next(((name, size) for name, size in BYTE_UNITS if abs(value) >= size), ("B", 1.0))
        return f"{_rounded(value / size, 3 - _magnitude(value / size), zeros=False)} {name}"
    smallest = 0.995 if unit else 0.095  # a ratio of 0.99 has two decimals, a time of 0.021 ms two digits
    if smallest <= abs(value) < 10:
        text = _rounded(value, 2)
    elif abs(value) < 1000:
        text = _rounded(value, 2 - _magnitude(value), zeros=False)
    else:
        text = _rounded(value, 0)
    return f"{text} {unit}".rstrip()


def interval(found: Interval, sign: str = "") -> str:
    """`26.03 [25.91, 26.15]`, or `26.0` where there is no interval or no width to it; `sign` follows each number."""
    text, ends = rounded(found) + sign, found.ends
    if ends is None or ends[0] == ends[1]:
        return text
    low, high = (_rounded(end, _decimals(found)) for end in ends)
    return f"{text} [{low}{sign}, {high}{sign}]"


def percent(fraction: float) -> str:
    """`68 %`, `4.2 %`, `2 %`, `0.31 %`."""
    return f"{_rounded(100 * fraction, 0) if abs(fraction) >= 0.1 else f'{100 * fraction:.2g}'} %"


def slug(text: str) -> str:
    """A file name, or an anchor, made of `text`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def count(number_of: int, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{number_of} {noun}" if number_of == 1 else f"{number_of} {noun}s"


def with_ranges(sentences: Iterable[str]) -> tuple[str, ...]:
    """Each sentence once; those that differ in their numbers alone as one, "took 46% to 53% of the cores"."""
    alike: dict[tuple[str, ...], list[list[str]]] = {}
    for sentence in dict.fromkeys(sentences):
        alike.setdefault(tuple(NUMBER.split(sentence)), []).append(NUMBER.findall(sentence))
    return tuple(
        "".join(part for pair in zip(words, [*map(_ends, zip(*found, strict=True)), ""], strict=True) for part in pair)
        for words, found in alike.items()
    )


def _ends(values: Iterable[str]) -> str:
    low, *_, high = sorted(values, key=lambda value: float(value.rstrip("%"))) * 2
    return low if low == high else f"{low} to {high}"


def power(value: float) -> str:
    """An exponent with two decimals, and no minus before a zero."""
    return _rounded(value, 2)


def range_text(found: Interval, unit: str = "") -> str:
    if found.ends is None:
        return "no interval"
    low, high = found.ends
    return f"{quantity(low, unit)} to {quantity(high, unit)}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
