"""The documentation site: it builds without a dead link, has every page, and its pages ask a network for nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from claimbench import commands

pytest.importorskip("furo", reason="the site's packages are not installed: envs/dev.lock has them")
pytest.importorskip("myst_parser", reason="the site's packages are not installed: envs/dev.lock has them")

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def build(root: Path, output: Path) -> subprocess.CompletedProcess[str]:
    options = ["-n", "-E", "-W", "--keep-going", "-q", "-c", str(root / "docs/site"), "-d", str(output / "doctrees")]
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(root), str(output / "site")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("built")
    done = build(ROOT, output)
    assert done.returncode == 0, done.stderr
    return output / "site"


class Page(HTMLParser):
    """What a page loads, what it links, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        places = [given[name] for name in ("href", "src", "data", "poster") if name in given]
        places += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        (self.linked if tag == "a" else self.loaded).extend(places)


@cache
def page_at(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def is_remote(place: str) -> bool:
    return bool(urlsplit(place).netloc)


def test_pages_of_every_document_and_every_kept_report_are_there(site: Path) -> None:
    sources = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    sources += [*(ROOT / "docs").glob("*.md"), *(ROOT / "reports").glob("*/report.md")]
    missing = [path for path in sources if not (site / path.relative_to(ROOT)).with_suffix(".html").is_file()]
    assert missing == []
    headings = [re.findall(r"<h1>([^<]+)", path.read_text(encoding="utf-8")) for path in site.glob("reports/**/*.html")]
    assert len(headings) == len({heading for (heading,) in headings}) > 5
    assert (site / "index.html").read_bytes() == (site / "README.html").read_bytes()


def test_no_page_loads_anything_from_a_network(site: Path) -> None:
    loaded = {page: page_at(page).loaded for page in site.rglob("*.html")}
    assert sum(map(len, loaded.values())) > 100
    assert {page.name: place for page, places in loaded.items() for place in places if is_remote(place)} == {}
    styles = [*site.rglob("*.css"), *site.rglob("*.html")]
    remote = re.compile(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""")
    assert [path.name for path in styles if remote.search(path.read_text(encoding="utf-8"))] == []


def test_every_link_leads_to_a_file_of_the_site_and_to_an_anchor_of_it(site: Path) -> None:
    checked, dead = 0, []
    for path in site.rglob("*.html"):
        for place in (*page_at(path).linked, *page_at(path).loaded):
            parts = urlsplit(place)
            if parts.scheme or parts.netloc:
                continue
            checked += 1
            target = path.parent / unquote(parts.path) if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file() or (
                anchor and target.suffix == ".html" and anchor not in page_at(target.resolve()).anchors
            ):
                dead.append((path.name, place))
    assert checked > 1000
    assert dead == []


def test_every_command_and_every_key_of_a_study_is_explained(site: Path) -> None:
    assert {*commands.PEOPLE, *commands.stage_names()} <= page_at(site / "docs/commands.html").anchors
    assert "--dry-run" in (site / "docs/commands.html").read_text(encoding="utf-8")
    studies = (site / "docs/studies.html").read_text(encoding="utf-8")
    for name in ("study", "params"):
        schema = json.loads((ROOT / f"studies/schema/{name}.schema.json").read_text(encoding="utf-8"))
        keys = {key for one in (schema, *schema["$defs"].values()) for key in one.get("properties", {})}
        assert [key for key in keys if f'<span class="pre">{key}</span>' not in studies] == []


def test_a_link_an_anchor_and_a_picture_that_lead_nowhere_fail_the_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs/site", tmp_path / "docs/site", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "README.md").write_text(
        "# One\n\n[a](none.md) [b](#nowhere) ![c](no.svg) [d](#one)\n", encoding="utf-8"
    )
    done = build(tmp_path, tmp_path / "build")
    assert done.returncode != 0
    for place in ("'none.md'", "'nowhere'", "no.svg"):
        assert place in done.stderr, done.stderr
    assert "'one'" not in done.stderr
