"""Figures with a row a cell: values in, SVG text out.

None needs colour to be read: rows are named, parts of a bar are hatched, and what is not a measurement has a shape of
its own (published: a diamond; ceiling: a bar across).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from claimbench.formatting import interval, number, percent
from claimbench.reporting import svg
from claimbench.schema.interval import Interval

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


class Bar(NamedTuple):
    """One row of a bar figure. Without an interval, `note` says why there is none."""

    label: str
    interval: Interval | None = None
    note: str = ""
    published: float | None = None
    ceiling: float | None = None
    doubted: bool = False


class Stack(NamedTuple):
    """Bytes of one cell: what is known to be in its memory, and the most that was seen."""

    label: str
    weights: float
    cache: float
    peak: float | None


LABEL_WIDTH, LABEL_LINES = 34, 3
INTERVAL: dict[str, Any] = {"color": svg.INK, "linewidth": 1.3, "zorder": 4}
PUBLISHED: dict[str, Any] = {"marker": "D", "ms": 6, "mfc": svg.PAPER, "mec": svg.INK, "mew": 1.1, "linestyle": ""}
CEILING: dict[str, Any] = {"color": svg.INK, "marker": "|", "ms": 15, "mew": 1.6, "linestyle": "", "zorder": 4}
DASHED: dict[str, Any] = {"color": svg.INK, "linewidth": 0.9, "linestyle": (0, (3, 2))}


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

    `published_here` draws published figures on the same axis, which is right for ratios; otherwise they stand in a
    panel of their own, on an axis of their own, because they are another machine's.
    """
    ordered = sorted(rows, key=lambda row: _best_first(row, 1 if best_is_low else -1))
    beside = not published_here and any(row.published is not None for row in ordered)

    def paint(figure: Figure) -> None:
        widths = [2, 1] if beside else [1]
        panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
        _bar_panel(panels[0], unit, ordered, sign, reference, published_here)
        if beside:
            _published_panel(panels[1], published_unit or f"published, {unit}", ordered)
        svg.legend(figure, _handles(ordered, reference, published=published_here or beside))

    return svg.draw(title, description, _height_in(ordered), paint)


def _height_in(rows: Sequence[Bar] | Sequence[Stack]) -> float:
    lines = max((svg.wrapped(row.label, LABEL_WIDTH, LABEL_LINES).count("\n") + 1 for row in rows), default=1)
    return (0.31, 0.35, 0.46)[lines - 1] * len(rows) + 1.25


def _best_first(row: Bar, direction: int) -> tuple[bool, float]:
    return row.interval is None, direction * row.interval.estimate if row.interval else 0


def _bar_panel(
    axes: Axes, unit: str, rows: Sequence[Bar], sign: str, reference: float | None, published_here: bool
) -> None:
    values = [row.interval.estimate if row.interval else 0 for row in rows]
    blue = svg.SERIES[0]
    axes.barh(range(len(rows)), values, height=0.56, color=blue, alpha=0.45, edgecolor=blue, linewidth=0.9)
    for place, row in enumerate(rows):
        if row.interval is None:
            _beside(axes, place, row.note, fontstyle="italic", color=svg.MUTED)
        else:
            _whisker(axes, row.interval, place)
            _beside(axes, place, interval(row.interval, sign) + (" ?" if row.doubted else ""))
        if published_here and row.published is not None:
            axes.plot(row.published, place, zorder=5, **PUBLISHED)
        if row.ceiling is not None:
            axes.plot(row.ceiling, place, **CEILING)
    if reference is not None:
        axes.axvline(reference, zorder=3, **DASHED)
    _row_axes(axes, [row.label for row in rows], unit)
    axes.set_xlim(left=0)


def _published_panel(axes: Axes, unit: str, rows: Sequence[Bar]) -> None:
    for place, row in enumerate(rows):
        if row.published is not None:
            axes.plot([0, row.published], [place, place], color=svg.MUTED, linewidth=0.8)
            axes.plot(row.published, place, zorder=5, **PUBLISHED)
            text = f"{row.published:,.4g}"
            axes.annotate(text, (row.published, place), (7, 0), textcoords="offset points", va="center", fontsize=8)
    _row_axes(axes, [row.label for row in rows], unit)
    axes.set_xlim(0, 1.35 * max(row.published for row in rows if row.published is not None))
    axes.tick_params(axis="y", labelleft=False)
    axes.locator_params(axis="x", nbins=3)


def _beside(axes: Axes, place: float, text: str, **style: Any) -> None:
    """`text` right of the axes, on row `place`."""
    where = ("axes fraction", "data")
    axes.annotate(text, (1, place), (4, 0), where, "offset points", va="center", fontsize=8, **style)


def _whisker(axes: Axes, found: Interval, place: float) -> None:
    if found.ends is None:
        return
    axes.plot(found.ends, [place, place], solid_capstyle="butt", **INTERVAL)
    for end in found.ends:
        axes.plot([end, end], [place - 0.16, place + 0.16], **INTERVAL)


def _row_axes(axes: Axes, labels: Sequence[str], unit: str) -> None:
    axes.set_yticks(range(len(labels)), [svg.wrapped(label, LABEL_WIDTH, LABEL_LINES) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.06)
    axes.set_xlabel(svg.wrapped(unit, 90))
    axes.xaxis.grid(True)
    axes.set_axisbelow(True)


def _handles(rows: Sequence[Bar], reference: float | None, *, published: bool) -> list[Line2D]:
    from matplotlib.lines import Line2D

    handles = []
    if any(row.interval and row.interval.low is not None for row in rows):
        handles.append(Line2D([], [], marker="|", ms=6, label="95 % interval", **INTERVAL))
    if any(row.ceiling is not None for row in rows):
        handles.append(Line2D([], [], label="ceiling here", **CEILING))
    if published and any(row.published is not None for row in rows):
        handles.append(Line2D([], [], label="published, elsewhere", **PUBLISHED))
    if reference is not None:
        handles.append(Line2D([], [], label=f"no change ({reference:g}x)", **DASHED))
    if any(row.doubted for row in rows):
        handles.append(Line2D([], [], linestyle="", label="? doubted: see the table"))
    return handles


def memory(title: str, description: str, rows: Sequence[Stack], capacity: float | None = None) -> str:
    """What each cell keeps in memory, in GB (1e9 bytes), largest first: weights, key-value cache, the rest of the peak.

    `capacity` is the device's own memory, drawn where it would not dwarf the bars.
    """
    ordered = sorted(rows, key=lambda row: -(row.peak or row.weights + row.cache))

    def paint(figure: Figure) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        axes = figure.subplots()
        rest = [max(0, (row.peak or 0) - row.weights - row.cache) for row in ordered]
        parts: list[tuple[str, list[float], dict[str, Any]]] = [
            ("weights", [row.weights for row in ordered], {"fc": svg.SERIES[0], "alpha": 0.55, "hatch": "////"}),
            (
                "key-value cache",
                [row.cache for row in ordered],
                {"fc": svg.SERIES[1], "alpha": 0.6, "hatch": "\\\\\\\\"},
            ),
            ("the rest of the peak", rest, {"fc": "none"}),
        ]
        ends = [0.0] * len(ordered)
        handles: list[Artist] = []
        for name, sizes, style in parts:
            widths = [size / 1e9 for size in sizes]
            axes.barh(range(len(ordered)), widths, left=ends, height=0.56, ec=svg.INK, linewidth=0.8, **style)
            ends = [end + width for end, width in zip(ends, widths, strict=True)]
            handles.append(Patch(ec=svg.INK, linewidth=0.8, label=name, **style))
        for place, row in enumerate(ordered):
            size = number((row.peak or row.weights + row.cache) / 1e9)
            _beside(axes, place, f"{size} GB" + ("" if row.peak else " (no peak)"))
        if capacity and max(ends) > 0.25 * capacity / 1e9:
            axes.axvline(capacity / 1e9, **DASHED)
            handles.append(Line2D([], [], label="memory of this device", **DASHED))
        _row_axes(axes, [row.label for row in ordered], "GB (1e9 bytes)")
        axes.set_xlim(left=0)
        svg.legend(figure, handles)

    return svg.draw(title, description, _height_in(ordered), paint)


def roofline(title: str, description: str, rows: Sequence[Bar]) -> str:
    """The share of its ceiling that each cell reaches, best first: a dot on a line from 0 to 100 %."""
    ordered = sorted((row for row in rows if row.interval), key=lambda row: _best_first(row, -1))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for place, row in enumerate(ordered):
            share = (row.interval or Interval(0)).scaled(100)
            axes.plot([0, share.estimate], [place, place], color=svg.SERIES[0], linewidth=1.6, solid_capstyle="butt")
            _whisker(axes, share, place)
            axes.plot(share.estimate, place, "o", ms=6, mfc=svg.SERIES[0], mec=svg.PAPER, mew=0.8, zorder=5)
            _beside(axes, place, percent(share.estimate / 100) + (" ?" if row.doubted else ""))
        axes.axvline(100, color=svg.INK, linewidth=1.6)
        _row_axes(axes, [row.label for row in ordered], "% of the ceiling")
        highest = max((row.interval.estimate for row in ordered if row.interval), default=0)
        axes.set_xlim(0, max(104, 110 * highest))
        ceiling = Bar("", ceiling=100)
        svg.legend(figure, _handles([*(row._replace(ceiling=None) for row in ordered), ceiling], None, published=False))

    return svg.draw(title, description, _height_in(ordered), paint)
