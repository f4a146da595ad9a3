"""Nothing that comes from outside is markup in a report: no scripts, no addresses that load, no broken tables."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tests.unit import html_page
from tests.unit.test_report import LATENCY, MACHINE, RATES, build, invent, render

from claimbench.reporting import markup, report, svg
from claimbench.schema.plan import PlannedCell
from claimbench.schema.result import Result

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
MARKDOWN.validateLink = bool  # type: ignore[assignment,method-assign]  # its own mercy is not what is tested
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "![pixel](https://evil.example/p.png)",
    "![a][b]",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1) 'x')",
    "[click]( data:text/html;base64,PHN2Zz4= )",
    "[x]: javascript:alert(1)",
    "<javascript:alert(1)>",
    "<https://evil.example>",
    "&lt;script&gt; &#60;script&#62;",
    "a | b \\| c \\\\| d |",
    "ends with a backslash \\",
    "ends with a bracket [x]",
    "``` \n<script>\n```",
    "`` ` <b> `` ` |",
    "`code | <b>` and `",
    "\n\n# A heading\n\n- list\n\n| a |\n| - |\n",
    "1. one",
    "- one",
    "=====",
    "~~~ tilde",
    "**bold* _under_ __init__ max_new_tokens 2*3*4 ~~gone~~ $x$",
    "\x1b[31mred\x1b[0m\x07\x00\x9b31m",
    "\u202egnp.exe\u202c\u2066x\u2069\u200f",
    "\ud800 half",
    "http://evil.example www.evil.example",
    "]](( ![[ ](x) [a](b)[c](d)",
    "</details></summary></td><!-- --> <![CDATA[ x ]]> <?php ?>",
]
PIECES = [*"[]()<>!|`*_~\\&#:/\n\t -+=.1$\"' ", "javascript:", "https://x.example", "](", "![", "<b", "]:"]
texts = st.one_of(st.text(), st.sampled_from(HOSTILE), st.lists(st.sampled_from([*HOSTILE, *PIECES])).map("".join))


class Page(HTMLParser):
    """What a browser would see of the HTML that a Markdown library makes."""

    def __init__(self, markdown: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(MARKDOWN.render(markdown))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")

    def handle_decl(self, decl: str) -> None:
        self.tags.append("declaration")

    def handle_pi(self, data: str) -> None:
        self.tags.append("instruction")

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", self.text).strip()


def spoken(text: str) -> str:
    """What a reader sees of `literal`: code loses its marks, and spaces at its ends."""
    return re.sub(r"\s+", "", markup.CODE.sub(lambda found: found[1], markup.clean(text)))


@settings(max_examples=150, deadline=None)
@given(texts)
@example("a\\")
@example("`a\\|b`")
def test_a_literal_is_read_as_it_was_written(text: str) -> None:
    page = Page(f"Before {markup.literal(text)} after")
    assert set(page.tags) <= {"p", "code"}
    assert re.sub(r"\s+", "", page.text) == f"Before{spoken(text)}after"
    alone = Page(markup.literal(text))
    assert set(alone.tags) <= {"p", "code"}, "no heading, list or block begins with it"


@settings(max_examples=150, deadline=None)
@given(st.lists(texts, min_size=2, max_size=3))
def test_a_table_keeps_its_cells(cells: list[str]) -> None:
    head = " | ".join(f"h{number}" for number in range(len(cells)))
    row = " | ".join(map(markup.literal, cells))
    page = Page(f"| {head} |\n|{' --- |' * len(cells)}\n| {row} |\n| last |{' |' * (len(cells) - 1)}\n\nafter")
    assert page.tags.count("tr") == 3
    assert page.tags.count("td") == 2 * len(cells)
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "p", "code"}
    for text in cells:
        assert spoken(text) in re.sub(r"\s+", "", page.text)


@settings(max_examples=150, deadline=None)
@given(texts)
@example("*emphasis* and `code` and [a link](https://example.org/a_(b)?c=d&e)")
def test_prose_has_emphasis_code_and_links_to_the_web(text: str) -> None:
    page = Page(f"Note: {markup.prose(text)}\n\nafter")
    assert set(page.tags) <= {"p", "code", "em", "strong", "a"}
    assert {(tag, name) for tag, name, _ in page.attributes} <= {("a", "href")}
    assert all(value.startswith(("http://", "https://")) for _, _, value in page.attributes)
    assert page.text.endswith("after\n")


def test_prose_is_the_authors_own_markdown() -> None:
    written = "See *the* __issue__ [here](https://example.org/a?b=c), `max|tokens` at www.example.org <b>."
    page = Page(markup.prose(written))
    assert page.tags == ["p", "em", "strong", "a", "code", "code"]
    assert page.words == "See the issue here, max|tokens at www.example.org <b>."
    assert markup.prose("[run](javascript:alert(1))") == "[run\\](javascript:alert(1))"


@settings(max_examples=150, deadline=None)
@given(texts)
def test_code_holds_anything(text: str) -> None:
    page, parts = Page(f"Before {markup.code(text)} after"), markup.clean(text).split("|")
    assert page.tags == ["p", *["code"] * (sum(map(bool, parts)) if len(parts) > 1 else 1)]
    fence = markup.fenced(f"key: |\n  {text}\n", "yaml")
    page = Page(f"before\n\n{fence}\n\nafter")
    assert page.tags == ["p", "pre", "code", "p"]


@settings(max_examples=150, deadline=None)
@given(texts, st.one_of(texts, texts.map(lambda text: f"https://example.org/{text}"), st.none()))
@example("a", "https://example.org/a b")
@example("a", "https://[half")
@example("a", "javascript:alert(1)//https://example.org")
@example("a", "https:javascript")
def test_a_link_leads_to_the_web_or_is_none(text: str, url: str | None) -> None:
    page = Page(f"Document: {markup.link(text, url)}.")
    assert set(page.tags) <= {"p", "a", "code"}
    assert page.words.endswith(".")
    for _, name, value in page.attributes:
        assert name == "href"
        assert re.match(r"https?://[^/]", value)


def test_an_address_stays_what_it_was() -> None:
    assert (
        markup.address("https://github.com/a/b/issues/1?q=1&r=%20#top-2")
        == "https://github.com/a/b/issues/1?q=1&r=%20#top-2"
    )
    assert markup.address("https://example.org/a_(b)") == "https://example.org/a_%28b%29"
    for refused in (
        "javascript:alert(1)",
        "data:text/html,x",
        "file:///etc/passwd",
        "//example.org",
        "ftp://a.b/c",
        "",
        "https://",
    ):
        assert markup.address(refused) is None


@settings(max_examples=100, deadline=None)
@given(texts)
def test_a_file_of_any_name_is_linked_as_a_file(name: str) -> None:
    path = f"results/measure/{name.replace('/', '-')}/key/0.json"
    page = Page(f"Results: {report.links([path, 'results/measure/b/key/1.json'], '../')}")
    assert page.tags == ["p", "a", "a"]
    assert [value.split("/")[:3] for _, _, value in page.attributes] == [["..", "results", "measure"]] * 2


@pytest.mark.filterwarnings("ignore:Glyph")
@settings(max_examples=8, deadline=None)
@given(texts)
@example("\x1b[31m <script>&\ud800 \ufffe")
def test_a_figure_is_xml_without_scripts(text: str) -> None:
    def paint(figure: Any) -> None:
        axes = figure.subplots()
        axes.set_title(text)
        axes.set_yticks([0], [svg.wrapped(text)])

    drawn = svg.draw(text, text, 2.0, paint)
    root = ElementTree.fromstring(drawn)  # noqa: S314 - our own
    assert root[0].text == markup.clean(text) or not markup.clean(text)
    require_harmless_svg(root, drawn)


def require_harmless_svg(root: ElementTree.Element, drawn: str) -> None:
    for element in root.iter():
        assert element.tag.rpartition("}")[2] not in ("script", "foreignObject", "image", "a", "iframe")
        for name, value in element.attrib.items():
            assert not name.lower().rpartition("}")[2].startswith("on"), name
            assert not name.endswith("href") or value.startswith("#")
    assert not markup.STEERING.search(drawn)


def hostile_study(text: str) -> str:
    """Both studies of the report's tests as one, with `text` wherever a study has words."""
    import yaml

    study = yaml.safe_load(RATES)
    study["title"] = study["document"]["title"] = study["document"]["measured"] = text
    study["document"]["url"] = f"javascript:alert(1)//{text}"
    study["planned"]["optimizations"] = {"later": text}
    study["experiments"] |= yaml.safe_load(LATENCY)["experiments"]
    for experiment in study["experiments"].values():
        experiment["question"] = text
        for number, cell in enumerate(experiment["cells"].values()):
            cell["title"] = f"{text} {number}"
    study["experiments"]["methods"]["cells"]["planned"] = {
        "title": text,
        "optimizations": ["later"],
        "published": {"tok_s": text},
    }
    for claim in study["claims"]:
        claim |= {"statement": text, "note": text, "published": text}
    return json.dumps(study)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A report of a study, results and a machine that are hostile wherever they have words."""
    text = " ".join(one for one in HOSTILE if "\ud800" not in one)
    folder = tmp_path_factory.mktemp("hostile")

    def invented(planned: PlannedCell, block: int) -> Result:
        made = invent(planned, block)
        reason = text if made.reason else None
        return made.model_copy(update={"flags": (text, f"{text} again"), "reason": reason, "detail": text})

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MACHINE, "system", text)
        patch.setitem(MACHINE, "cpu", {"model": text, "cores": 2, "instruction_sets": [text]})
        inputs = build(folder, {"rates": hostile_study(text)}, invented)
    cells = inputs.plan.cells.items()
    keys = {name: one.key.model_copy(update={"libraries": {text: text}}) for name, one in cells}
    changed = {name: one.model_copy(update={"key": keys[name]}) for name, one in cells}
    plan = inputs.plan.model_copy(update={"cells": changed})
    verdicts = inputs.verdicts.model_copy(update={"device_name": text})
    return folder, render(inputs._replace(plan=plan, verdicts=verdicts), folder)


def test_a_hostile_study_is_a_report_like_any_other(hostile: tuple[Path, str], tmp_path: Path) -> None:
    _, text = hostile
    page, plain = Page(text), Page(render(build(tmp_path, {"rates": hostile_study("a sentence")}, invent), tmp_path))
    assert not markup.STEERING.search(text.replace(markup.SHOWN, ""))
    assert set(page.tags) <= set(plain.tags) | {"code", "em", "strong", "br", "sup"}
    assert not {"script", "svg", "iframe", "object", "comment", "declaration"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name == "src":
            assert re.fullmatch(r"figures/[\w.-]+\.svg", value)
        elif name == "href":
            assert tag == "a"
            assert re.match(r"#|\.\./results/", value), "the study's own link was no address of the web"
    for tag in ("h1", "h2", "h3", "h4", "table", "img", "details", "pre", "ul"):
        assert page.tags.count(tag) == plain.tags.count(tag), tag


def test_its_tables_are_whole(hostile: tuple[Path, str]) -> None:
    html = MARKDOWN.render(hostile[1])
    tables = re.findall(r"<table>(.*?)</table>", html, re.DOTALL)
    assert len(tables) > 8
    for table in tables:
        width = table.count("<th") - table.count("<thead")
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)[1:]
        assert {row.count("<td") for row in rows} <= {width}
        assert rows


def test_its_figures_are_harmless(hostile: tuple[Path, str]) -> None:
    figures = sorted((hostile[0] / "reports" / "figures").iterdir())
    assert len(figures) >= 6
    for path in figures:
        assert re.fullmatch(r"[a-z0-9_-]+\.svg", path.name)
        drawn = path.read_text(encoding="utf-8")
        require_harmless_svg(ElementTree.fromstring(drawn), drawn)  # noqa: S314 - our own


def test_its_page_in_html_runs_loads_and_links_to_nothing_of_it(hostile: tuple[Path, str], tmp_path: Path) -> None:
    html = (hostile[0] / "reports/report.html").read_text(encoding="utf-8")
    render(build(tmp_path, {"rates": hostile_study("a sentence")}, invent), tmp_path)
    plain = html_page.Page((tmp_path / "reports/report.html").read_text(encoding="utf-8"))
    page = html_page.Page(html)
    assert page.unclosed == []
    assert page.loads() == []
    assert set(page.tags) <= set(plain.tags) | {"code", "em", "strong"}
    for tag in ("script", "style", "svg", "h1", "h2", "h3", "table", "img", "details", "ul", "a", "code", "pre"):
        same = page.tags.count(tag) == plain.tags.count(tag)
        assert same or tag in ("a", "code", "svg"), tag
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("style", "srcdoc")]
    for link in page.links():
        assert re.match(r"#|\.\./results/|https?://[^/]", link), "no script, and no address that is none of the web"
    assert not [link for link in page.links() if link.startswith("#") and link[1:] not in page.ids()]
    assert not markup.STEERING.search(html.replace(markup.SHOWN, ""))
    (inside,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    assert inside == report.page._part("page.js"), "nothing of the study is inside a script"
    for one in HOSTILE[:3]:
        assert one in page.text, "it is read as it was written"


@settings(max_examples=100, deadline=None)
@given(texts)
def test_words_of_a_page_are_read_as_they_were_written(text: str) -> None:
    page = html_page.Page(f"<p>Before {report.page.words(text)} after</p>")
    assert set(page.tags) <= {"p", "code"}
    assert re.sub(r"\s+", "", page.text) == f"Before{spoken(text)}after"


@settings(max_examples=100, deadline=None)
@given(texts)
@example("[a](https://x.example/'onmouseover=alert(1)) <https://x.example> ![i](https://x.example/p.png)")
def test_prose_of_a_page_has_emphasis_code_and_links_to_the_web(text: str) -> None:
    page = html_page.Page(f"<p>Note: {report.page.prose(text)}</p>")
    assert set(page.tags) <= {"p", "code", "em", "strong", "a"}
    assert {(tag, name) for tag, name, _ in page.attributes} <= {("a", "href")}
    assert all(value.startswith(("http://", "https://")) for _, _, value in page.attributes)
