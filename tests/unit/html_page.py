"""What a browser makes of a page: its tables as text, its links, and whatever it would load or run."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from markdown_it import MarkdownIt

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
VOID = {"meta", "br", "img", "input", "link", "hr", "base", "source", "embed", "col", "wbr", "track", "area"}
PLACES, ROWS = {"td", "th"}, {"td", "th", "tr"}
UNSEEN = {"script", "style", "svg", "button", "caption"}
"""What is no word of a table."""


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        """(tag, name, value) of each."""
        self.tables: list[list[list[str]]] = []
        """Each as rows of texts, its head first."""
        self.open: list[str] = []
        self.unclosed: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    @classmethod
    def of_markdown(cls, markdown: str) -> Page:
        return cls(MARKDOWN.render(markdown))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._end_of_itself(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th") and ("class", "plot") not in attrs:
            self.tables[-1][-1].append("")
        elif tag in ("br", "sup"):
            self._say(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def _end_of_itself(self, tag: str) -> None:
        """Ends an open place or row of a table where `tag` ends it."""
        ends = {"td": PLACES, "th": PLACES, "tr": ROWS, "tbody": ROWS, "tfoot": ROWS, "thead": ROWS, "table": ROWS}
        while self.open and self.open[-1] in ends.get(tag, set()):
            self.handle_endtag(self.open[-1])

    def handle_endtag(self, tag: str) -> None:
        if tag in ("tr", "tbody", "thead", "tfoot", "table"):
            self._end_of_itself("td" if tag == "tr" else tag)
        if tag in self.open:
            while (last := self.open.pop()) != tag:
                if last not in ("p", "li"):
                    self.unclosed.append(last)
        else:
            self.unclosed.append(f"/{tag}")
        if tag in ("td", "th") and self.tables[-1][-1]:
            self.tables[-1][-1][-1] = " ".join(self.tables[-1][-1][-1].split())

    def handle_data(self, data: str) -> None:
        if not UNSEEN & set(self.open):
            self.text += data
            self._say(data)

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")

    def _say(self, data: str) -> None:
        if {"td", "th"} & set(self.open) and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data

    @property
    def rows(self) -> set[tuple[str, ...]]:
        """Of every table but the heads."""
        return {tuple(row) for table in self.tables for row in table[1:]}

    def loads(self) -> list[str]:
        """What a browser fetches by itself, addresses of `data:` apart."""
        names = ("src", "srcset", "poster", "background", "data", "action", "formaction", "ping", "xlink:href")
        found = [value for tag, name, value in self.attributes if name in names]
        found += [value for tag, name, value in self.attributes if name == "href" and tag not in ("a", "use")]
        found += [
            value
            for tag, name, value in self.attributes
            if tag == "use" and not value.startswith("#") and name == "href"
        ]
        return [value for value in found if not value.startswith("data:")]

    def links(self) -> list[str]:
        return [value for tag, name, value in self.attributes if (tag, name) == ("a", "href")]

    def ids(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "id"]


def policy_of(html: str) -> dict[str, list[str]]:
    """The page's Content-Security-Policy, by directive."""
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert found, "the page has a policy"
    parts = [part.split() for part in found[1].split(";")]
    return {part[0]: part[1:] for part in parts if part}
