"""Figures of a number against a swept value: lines told apart by marker and by the name at their end, not by colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from claimbench.reporting import svg
from claimbench.schema.interval import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
NAME_WIDTH = 26
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


Swept = float | int | str
Place = Callable[[Swept], float]
"""Where a swept value stands on its axis."""


class Point(NamedTuple):
    x: Swept
    interval: Interval | None
    note: str = ""


class Line(NamedTuple):
    label: str
    points: tuple[Point, ...]


class Panel(NamedTuple):
    title: str
    lines: tuple[Line, ...]


def curves(
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    panels: Sequence[Panel],
    *,
    log_y: bool = False,
) -> str:
    """A line a series, named at its end; a cross where a series stops because a cell failed.

    Swept numbers that span more than a factor of six stand on a logarithmic axis; words stand side by side.
    """
    xs = _sorted_xs(panels)
    words = any(isinstance(x, str) for x in xs)
    place: Place = (lambda x: float(xs.index(x))) if words else float
    places = [place(x) for x in xs]
    log_x = not words and min(places) > 0 and max(places) / min(places) > 6

    def paint(figure: Figure) -> None:
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        drawn = [line for panel in panels for line in panel.lines if any(point.interval for point in line.points)]
        names = list(dict.fromkeys(line.label for line in drawn))
        for axes, panel in zip(all_axes, panels, strict=True):
            axes.set_title(panel.title)
            if log_x:
                axes.set_xscale("log", base=2)
            if log_y:
                axes.set_yscale("log")
            _x_ticks(axes, xs, place)
            for line in filter(drawn.__contains__, panel.lines):
                _draw_line(axes, line, names.index(line.label), place)
            axes.set_xlabel(x_label)
            axes.yaxis.grid(True)
            axes.set_axisbelow(True)
            if not log_y:
                axes.set_ylim(bottom=0)
        all_axes[0].set_ylabel(y_label)
        _plain_ticks(all_axes[0], log_y)
        for axes, panel in zip(all_axes, panels, strict=True):
            _name_lines(axes, panel.lines, names, place)
        svg.legend(figure, _curve_handles(panels))

    most = max(len(panel.lines) for panel in panels)
    each_in = _name_height_in([line.label for panel in panels for line in panel.lines]) + 0.04
    return svg.draw(title, description, max(3.3, each_in * most + 1.5), paint)


def _sorted_xs(panels: Sequence[Panel]) -> list[Swept]:
    seen = dict.fromkeys(point.x for panel in panels for line in panel.lines for point in line.points)
    return list(seen) if any(isinstance(x, str) for x in seen) else sorted(seen, key=float)


def _x_ticks(axes: Axes, xs: list[Swept], place: Place) -> None:
    from matplotlib.ticker import NullLocator

    shown = xs if len(xs) <= 9 else xs[:: math.ceil(len(xs) / 9)]
    axes.set_xticks(
        [place(x) for x in shown], [svg.wrapped(f"{x:g}" if not isinstance(x, str) else x, 14) for x in shown]
    )
    axes.xaxis.set_minor_locator(NullLocator())


def _plain_ticks(axes: Axes, log_y: bool) -> None:
    """1, 2, 5, 10, ... in plain numbers instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if log_y:
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if high / low < 300 else (1,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))


def _style(index: int) -> dict[str, Any]:
    colour = svg.SERIES[index % len(svg.SERIES)]
    return {
        "color": colour,
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[(index // len(MARKERS)) % len(DASHES)],
    }


def _draw_line(axes: Axes, line: Line, index: int, place: Place) -> None:
    style = _style(index)
    good = [(place(point.x), point.interval) for point in line.points if point.interval is not None]
    axes.plot(
        [x for x, _ in good],
        [found.estimate for _, found in good],
        ms=5,
        linewidth=1.5,
        mec=svg.PAPER,
        mew=0.6,
        **style,
    )
    for x, found in good:
        if found.low is not None and found.high is not None:
            axes.plot([x, x], [found.low, found.high], color=style["color"], linewidth=1.3)
    if good:
        for point in line.points:
            if point.interval is None and place(point.x) > good[-1][0]:
                x, y = place(point.x), good[-1][1].estimate
                axes.plot([good[-1][0], x], [y, y], color=style["color"], linewidth=1, linestyle=(0, (1, 2)))
                axes.plot(x, y, "x", color=style["color"], ms=7, mew=1.8)
                break


def _name_lines(axes: Axes, lines: Sequence[Line], names: list[str], place: Place) -> None:
    """Each line's marker and name right of the axis, at the height of its end, apart where they would overlap."""
    ends = [
        (good[-1].estimate, line.label) for line in lines if (good := [p.interval for p in line.points if p.interval])
    ]
    if not ends:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    x = place(lines[0].points[-1].x)
    heights = sorted((float(to_axes.transform((x, value))[1]), label) for value, label in ends)
    figure_height_in = axes.get_figure(root=True).get_size_inches()[1]  # type: ignore[union-attr]
    gap = _name_height_in(names) / (float(figure_height_in) - 1.1)
    spread = _apart([height for height, _ in heights], gap)
    for (height, label), shown in zip(heights, spread, strict=True):
        style = _style(names.index(label))
        outside: dict[str, Any] = {"color": style["color"], "transform": axes.transAxes, "clip_on": False}
        axes.plot([1.0, 1.05], [height, shown], linewidth=0.8, **outside)
        axes.plot(1.07, shown, style["marker"], ms=5, **outside)
        text = svg.wrapped(label, NAME_WIDTH)
        axes.annotate(text, (1.07, shown), (6, 0), "axes fraction", "offset points", va="center", fontsize=8)


def _name_height_in(names: Sequence[str]) -> float:
    return 0.33 if any("\n" in svg.wrapped(name, NAME_WIDTH) for name in names) else 0.19


def _apart(heights: list[float], gap: float) -> list[float]:
    """`heights`, ascending, moved as little as it takes for neighbours to be `gap` apart (pool adjacent violators).

    None is above the top of the axis, 1, unless there are more than fit.
    """
    pools: list[list[float]] = []  # [sum, count] of heights less what their place in the stack takes
    for index, height in enumerate(heights):
        pools.append([height - index * gap, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, members = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += members
    flat = [total / members for total, members in pools for _ in range(int(members))]
    last = len(heights) - 1
    return [min(base + index * gap, 1 - (last - index) * gap) for index, base in enumerate(flat)]


def _curve_handles(panels: Sequence[Panel]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    points = [point for panel in panels for line in panel.lines for point in line.points]
    handles = []
    if any(point.interval and point.interval.low is not None for point in points):
        handles.append(Line2D([], [], color=svg.INK, marker="|", ms=9, linestyle="", mew=1.3, label="95 % interval"))
    notes = sorted({point.note for point in points if point.interval is None and point.note})
    if notes:
        handles.append(Line2D([], [], color=svg.INK, marker="x", ms=7, mew=1.8, linestyle="", label=" or ".join(notes)))
    return handles
