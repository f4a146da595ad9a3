"""`report.html`: one file that loads nothing, says what `report.md` says, and leads from each number to its samples."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from tests.unit.html_page import Page, policy_of
from tests.unit.test_report import LATENCY, PARAMS, RATES, Inputs, build, invent, render

from claimbench import gallery
from claimbench.reporting import page
from claimbench.schema.interval import Interval
from claimbench.schema.verdicts import read as read_verdicts

ROOT = Path(__file__).parents[2]
KEPT = gallery.kept(ROOT / "reports")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Inputs]:
    folder = tmp_path_factory.mktemp("project")
    inputs = build(folder, {"rates": RATES, "latency": LATENCY}, invent)
    render(inputs, folder)
    return folder / "reports", inputs


def both(folder: Path) -> tuple[str, str]:
    return tuple((folder / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))  # type: ignore[return-value]


def require_the_same(folder: Path) -> None:
    """Every row of every table of `report.md`, and every verdict and number of a claim, is in `report.html` as well."""
    markdown, html = both(folder)
    told, shown = Page.of_markdown(markdown), Page(html)
    claims = [table for table in told.tables if table[0][0] == "claim"]
    ours = {row[0].split()[0]: row for table in shown.tables if table[0][0] == "claim" for row in table[1:]}
    first, whole = ([t for t in claims if ("statement" in t[0]) == has] for has in (False, True))
    assert sum(len(table) - 1 for table in first) == len(ours) > 0
    for id, *told_of_it in (row for table in first for row in table[1:]):
        assert ours[id][1:] == told_of_it
    for id, statement, verdict, _, numbers, _ in (row for table in whole for row in table[1:]):
        assert ours[id][0] == f"{id} {statement}"
        assert f"{verdict.capitalize()}: {numbers}" in " ".join(shown.text.split())
    text = (folder / "report.md").read_text(encoding="utf-8")
    for alike in re.findall(r"^Of every claim that was measured, this is .*$", text, re.MULTILINE):
        assert " ".join(Page.of_markdown(alike).text.split()) in " ".join(shown.text.split())
    others = [table for table in told.tables if table not in claims and table[0][0] != "claim not runnable here"]
    rows = {tuple(row) for table in others for row in table[1:]}
    assert len(rows) > 10
    plain = {tuple(text.replace(",", "") for text in row) for row in shown.rows}
    assert [row for row in rows if tuple(text.replace(",", "") for text in row) not in plain] == []


def test_it_says_what_the_markdown_says(project: tuple[Path, Inputs]) -> None:
    require_the_same(project[0])


def test_it_says_what_departs_from_the_document(tmp_path: Path) -> None:
    params = PARAMS.replace("[rates, latency]", "[rates]") + "limits: {new_tokens: 8}\n"
    text = render(build(tmp_path, {"rates": RATES}, invent, params), tmp_path)
    assert "Of every claim that was measured, this is not as the document has it: " in text
    require_the_same(tmp_path / "reports")


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_kept_pages_say_what_their_markdown_says(folder: Path) -> None:
    require_the_same(folder)


def test_a_difference_between_the_two_is_seen(project: tuple[Path, Inputs], tmp_path: Path) -> None:
    markdown, html = both(project[0])
    (tmp_path / "report.md").write_text(markdown, encoding="utf-8")
    for before, after in ((">supported<", ">refuted<"), ("25.97", "25.98")):
        assert before in html
        (tmp_path / "report.html").write_text(html.replace(before, after), encoding="utf-8")
        with pytest.raises(AssertionError):
            require_the_same(tmp_path)


def test_it_loads_nothing_and_its_policy_forbids_to(project: tuple[Path, Inputs]) -> None:
    html = both(project[0])[1]
    shown = Page(html)
    assert shown.loads() == []
    assert not {"link", "iframe", "object", "embed", "base", "form", "comment"} & set(shown.tags)
    policy = policy_of(html)
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert policy["img-src"] == ["data:"]
    assert set(policy) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == [f"'sha256-{digest}'"]
        assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|eval\(", inside)
    assert not [name for _, name, _ in shown.attributes if name.startswith("on") or name == "style"]


def test_it_is_whole_and_every_link_within_has_its_target(project: tuple[Path, Inputs]) -> None:
    shown = Page(both(project[0])[1])
    assert shown.unclosed == []
    ids = shown.ids()
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in shown.links() if link.startswith("#")} <= set(ids)
    assert {value[1:] for tag, name, value in shown.attributes if (tag, name) == ("use", "href")} <= set(ids)
    away = [link for link in shown.links() if not link.startswith(("#", "../results/"))]
    assert away == ["https://example.org/a"]


def test_every_number_leads_to_its_samples_its_doubts_and_its_commands(project: tuple[Path, Inputs]) -> None:
    folder, inputs = project
    html = both(folder)[1]
    for id, summary in inputs.verdicts.cells.items():
        fold = html.split(f'id="cell-{id}"')[1].split("</details>")[0]
        for path in summary.results:
            assert f'href="../{path}"' in fold
            assert (folder.parent / path).is_file()
        assert all(flag in fold for flag in summary.flags)
        assert "claimbench explain " in fold
        study = html.split(f'id="cell-{id}"')[0].rpartition('data-study="')[2].split('"')[0]
        assert f'<code data-again="{study}">snakemake --cores all --config ' in html
        if summary.metrics:
            rows = inputs.table[inputs.table["cell"] == id]
            assert f"{rows['peak_bytes'].iloc[0] / 1e9:.4g}" in fold
    sections = html.split("<h2>The studies")[1].split("<h2>")[0]
    rows = [row for row in re.split(r"<tr\b", sections) if re.search(r'class="n">[\d.,]+x? \[', row)]
    assert len(rows) > 6
    assert [row for row in rows if "data-cell=" not in row] == [], "an interval rests on samples"
    assert set(re.findall(r'data-cell="(\w+)"', html)) <= set(inputs.verdicts.cells)


def test_samples_are_those_of_the_table(project: tuple[Path, Inputs]) -> None:
    _, inputs = project
    html = both(project[0])[1]
    id = inputs.plan.row("latency", "gain/sdpa").cell
    shown = Page("<table>" + html.split(f'id="cell-{id}"')[1].split('<table class="data">')[1].split("</table>")[0])
    place = shown.tables[0][0].index("decode tok/s")
    rows = inputs.table[inputs.table["cell"] == id]
    expected = [", ".join(f"{value:.4g}" for value in of["decode_tok_s"]) for _, of in rows.groupby("block")]
    assert [row[place] for row in shown.tables[0][1:-1]] == expected


def test_words_have_code_and_nothing_else() -> None:
    assert page.words("a `b|c` <i> & `<d>` *e*") == "a <code>b|c</code> &lt;i&gt; &amp; <code>&lt;d&gt;</code> *e*"
    assert page.prose("*See* [it](https://a.example/b?c&d), [not](javascript:alert(1)) ![p](https://a.example/p)") == (
        '<em>See</em> <a href="https://a.example/b?c&amp;d">it</a>, [not](javascript:alert(1)) '
        "![p](https://a.example/p)"
    )


def test_an_axis_has_room_for_every_interval_and_for_one() -> None:
    axis = page.axis_of([Interval(3.0, 2.0, 4.0), None, Interval(0.0, 0.0, 1.0), Interval(0.5)])
    assert axis is not None
    assert 0 < axis.at(0.5) < axis.at(1) < axis.at(2) < axis.at(4) < 100
    assert axis.at(2) - axis.at(1) == pytest.approx(axis.at(1) - axis.at(0.5), abs=0.02)
    assert [label for _, label in axis.ticks] == ["0.5x", "1x", "2x"]
    assert page.axis_of([None, Interval(0.0)]) is None
    wide = page.axis_of([Interval(1e-6), Interval(1e9)])
    assert wide is not None
    assert 1 < len(wide.ticks) <= 7


def test_figures_are_inlined_as_they_are_written(project: tuple[Path, Inputs]) -> None:
    folder, _ = project
    found = re.findall(r'<img src="data:image/svg\+xml,([^"]*)"', both(folder)[1])
    written = {path.read_text(encoding="utf-8") for path in (folder / "figures").iterdir()}
    assert len(found) > 3
    assert {unquote(unescape(one)) for one in found} <= written


def test_what_is_too_large_loses_figures_then_samples(
    project: tuple[Path, Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, inputs = project
    whole = both(folder)[1]
    images = whole.count("<img")
    sizes = [len(whole.encode())]
    for limit, has_samples in ((sizes[0] - 1000, True), (120_000, True), (60_000, False)):
        monkeypatch.setattr(page, "LIMIT", limit)
        render(inputs, folder.parent / str(limit))
        html = (folder.parent / str(limit) / "reports/report.html").read_text(encoding="utf-8")
        assert ("too many samples" not in html) == has_samples
        assert html.count("<img") < images
        assert html.count('<a href="figures/') == images - html.count("<img")
        sizes.append(len(html.encode()))
        assert sizes[-1] <= limit or not has_samples
    assert sizes == sorted(sizes, reverse=True)


def a_thousand_cells() -> str:
    """A study of 1,000 cells as two shapes: 40 rows of 20 lengths each as curves, 200 rows as bars; 50 claims."""
    techniques = ["", "no_cache", "sdpa", "bitsandbytes_int8", "prompt_lookup"]

    def cells(number: int) -> dict[str, Any]:
        """Which differ by what is tried and by how much each generates."""
        return {
            f"c{n}": {
                "title": f"Cell number {n} of them, with a title of the length that titles have",
                "optimizations": [name] if (name := techniques[n % len(techniques)]) else [],
                "new_tokens": 8 + n // len(techniques),
            }
            for n in range(number)
        }

    check = {"kind": "ratio", "metric": "decode_tok_s", "to": "many/c0", "expect": "above"}
    claims = [
        {"id": f"T{n}", "kind": "ratio", "statement": "A sentence of a document about speed, of the usual length"}
        | {"checks": [check | {"of": f"many/c{n}"}]}
        for n in range(1, 51)
    ]
    many = {"question": "Which of many is the fastest?", "show": "bars", "cells": cells(200)}
    swept = {"question": "How does time grow?", "show": "curves", "cells": cells(40)}
    swept["sweep"] = {"prompt_tokens": [64 + 16 * n for n in range(20)]}
    study = yaml.safe_load(RATES) | {"experiments": {"many": many, "swept": swept}, "claims": claims}
    return json.dumps(study)


@pytest.mark.long
def test_a_thousand_cells_are_a_page_within_the_limit(tmp_path: Path) -> None:
    inputs = build(tmp_path, {"rates": a_thousand_cells()}, invent)
    assert len(inputs.plan.cells) >= 1000
    render(inputs, tmp_path)
    html = both(tmp_path / "reports")[1]
    assert len(html.encode()) <= page.LIMIT
    assert html.count('<details class="row raw"') == len(inputs.plan.cells)
    require_the_same(tmp_path / "reports")


def test_kept_pages_are_within_the_limit() -> None:
    for folder in KEPT:
        assert (folder / "report.html").stat().st_size <= page.LIMIT
        assert read_verdicts(folder / "results/verdicts.json").claims
