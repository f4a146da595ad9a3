"""`report.html` in Debian's headless Chromium: nothing is fetched, nothing is logged, and it works by keyboard.

Needs the extra `browser`: Playwright drives the Chromium that is there, and axe-core looks for what shuts people out.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.test_report import LATENCY, RATES, build, invent, render

from claimbench import gallery

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REPORTS = Path(__file__).parents[2] / "reports"
DEFAULT = REPORTS / "quickstart-amd-epyc-2-cores"
"""Of several claims, which have several verdicts."""
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    render(build(folder, {"rates": RATES, "latency": LATENCY}, invent), folder)
    return folder / "reports/report.html"


@pytest.fixture(params=["invented", "kept"])
def file(request: pytest.FixtureRequest) -> Path:
    if request.param == "invented":
        found: Path = request.getfixturevalue("invented")
        return found
    return DEFAULT / "report.html"


class Visit:
    """A page that is open, and whatever it asked for or complained of."""

    def __init__(self, page: Page, file: Path) -> None:
        self.page, self.requests, self.complaints = page, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(file.as_uri())
        self.address = page.url

    def require_quiet(self) -> None:
        assert [url for url in self.requests if not url.startswith("data:")] == [self.address]
        assert self.complaints == []


def visit(browser: Browser, file: Path, *, width: int = 1280, height: int = 800, scheme: Any = "light") -> Visit:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    return Visit(context.new_page(), file)


def open_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_nobody_is_shut_out(browser: Browser, file: Path, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra `browser`")
    shown = visit(browser, file, width=width, scheme=scheme)
    open_all(shown.page)
    found = axe.Axe().run(shown.page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    shown.require_quiet()


@pytest.mark.parametrize("folder", gallery.kept(REPORTS), ids=lambda folder: folder.name)
def test_every_kept_page_shuts_nobody_out_and_fits_a_phone(browser: Browser, folder: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra `browser`")
    shown = visit(browser, folder / "report.html", width=390)
    open_all(shown.page)
    found = axe.Axe().run(shown.page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    assert shown.page.evaluate("document.documentElement.scrollWidth") == 390
    assert shown.page.locator(".claims tbody .verdict").count() >= 1
    shown.require_quiet()


def test_axe_sees_what_is_wrong(browser: Browser, invented: Path, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra `browser`")
    spoiled = tmp_path / "report.html"
    html = invented.read_text(encoding="utf-8").replace('<html lang="en">', "<html>").replace("<h1>", "<h1><img>")
    spoiled.write_text(html, encoding="utf-8")
    found = axe.Axe().run(visit(browser, spoiled).page).response["violations"]
    assert {"html-has-lang", "image-alt"} <= {one["id"] for one in found}


def test_a_request_and_an_inline_script_are_blocked(browser: Browser, invented: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "report.html"
    html = invented.read_text(encoding="utf-8")
    added = '<img src="https://a.example/p.png"><script>document.title = "run"</script>'
    spoiled.write_text(html.replace("<header>", f"{added}<header>"), encoding="utf-8")
    shown = visit(browser, spoiled)
    assert shown.page.title() != "run"
    assert sum("Content Security Policy" in one for one in shown.complaints) == 2


def test_the_first_screen_has_every_verdict(browser: Browser, file: Path) -> None:
    page = visit(browser, file).page
    rows = page.locator(".claims tbody tr")
    assert rows.count() > 3
    for row in rows.all():
        box = row.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 800
        assert row.locator(".verdict").inner_text()
    plots = [box for plot in page.locator(".claims .dot").all() if (box := plot.bounding_box())]
    assert {box["x"] for box in plots} == {plots[0]["x"]}, "one axis for all"
    assert plots[0]["width"] > 150


@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_as_wide_as_the_screen(browser: Browser, file: Path, width: int) -> None:
    page = visit(browser, file, width=width, height=844).page
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width


def texts(rows: Locator) -> list[str]:
    return [text.strip() for text in rows.all_inner_texts()]


def test_a_table_is_sorted_by_keyboard(browser: Browser, file: Path) -> None:
    shown = visit(browser, file)
    page = shown.page
    names = page.locator(".claims tbody th b")
    before = texts(names)
    head = page.locator(".claims thead th", has_text="verdict")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "verdict":
            break
    verdicts = page.locator(".claims tbody .verdict")
    for order, key in (("ascending", "Enter"), ("descending", "Space"), ("none", "Enter")):
        page.keyboard.press(key)
        assert head.get_attribute("aria-sort") == order
        if order != "none":
            found = texts(verdicts)
            assert found == sorted(found, reverse=order == "descending")
            assert len(set(found)) > 1
    assert texts(names) == before
    shown.require_quiet()


def test_numbers_are_sorted_as_numbers(browser: Browser, file: Path) -> None:
    page = visit(browser, file).page
    page.locator(".claims thead th", has_text="here").get_by_role("button").click()
    found = [text.split("x")[0] for text in texts(page.locator(".claims tbody td.n")) if text[0].isdigit()]
    assert [float(text) for text in found] == sorted(float(text) for text in found)
    assert len(found) >= 2


def test_rows_are_filtered_by_text_verdict_and_technique(browser: Browser, file: Path) -> None:
    page = visit(browser, file).page
    rows, seen = page.locator(".claims tbody tr"), page.locator(".claims tbody tr:visible")
    whole = rows.count()
    page.get_by_label("Verdict").select_option("refuted")
    assert 0 < seen.count() < whole
    assert set(texts(seen.locator(".verdict"))) == {"refuted"}
    assert page.locator(".claims .hits").inner_text() == f"{seen.count()} of {whole} rows"
    page.get_by_label("Verdict").select_option("")
    page.get_by_label("Technique").select_option("no_cache")
    assert 0 < seen.count() < whole
    left = page.locator("tr[data-techniques]:not([hidden])").evaluate_all("all => all.map(r => r.dataset.techniques)")
    assert left
    assert all("no_cache" in names.split() for names in left)
    page.get_by_label("Technique").select_option("")
    page.get_by_label("Filter rows").fill("CACHE")
    assert 0 < seen.count() < whole
    assert all("cache" in text.lower() for text in texts(seen))
    page.get_by_label("Filter rows").fill("nothing says this")
    assert seen.count() == 0


def test_a_number_leads_to_its_samples_and_shows_them_first(browser: Browser, file: Path) -> None:
    shown = visit(browser, file)
    page = shown.page
    open_all(page)
    number = page.locator("td.n a[data-metric]", has_text="[").first
    number.focus()
    tip = page.get_by_role("tooltip")
    assert "samples of" in tip.inner_text()
    assert "Samples, " in tip.inner_text()
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    number.hover()
    assert tip.is_visible()
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = false; })")
    page.locator(".claims td.n a").first.press("Enter")
    fold = page.locator(".fold:target")
    assert fold.is_visible()
    fold.locator("li a[href^='#cell-']").first.press("Enter")
    assert page.locator(".fold:target table").is_visible()
    raw = page.locator(".fold:target tbody a").first.get_attribute("href")
    assert raw is not None
    assert (file.parent / raw).is_file()
    shown.require_quiet()


def test_commands_are_copied(browser: Browser, invented: Path) -> None:
    shown = visit(browser, invented)
    shown.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_all(shown.page)
    shown.page.locator(".raw .copied").first.get_by_role("button").click()
    shown.page.get_by_role("button", name="Copied").wait_for()
    assert shown.page.evaluate("navigator.clipboard.readText()").startswith("snakemake --cores all --config 'studies=")


def test_colours_follow_the_system_and_the_switch(browser: Browser, invented: Path) -> None:
    dark = visit(browser, invented, scheme="dark").page
    paper = "getComputedStyle(document.body).backgroundColor"
    assert dark.evaluate(paper) == "rgb(13, 17, 23)"
    switch = dark.locator("#theme")
    found = []
    for _ in range(3):
        switch.press("Enter")
        found.append((switch.inner_text(), dark.evaluate(paper)))
    assert found == [
        ("Colours: light", "rgb(255, 255, 255)"),
        ("Colours: dark", "rgb(13, 17, 23)"),
        ("Colours: system", "rgb(13, 17, 23)"),
    ]


def test_on_paper_everything_is_open_but_raw_samples(browser: Browser, invented: Path) -> None:
    page = visit(browser, invented, scheme="dark").page
    pages = page.pdf()
    assert pages.startswith(b"%PDF")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("details:not(.raw):not([open])").count() == 0
    assert page.locator("details.raw[open]").count() == 0
    assert page.locator(".tools").is_hidden()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


def test_without_scripts_everything_is_there(browser: Browser, invented: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(invented.as_uri())
    assert page.locator(".claims tbody tr").count() == 4
    page.locator(".claims td.n a").first.click()
    assert page.locator(".fold:target").is_visible()
