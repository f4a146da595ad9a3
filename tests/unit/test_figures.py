"""The figures: readable as text, in light and dark, without colour; the same bytes each time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import pairwise

import pytest

from claimbench.reporting import svg
from claimbench.reporting.bar_charts import Bar, Stack, bars, memory, roofline
from claimbench.reporting.line_charts import Line, Panel, Point, _apart, curves
from claimbench.schema.interval import Interval

SPACE = "{http://www.w3.org/2000/svg}"

ROWS = [
    Bar("slow", Interval(4.84, 4.8, 4.9), published=5.0),
    Bar("fast", Interval(26.03, 25.9, 26.2), published=30.0, ceiling=42.0, doubted=True),
    Bar("gone", None, "out of memory", published=20.0),
]
LINES = (
    Line(
        "one",
        (
            Point(1, Interval(10, 9, 11)),
            Point(8, Interval(11, 10, 12)),
            Point(32, None, "out of memory"),
        ),
    ),
    Line(
        "two",
        (
            Point(1, Interval(20, 19, 21)),
            Point(8, Interval(11.1, 10, 12)),
            Point(32, Interval(12, 11, 13)),
        ),
    ),
)

DRAWINGS: dict[str, Callable[[], str]] = {
    "bars": lambda: bars("title", "description", "tok/s", ROWS),
    "ratios": lambda: bars("title", "description", "x", ROWS, sign="x", reference=1.0, published_here=True),
    "one bar": lambda: bars("title", "description", "tok/s", [Bar("only", Interval(3.2))]),
    "no bar": lambda: bars("title", "description", "tok/s", [Bar("only", None, "unavailable")]),
    "thirty bars": lambda: bars(
        "t", "d", "tok/s", [Bar(f"a long name, number {i} of 30", Interval(i + 1)) for i in range(30)]
    ),
    "curves": lambda: curves("title", "description", "batch", "ms", [Panel("", LINES)]),
    "two panels": lambda: curves("t", "d", "batch", "ms", [Panel("here", LINES), Panel("there", LINES)], log_y=True),
    "one point": lambda: curves("t", "d", "batch", "ms", [Panel("", (Line("a", (Point(1, Interval(3)),)),))]),
    "words": lambda: curves(
        "t",
        "d",
        "dtype",
        "ms",
        [Panel("", (Line("a", (Point("float32", Interval(3)), Point("bfloat16", Interval(2)))),))],
    ),
    "memory": lambda: memory("title", "description", [Stack("a", 5e9, 1e9, 8e9), Stack("b", 2e9, 0, None)], 16e9),
    "roofline": lambda: roofline("title", "description", [Bar("a", Interval(0.6, 0.5, 0.7)), Bar("b", Interval(1.2))]),
}


@pytest.fixture(params=sorted(DRAWINGS))
def drawing(request: pytest.FixtureRequest) -> str:
    return DRAWINGS[request.param]()


def texts(drawing: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(drawing).iter(f"{SPACE}text")]  # noqa: S314


@pytest.mark.parametrize("name", sorted(DRAWINGS))
def test_the_same_figure_gives_the_same_bytes(name: str) -> None:
    assert DRAWINGS[name]() == DRAWINGS[name]()


def test_nothing_of_the_day_or_the_machine_is_in_it(drawing: str) -> None:
    assert "<metadata>" not in drawing
    assert not re.search(r"\b20\d\d-\d\d-\d\d", drawing)


def test_it_has_a_title_a_description_and_text(drawing: str) -> None:
    root = ElementTree.fromstring(drawing)  # noqa: S314 - drawn by this very test
    assert root.get("role") == "img"
    assert root.findtext(f"{SPACE}title")
    assert root.findtext(f"{SPACE}desc")
    assert texts(drawing)


def test_text_has_a_font_that_every_reader_has(drawing: str) -> None:
    fonts = re.findall(r'style="[^"]*font(?:-family)?: ([^";]*)', drawing)
    assert fonts
    assert all(font.endswith("sans-serif") for font in fonts)
    assert "DejaVu" not in drawing


def test_every_neutral_colour_turns_in_the_dark(drawing: str) -> None:
    painted = re.sub(r"<style>.*?</style>", "", drawing, flags=re.DOTALL)
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", painted))
    assert used <= set(svg.DARK) | set(svg.SERIES)
    sheet = "".join(re.findall(r"@media \(prefers-color-scheme: dark\)\{.*?\}\}", drawing))
    for colour in used & set(svg.DARK):
        assert f'[style*="fill: {colour}"]{{fill:{svg.DARK[colour]}!important}}' in sheet
        assert f'[style*="stroke: {colour}"]{{stroke:{svg.DARK[colour]}!important}}' in sheet


def test_text_without_a_colour_of_its_own_is_not_left_black(drawing: str) -> None:
    root = ElementTree.fromstring(drawing)  # noqa: S314 - drawn by this very test
    for node in root.iter(f"{SPACE}text"):
        assert "fill: #" in (node.get("style") or ""), ElementTree.tostring(node)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colour", [svg.INK, svg.MUTED])
def test_text_is_legible_in_light_and_in_dark(colour: str) -> None:
    assert contrast(colour, svg.PAPER) >= 4.5
    assert contrast(svg.DARK[colour], svg.DARK[svg.PAPER]) >= 4.5


@pytest.mark.parametrize("colour", svg.SERIES)
def test_lines_are_visible_in_light_and_in_dark(colour: str) -> None:
    assert contrast(colour, svg.PAPER) >= 3
    assert contrast(colour, svg.DARK[svg.PAPER]) >= 3


def test_bars_are_named_valued_and_sorted_best_first() -> None:
    found = texts(bars("t", "d", "tok/s", ROWS))
    names = [text for text in found if text in ("slow", "fast", "gone")]
    assert names[:3] == ["fast", "slow", "gone"]
    assert "26.03 [25.90, 26.20] ?" in found
    assert "out of memory" in found
    low_is_best = texts(bars("t", "d", "ms", ROWS, best_is_low=True))
    assert [text for text in low_is_best if text in ("slow", "fast", "gone")][:3] == ["slow", "fast", "gone"]


def test_published_figures_of_another_machine_have_an_axis_of_their_own() -> None:
    apart = texts(bars("t", "d", "tok/s", ROWS, published_unit="as published"))
    together = texts(bars("t", "d", "x", ROWS, published_here=True))
    assert "as published" in apart
    assert "30" in apart
    assert "published, elsewhere" in apart
    assert "published, elsewhere" in together
    assert "as published" not in together


def test_lines_are_told_apart_by_marker_and_name() -> None:
    drawing = curves("t", "d", "batch", "ms", [Panel("", LINES)])
    assert {"one", "two"} <= set(texts(drawing))
    assert "out of memory" in texts(drawing)
    assert {"1", "8", "32"} <= set(texts(drawing))


def test_parts_of_a_bar_are_hatched() -> None:
    drawing = memory("t", "d", [Stack("a", 5e9, 1e9, 8e9)])
    assert drawing.count("<pattern") == 2
    assert {"weights", "key-value cache", "the rest of the peak", "8.00 GB"} <= set(texts(drawing))


def test_the_device_s_memory_is_drawn_where_it_does_not_dwarf_the_bars() -> None:
    stack = [Stack("a", 5e9, 1e9, 8e9)]
    assert "memory of this device" in texts(memory("t", "d", stack, 16e9))
    assert "memory of this device" not in texts(memory("t", "d", stack, 1600e9))


def test_dollars_and_angle_brackets_are_text() -> None:
    drawing = bars("a < b", "c & d", "$x_1$", [Bar("<$50$> & more", Interval(1))])
    assert "<$50$> & more" in texts(drawing)
    assert "$x_1$" in texts(drawing)


def test_names_of_lines_do_not_overlap() -> None:
    for heights in ([0.5, 0.5, 0.5], [0.0, 0.01, 0.9], [0.97, 0.98, 0.99, 1.0], [0.2]):
        placed = _apart(heights, 0.1)
        assert all(after - before >= 0.1 - 1e-9 for before, after in pairwise(placed))
        assert max(placed) <= 1 + 1e-9
    assert _apart([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])


def test_a_style_set_elsewhere_does_not_leak_in_or_out() -> None:
    import matplotlib

    plain = DRAWINGS["bars"]()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert DRAWINGS["bars"]() == plain
        assert matplotlib.rcParams["font.size"] == 30
