"""Every link in a committed Markdown file leads somewhere: to a committed file, and to a heading or anchor of it."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})


@cache
def committed() -> frozenset[str]:
    """Files and folders, by their path from the root."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    files = {path for path in listed if (ROOT / path).exists()}
    return frozenset(files | {str(parent) for path in files for parent in Path(path).parents})


def pages() -> list[str]:
    return sorted(path for path in committed() if path.endswith(".md"))


def tokens(text: str) -> list[Token]:
    found: list[Token] = []
    for token in MARKDOWN.parse(text):
        found += [token, *(token.children or [])]
    return found


def targets(text: str) -> list[str]:
    """Of links and pictures, in Markdown and in HTML; code holds none."""
    found = []
    for token in tokens(text):
        if token.type in ("link_open", "image"):
            found.append(str(token.attrGet("href") or token.attrGet("src")))
        elif token.type in ("html_block", "html_inline"):
            found += re.findall(r"""(?:href|src|srcset)=["']([^"']+)["']""", token.content)
    return found


def anchors(text: str) -> set[str]:
    """Those that GitHub gives headings, a number behind each that is there already, and those that are written out."""
    found = set(re.findall(r"""<a (?:id|name)=["']([^"']+)["']""", text))
    parsed = tokens(text)
    for opening, inline in itertools.pairwise(parsed):
        if opening.type == "heading_open":
            words = "".join(child.content for child in inline.children or [])
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            repeated = sum(
                anchor == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", anchor) is not None for anchor in found
            )
            found.add(f"{slug}-{repeated}" if repeated else slug)
    return found


def page_at(place: str) -> str:
    """The text of a page; a line of source code is no anchor that a test could look for."""
    return (ROOT / place).read_text(encoding="utf-8") if place.endswith(".md") else ""


def dead(page: str, text: str) -> list[str]:
    """The targets in `text`, which stands at `page`, that lead nowhere."""
    found = []
    for target in targets(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        path = Path(page).parent / name if name else Path(page)
        place = os.path.relpath((ROOT / path).resolve(), ROOT)
        if place not in committed() or (anchor and anchor not in anchors(text if not name else page_at(place))):
            found.append(target)
    return found


@pytest.mark.parametrize("page", pages())
def test_every_link_leads_to_what_is_committed(page: str) -> None:
    assert dead(page, (ROOT / page).read_text(encoding="utf-8")) == []


def test_a_dead_link_is_found_in_each_form_that_a_page_may_use() -> None:
    text = "# One title\n\n[a](none.md) ![b](no.svg) [c](#two) [d](LICENSE#x) <img src='e.png'> [f][g] `[h](i)`\n"
    text += "\n[g]: j.md\n"
    found = ["none.md", "no.svg", "#two", "LICENSE#x", "e.png", "j.md"]
    assert dead("README.md", text) == found
    assert dead("README.md", "# One title\n\n[a](#one-title) [b](docs/) [c](docs/models.md)\n") == []
    assert dead("docs/models.md", "[a](../README.md#two-commands) [b](../../outside.md)") == ["../../outside.md"]


def test_the_pages_have_links() -> None:
    assert sum(len(targets((ROOT / page).read_text(encoding="utf-8"))) for page in pages()) > 100
