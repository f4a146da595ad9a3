"""`report.html`: the view of a report as one file that needs no network, no server and no other file.

Tables are plain `<table>`s: they are read without a script, printed, searched by the browser and announced as tables;
a script of the page's own sorts and filters them. A plot stands inside the row that it is of, so that it moves with it
and takes its colours from the page. Vega would draw beside the rows: 800 kB of script in each report (plots/page.html),
which cannot follow a sorted table and asks the policy for `unsafe-eval`, or for an interpreter besides. Swept figures,
which are of no single row, are the files of `figures/`, inlined. The policy lets run and style what is hashed here,
shows `data:` images, and fetches nothing.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from claimbench.formatting import count, number, percent, slug
from claimbench.reporting import markup, recommendations
from claimbench.reporting.cell_records import CellRecord, measure_again, records_of
from claimbench.reporting.report_data import ReportData
from claimbench.reporting.study_figures import Illustration
from claimbench.reporting.table import Entry
from claimbench.reporting.template_environment import environment_of
from claimbench.reporting.view import View
from claimbench.schema.interval import Interval

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

LIMIT = 2_000_000
"""Bytes of a page."""
SAFE_IN_DATA = " !$()*+,-./:;=?@[]^_{|}~"
OPTIONAL = re.compile(r"</t[dhr]>\s*(?=</?t[bdfhr])")
"""Tags that end by themselves where the next one begins (HTML, 13.1.2.4): of a thousand cells they are 200 kB."""
TICKS = (1, 2, 5)


class Axis(NamedTuple):
    """A logarithmic axis from `low` to `high`, as per cents of the width that it is given."""

    low: float
    high: float

    def at(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return round(100 * math.log(inside / self.low) / math.log(self.high / self.low), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(place, label), at most seven of them."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in (TICKS, (1,)):
            values = [step * 10.0**power for power in powers for step in steps]
            shown = [value for value in values if self.low <= value <= self.high]
            if len(shown) <= 7:
                break
        apart = max(1, math.ceil(len(shown) / 7))
        return [(self.at(value), f"{value:g}x") for value in shown[::apart]]


def axis_of(found: Iterable[Interval | None]) -> Axis | None:
    """One that has room for all positive intervals and for 1; None where there is none."""
    known = [one for one in found if one and one.estimate > 0 and (one.ends is None or one.ends[0] > 0)]
    if not known:
        return None
    ends = [end for one in known for end in (*(one.ends or ()), one.estimate)]
    low, high = min(1 / 1.1, *ends), max(1.1, *ends)
    margin = (high / low) ** 0.05
    return Axis(low / margin, high * margin)


class Detail(NamedTuple):
    """How much of a report its page holds; less of it where all would be too large."""

    samples: bool
    figures: int
    """Bytes of them; those that are left out are linked to in `figures/`."""


def html(view: View, data: ReportData, root: str) -> str:
    """The page: without raw samples where it would be larger than `LIMIT`, and with the figures that fit.

    What is larger with neither, of well over a thousand cells, is written as it is.
    `root` leads from its folder to the one that holds `results`.
    """
    records = records_of(data)
    for samples in (True, False):
        bare = _html(view, records, Detail(samples, 0), root)
        left = LIMIT - len(bare.encode())
        if left >= 0:
            break
    return _html(view, records, Detail(samples, left), root)


def _html(view: View, records: Sequence[CellRecord], detail: Detail, root: str) -> str:
    style, script = _part("page.css"), _part("page.js")
    context: dict[str, object] = {
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "records": records,
        "detail": detail,
        "root": root,
        "measure_again": lambda study: measure_again(view.plan, study),
        "all_techniques": sorted({name for record in records for name in record.techniques}),
        "verdicts": [verdict for verdict, times in view.counts.items() if times],
        "inlined": _inlined(_drawn(view), detail.figures),
    }
    return OPTIONAL.sub("", _template().render(view._asdict() | context))


def _drawn(view: View) -> Iterator[Illustration]:
    """The figures that no table of the page draws in its rows."""
    for study in view.studies:
        for experiment in study.experiments:
            if experiment.tables[0].plotted is None:
                yield from experiment.figures
        yield from study.figures


def _inlined(figures: Iterable[Illustration], left: int) -> dict[str, str]:
    """Addresses that hold the figures, by file, of those for which there is room in `left` bytes."""
    found: dict[str, str] = {}
    for figure in figures:
        address = f"data:image/svg+xml,{quote(figure.svg, safe=SAFE_IN_DATA)}"
        size = len(address) + len(markup.xml(figure.alt).encode()) + 100
        if size <= left:
            found[figure.file] = address
            left -= size
    return found


@cache
def _part(name: str) -> str:
    return (resources.files("claimbench.reporting") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a Content-Security-Policy allows `text` by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _template() -> jinja2.Template:
    from markupsafe import Markup

    environment = environment_of("claimbench.reporting", is_html=True)
    environment.filters |= {"percent": percent, "number": number, "slug": slug, "clean": markup.clean}
    environment.filters |= {"address": markup.address, "file_address": markup.file_address}
    environment.filters |= {"words": words, "prose": prose, "file_label": markup.file_label, "metric_of": metric_of}
    environment.globals |= {"count": count, "axis_of": axis_of, "trusted": Markup, "advice_note": recommendations.NOTE}
    return environment.get_template("report.html.j2")


def metric_of(rows: Sequence[Sequence[Entry]], column: int) -> Markup:
    """The attribute of a column's head that names the metric of its numbers; none where they are of several or none."""
    from markupsafe import Markup

    found = {row[column].metric for row in rows if row[column].cell} - {None}
    return Markup(' data-metric="{}"').format(*found) if len(found) == 1 else Markup()


def words(text: object) -> Markup:
    """`text` as it is, with `code` between backticks."""
    from markupsafe import Markup

    return Markup(markup.html(text))  # noqa: S704 - escaped there


def prose(text: object) -> Markup:
    """What the author of a study wrote, read as `report.md` is: code, emphasis, and links to the web."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    reader = MarkdownIt("commonmark", {"html": False}).disable(["image", "autolink", "html_inline"])
    return Markup(reader.renderInline(markup.prose(text)))  # noqa: S704 - no HTML passes, and links are to the web
