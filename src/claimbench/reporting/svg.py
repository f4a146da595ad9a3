"""SVG text from a Matplotlib figure: the same bytes for the same figure, legible on light and on dark pages.

Text stays text. Colours are set for light pages; a style sheet inside the file replaces the neutral ones where the
reader's colour scheme is dark, which browsers honour for `<img>` as well. The figure has a background of its own, so
that it can be read even where page and scheme disagree.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from claimbench.reporting.markup import SHOWN, STEERING, clean, xml

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

PAPER = "#ffffff"
INK = "#1f2328"
MUTED = "#59636e"
GRID = "#d8dee4"

DARK = {PAPER: "#0d1117", INK: "#e6edf3", MUTED: "#9da7b3", GRID: "#30363d"}

WIDTH_IN = 7.6

SERIES = ("#2f7fe0", "#c9640c", "#2b9a4a", "#a05be0", "#d94b62", "#1d94a0", "#8f7a10", "#7d8590")
"""Mid-tones: at least 3:1 against both backgrounds."""

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"

SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "claimbench",
    "svg.id": None,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.formatter.useoffset": False,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
}


def _style_sheet() -> str:
    rules = [
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    ]
    return f"<style>@media (prefers-color-scheme: dark){{{''.join(rules)}}}</style>"


def write(figure: Figure, title: str, description: str) -> str:
    """The figure as SVG text, with a title and a description for those who cannot see it."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=metadata, facecolor=PAPER)
    text = buffer.getvalue()
    text = re.sub(r"(font(?:-family)?: [^;\"']*)'DejaVu Sans'[^;\"]*", rf"\1{FONT}", text)
    text = re.sub(r"<!DOCTYPE[^>]*>\s*", "", text)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    head = f'<title id="title">{xml(title)}</title>\n <desc id="desc">{xml(description)}</desc>\n {_style_sheet()}\n'
    opening = re.search(r"<svg [^>]*>", text)
    if opening is None:
        raise AssertionError("Matplotlib wrote an SVG without an <svg> element")
    start = opening.group()[:-1] + ' role="img" aria-labelledby="title desc">'
    return text[: opening.start()] + start + "\n " + head + text[opening.end() :].lstrip("\n")


def wrapped(label: str, width: int = 34, lines: int = 2) -> str:
    """`label` on at most `lines` lines, what is left of it an ellipsis; Markdown's code marks are dropped."""
    return "\n".join(textwrap.wrap(clean(label).replace("`", ""), width, max_lines=lines, placeholder=" …")) or " "


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """What the shapes mean, below the axes."""
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=4, handletextpad=0.5, columnspacing=1.6)


def draw(title: str, description: str, height_in: float, paint: Callable[[Figure], None]) -> str:
    """The SVG of what `paint` draws on an empty figure, in this project's style and no other's."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        paint(figure)
        for text in figure.findobj(Text):
            text.set_text(STEERING.sub(SHOWN, text.get_text()))
        return write(figure, title, description)
