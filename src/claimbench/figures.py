"""The report's figures: values in, SVG text out.

None needs colour to be read: rows are named, lines carry markers and their names, parts of a bar are hatched, and what is
not a measurement has a shape of its own (published: a diamond; ceiling: a bar across; failed: a cross).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from claimbench import svg
from claimbench.wording import Estimate, interval, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 7.6
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


class Bar(NamedTuple):
    """One row of a bar figure. Without an estimate, `note` says why there is none."""

    label: str
    estimate: Estimate | None = None
    note: str = ""
    published: float | None = None
    ceiling: float | None = None
    doubted: bool = False


class Point(NamedTuple):
    x: float | int | str
    estimate: Estimate | None
    note: str = ""


class Line(NamedTuple):
    label: str
    points: tuple[Point, ...]


class Panel(NamedTuple):
    title: str
    lines: tuple[Line, ...]


class Stack(NamedTuple):
    """Bytes of one cell: what it is made of, and the most that was seen; parts never add up to more than the peak."""

    label: str
    weights: float
    cache: float
    peak: float | None


def bars(
    title: str,
    description: str,
    unit: str,
    rows: Sequence[Bar],
    *,
    sign: str = "",
    reference: float | None = None,
    published_here: bool = False,
    published_unit: str = "",
    best_is_low: bool = False,
) -> str:
    """A bar a row, best measured first, with its interval; failures last.

    `published_here` draws published figures on the same axis, which is right for ratios; otherwise they stand in a panel of
    their own, on an axis of their own, because they are another machine's.
    """
    direction = 1 if best_is_low else -1
    ordered = sorted(
        rows, key=lambda row: (row.estimate is None, direction * row.estimate.value if row.estimate else 0)
    )
    beside = not published_here and any(row.published is not None for row in ordered)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(
            1, 2 if beside else 1, sharey=True, squeeze=False, width_ratios=[2, 1] if beside else [1]
        )[0]
        _bar_panel(panels[0], unit, ordered, sign, reference, published_here)
        if beside:
            _published_panel(panels[1], published_unit or f"published, {unit}", ordered)
        _legend(figure, _bar_handles(ordered, reference, published_here, beside))

    return _render(title, description, 0.31 * len(ordered) + 1.25, draw)


def _bar_panel(
    axes: Axes, unit: str, rows: Sequence[Bar], sign: str, reference: float | None, published_here: bool
) -> None:
    places = range(len(rows))
    values = [row.estimate.value if row.estimate else 0 for row in rows]
    axes.barh(places, values, height=0.56, color=svg.SERIES[0], alpha=0.45, edgecolor=svg.SERIES[0], linewidth=0.9)
    for place, row in zip(places, rows, strict=True):
        if row.estimate is not None:
            _whisker(axes, row.estimate, place)
            text = interval(row.estimate, sign) + (" ?" if row.doubted else "")
        else:
            text = row.note
        style = {} if row.estimate else {"fontstyle": "italic", "color": svg.MUTED}
        axes.annotate(
            text, (1, place), (4, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=8, **style
        )
        if published_here and row.published is not None:
            axes.plot(row.published, place, "D", ms=6, mfc=svg.PAPER, mec=svg.INK, mew=1.1, zorder=5)
        if row.ceiling is not None:
            axes.plot(row.ceiling, place, "|", ms=15, mec=svg.INK, mew=1.6, zorder=4)
    if reference is not None:
        axes.axvline(reference, color=svg.INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=3)
    _name_rows(axes, [row.label for row in rows])
    axes.set_xlim(left=0)
    axes.margins(x=0.06)
    axes.set_xlabel(unit)
    axes.xaxis.grid(True)
    axes.set_axisbelow(True)


def _published_panel(axes: Axes, unit: str, rows: Sequence[Bar]) -> None:
    for place, row in enumerate(rows):
        if row.published is not None:
            axes.plot([0, row.published], [place, place], color=svg.MUTED, linewidth=0.8)
            axes.plot(row.published, place, "D", ms=6, mfc=svg.PAPER, mec=svg.INK, mew=1.1, zorder=5)
            text = f"{row.published:,.4g}"
            axes.annotate(text, (row.published, place), (7, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, 1.35 * max(row.published for row in rows if row.published is not None))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit)
    axes.xaxis.grid(True)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=3)


def _whisker(axes: Axes, estimate: Estimate, place: float) -> None:
    if estimate.low is None or estimate.high is None:
        return
    axes.plot(
        [estimate.low, estimate.high], [place, place], color=svg.INK, linewidth=1.3, zorder=4, solid_capstyle="butt"
    )
    for end in (estimate.low, estimate.high):
        axes.plot([end, end], [place - 0.16, place + 0.16], color=svg.INK, linewidth=1.3, zorder=4)


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [_wrapped(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def _wrapped(label: str, width: int = 30, lines: int = 2) -> str:
    return "\n".join(
        textwrap.wrap(_typed(label), width, max_lines=lines, placeholder=" …", break_long_words=True) or [" "]
    )


def _typed(text: str) -> str:
    """`text` as it stands: Matplotlib would read `$` as mathematics."""
    return text.replace("$", r"\$")


def _bar_handles(rows: Sequence[Bar], reference: float | None, published_here: bool, beside: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = []
    if any(row.estimate and row.estimate.low is not None for row in rows):
        handles.append(Line2D([], [], color=svg.INK, marker="|", ms=6, linewidth=1.3, label="95 % interval"))
    if any(row.ceiling is not None for row in rows):
        handles.append(Line2D([], [], color=svg.INK, marker="|", ms=13, mew=1.6, linestyle="", label="ceiling here"))
    if any(row.published is not None for row in rows) and (published_here or beside):
        handles.append(
            Line2D([], [], marker="D", ms=6, mfc=svg.PAPER, mec=svg.INK, linestyle="", label="published, elsewhere")
        )
    if reference is not None:
        handles.append(
            Line2D([], [], color=svg.INK, linestyle=(0, (3, 2)), linewidth=0.9, label=f"no change ({reference:g}x)")
        )
    if any(row.doubted for row in rows):
        handles.append(Line2D([], [], linestyle="", marker="$?$", color=svg.INK, ms=6, label="doubted: see the table"))
    return handles


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
    place: Callable[[Any], float] = (lambda x: float(xs.index(x))) if words else float
    log_x = not words and min(xs) > 0 and max(xs) / min(xs) > 6

    def draw(figure: Figure) -> None:
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        names = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
        for axes, panel in zip(all_axes, panels, strict=True):
            axes.set_title(_typed(panel.title))
            if log_x:
                axes.set_xscale("log", base=2)
            if log_y:
                axes.set_yscale("log")
            _x_ticks(axes, xs, place)
            for line in panel.lines:
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
        _legend(figure, _curve_handles(panels))

    return _render(title, description, max(3.3, 0.24 * max(len(panel.lines) for panel in panels) + 1.5), draw)


def _sorted_xs(panels: Sequence[Panel]) -> list[Any]:
    seen = dict.fromkeys(point.x for panel in panels for line in panel.lines for point in line.points)
    return list(seen) if any(isinstance(x, str) for x in seen) else sorted(seen)


def _x_ticks(axes: Axes, xs: list[Any], place: Callable[[Any], float]) -> None:
    from matplotlib.ticker import NullLocator

    shown = xs if len(xs) <= 9 else xs[:: math.ceil(len(xs) / 9)]
    axes.set_xticks([place(x) for x in shown], [_wrapped(f"{x:g}" if not isinstance(x, str) else x, 14) for x in shown])
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


def _draw_line(axes: Axes, line: Line, index: int, place: Callable[[Any], float]) -> None:
    style = _style(index)
    good = [(place(point.x), point.estimate) for point in line.points if point.estimate is not None]
    axes.plot(
        [x for x, _ in good],
        [estimate.value for _, estimate in good],
        ms=5,
        linewidth=1.5,
        mec=svg.PAPER,
        mew=0.6,
        **style,
    )
    for x, estimate in good:
        if estimate.low is not None and estimate.high is not None:
            axes.plot([x, x], [estimate.low, estimate.high], color=style["color"], linewidth=1.3)
    if good:
        for point in line.points:
            if point.estimate is None and place(point.x) > good[-1][0]:
                x, y = place(point.x), good[-1][1].value
                axes.plot([good[-1][0], x], [y, y], color=style["color"], linewidth=1, linestyle=(0, (1, 2)))
                axes.plot(x, y, "x", color=style["color"], ms=7, mew=1.8)
                break


def _name_lines(axes: Axes, lines: Sequence[Line], names: list[str], place: Callable[[Any], float]) -> None:
    """Each line's marker and name right of the axis, at the height of the line's end, apart where they would overlap."""
    ends = [(good[-1].value, line.label) for line in lines if (good := [p.estimate for p in line.points if p.estimate])]
    if not ends:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    x = place(lines[0].points[-1].x)
    heights = sorted((float(to_axes.transform((x, value))[1]), label) for value, label in ends)
    figure_height_in = axes.get_figure(root=True).get_size_inches()[1]  # type: ignore[union-attr]
    spread = _apart([height for height, _ in heights], 0.19 / (float(figure_height_in) - 1.1))
    for (height, label), shown in zip(heights, spread, strict=True):
        style = _style(names.index(label))
        axes.plot(
            [1.0, 1.05], [height, shown], color=style["color"], linewidth=0.8, transform=axes.transAxes, clip_on=False
        )
        axes.plot(1.07, shown, style["marker"], color=style["color"], ms=5, transform=axes.transAxes, clip_on=False)
        text = textwrap.shorten(_typed(label), 34, placeholder=" …")
        axes.annotate(text, (1.07, shown), (6, 0), "axes fraction", "offset points", va="center", fontsize=8)


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


def _curve_handles(panels: Sequence[Panel]) -> list[Any]:
    from matplotlib.lines import Line2D

    points = [point for panel in panels for line in panel.lines for point in line.points]
    handles = []
    if any(point.estimate and point.estimate.low is not None for point in points):
        handles.append(Line2D([], [], color=svg.INK, marker="|", ms=9, linestyle="", mew=1.3, label="95 % interval"))
    notes = sorted({point.note for point in points if point.estimate is None and point.note})
    if notes:
        handles.append(Line2D([], [], color=svg.INK, marker="x", ms=7, mew=1.8, linestyle="", label=" or ".join(notes)))
    return handles


def memory(title: str, description: str, rows: Sequence[Stack], capacity: float | None = None) -> str:
    """What each cell keeps in memory, in GB (1e9 bytes), largest first: weights, key-value cache, and the rest of the peak."""
    ordered = sorted(rows, key=lambda row: -(row.peak or row.weights + row.cache))

    def draw(figure: Figure) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        axes = figure.subplots()
        parts = (
            ("weights", [row.weights for row in ordered], {"facecolor": svg.SERIES[0], "alpha": 0.55, "hatch": "////"}),
            (
                "key-value cache",
                [row.cache for row in ordered],
                {"facecolor": svg.SERIES[1], "alpha": 0.6, "hatch": "...."},
            ),
            (
                "the rest of the peak",
                [max(0, (row.peak or 0) - row.weights - row.cache) for row in ordered],
                {"facecolor": "none"},
            ),
        )
        lefts = [0.0] * len(ordered)
        handles: list[Any] = []
        for name, sizes, style in parts:
            axes.barh(
                range(len(ordered)),
                [size / 1e9 for size in sizes],
                left=lefts,
                height=0.56,
                edgecolor=svg.INK,
                linewidth=0.8,
                **style,
            )
            lefts = [left + size / 1e9 for left, size in zip(lefts, sizes, strict=True)]
            handles.append(Patch(edgecolor=svg.INK, linewidth=0.8, label=name, **style))
        for place, row in enumerate(ordered):
            text = f"{number((row.peak or row.weights + row.cache) / 1e9)} GB" + ("" if row.peak else " (no peak)")
            axes.annotate(text, (1, place), (4, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=8)
        if capacity and max(lefts) > 0.25 * capacity / 1e9:
            axes.axvline(capacity / 1e9, color=svg.INK, linewidth=0.9, linestyle=(0, (3, 2)))
            handles.append(
                Line2D([], [], color=svg.INK, linestyle=(0, (3, 2)), linewidth=0.9, label="memory of this device")
            )
        _name_rows(axes, [row.label for row in ordered])
        axes.set_xlim(left=0)
        axes.set_xlabel("GB (1e9 bytes)")
        axes.xaxis.grid(True)
        axes.set_axisbelow(True)
        _legend(figure, handles)

    return _render(title, description, 0.31 * len(ordered) + 1.25, draw)


def roofline(title: str, description: str, rows: Sequence[Bar]) -> str:
    """The share of its ceiling that each cell reaches, best first: a dot on a line from 0 to 100 %."""
    ordered = sorted(rows, key=lambda row: -(row.estimate.value if row.estimate else 0))

    def draw(figure: Figure) -> None:
        from matplotlib.lines import Line2D

        axes = figure.subplots()
        for place, row in enumerate(ordered):
            if row.estimate is None:
                continue
            percents = row.estimate.scaled(100)
            axes.plot([0, percents.value], [place, place], color=svg.SERIES[0], linewidth=1.6, solid_capstyle="butt")
            _whisker(axes, percents, place)
            axes.plot(percents.value, place, "o", ms=6, mfc=svg.SERIES[0], mec=svg.PAPER, mew=0.8, zorder=5)
            text = percent(row.estimate.value) + (" ?" if row.doubted else "")
            axes.annotate(text, (1, place), (4, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=8)
        axes.axvline(100, color=svg.INK, linewidth=1.6)
        _name_rows(axes, [row.label for row in ordered])
        highest = max((row.estimate.value for row in ordered if row.estimate), default=0)
        axes.set_xlim(0, max(104, 110 * highest))
        axes.set_xlabel("% of the ceiling")
        axes.xaxis.grid(True)
        axes.set_axisbelow(True)
        handles = [
            Line2D([], [], color=svg.INK, marker="|", ms=13, mew=1.6, linestyle="", label="ceiling of this machine")
        ]
        _legend(figure, handles + _bar_handles([row._replace(ceiling=None) for row in ordered], None, False, False))

    return _render(title, description, 0.29 * len(ordered) + 1.25, draw)


def _legend(figure: Figure, handles: list[Any]) -> None:
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=4, handletextpad=0.5, columnspacing=1.6)


def _render(title: str, description: str, height_in: float, draw: Callable[[Figure], None]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(svg.SETTINGS)
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(figure)
        return svg.write(figure, title, description)
