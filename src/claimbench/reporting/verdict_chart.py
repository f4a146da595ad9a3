"""What a reader sees first: each claim's ratio with its interval, on one logarithmic axis, a row a claim."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from claimbench.formatting import interval
from claimbench.reporting import svg
from claimbench.schema.interval import Interval
from claimbench.schema.verdicts import CheckVerdict, ClaimVerdict, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MARKERS: dict[Verdict, dict[str, Any]] = {
    Verdict.SUPPORTED: {"marker": "o", "mfc": svg.SERIES[2], "mec": svg.INK},
    Verdict.REFUTED: {"marker": "X", "mfc": svg.SERIES[4], "mec": svg.INK},
    Verdict.BOUNDED: {"marker": "s", "mfc": svg.PAPER, "mec": svg.INK},
    Verdict.UNDECIDED: {"marker": "o", "mfc": svg.PAPER, "mec": svg.INK},
}
"""A shape of its own for each, since not everyone sees colours."""
LABEL_WIDTH, LABEL_LINES = 47, 3
ROW_IN, HEAD_ROWS = 0.515, 1.1
"""As high as a row of the table that it stands beside, at the width that the template gives it."""


class Dot(NamedTuple):
    """One row: a claim, and of the check that decides how it reads the ratio, if that is one."""

    label: str
    verdict: Verdict
    ratio: Interval | None
    shown: str
    """In words, where there is no ratio to draw."""


def headline(claim: ClaimVerdict) -> CheckVerdict | None:
    """The check that a claim is told by: the first ratio of those that share its verdict, else of all."""
    of_verdict = [check for check in claim.checks if check.verdict == claim.verdict] or list(claim.checks)
    ratios = [check for check in of_verdict if check.kind == "ratio" and check.estimate is not None]
    return next(iter([*ratios, *of_verdict]), None)


def ratio_of(check: CheckVerdict | None) -> Interval | None:
    """Where it can stand on a logarithmic axis."""
    if check is None or check.kind != "ratio" or not check.estimate or check.estimate <= 0:
        return None
    found = Interval(check.estimate, check.low, check.high)
    return found if found.ends is None or found.ends[0] > 0 else None


def is_worth_drawing(dots: Iterable[Dot]) -> bool:
    return any(dot.ratio for dot in dots)


def draw(title: str, description: str, dots: Sequence[Dot]) -> str:
    """The figure of `dots`, first one on top; at least one of them has a ratio."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for place, dot in enumerate(dots):
            _row(axes, place, dot)
        axes.axvline(1, color=svg.INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
        labels = [svg.wrapped(dot.label, LABEL_WIDTH, LABEL_LINES) for dot in dots]
        axes.set_yticks(range(len(dots)), labels, fontsize=10.5)
        axes.set_ylim(len(dots) - 0.4, -HEAD_ROWS)
        axes.tick_params(axis="y", length=0)
        _axis_of_ratios(axes, dots)
        svg.legend(figure, _handles(dots))

    return svg.draw(title, description, ROW_IN * (len(dots) + 0.5) + 0.9, paint)


def _row(axes: Axes, place: int, dot: Dot) -> None:
    if dot.ratio is None:
        axes.annotate(
            dot.shown, (1, place), (6, 0), textcoords="offset points", va="center", fontsize=9, color=svg.MUTED
        )
        return
    if dot.ratio.ends:
        axes.plot(dot.ratio.ends, [place, place], color=svg.INK, linewidth=1.6, solid_capstyle="butt", zorder=2)
    axes.plot(dot.ratio.estimate, place, linestyle="", ms=8, mew=1.0, zorder=3, **MARKERS[dot.verdict])


def _axis_of_ratios(axes: Axes, dots: Sequence[Dot]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    known = [dot.ratio for dot in dots if dot.ratio]
    ends = [end for ratio in known for end in (ratio.ends or (ratio.estimate, ratio.estimate))]
    low, high = min(1 / 1.1, *ends), max(1.1, *ends)
    axes.set_xscale("log")
    axes.set_xlim(low / (high / low) ** 0.04, high * (high / low) ** 0.04)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.tick_params(axis="x", labelsize=9)
    axes.grid(True, axis="both")
    axes.set_axisbelow(True)


def _handles(dots: Sequence[Dot]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    seen = [verdict for verdict in MARKERS if any(dot.verdict == verdict and dot.ratio for dot in dots)]
    return [Line2D([], [], linestyle="", ms=8, label=verdict, **MARKERS[verdict]) for verdict in seen]


def described(dots: Iterable[Dot]) -> str:
    """The same in words."""
    found = {dot: f"{dot.verdict}, {interval(dot.ratio, 'x')}" if dot.ratio else dot.shown for dot in dots}
    parts = [f"{dot.label}: {words}" for dot, words in found.items()]
    return "; ".join(parts) + "."
