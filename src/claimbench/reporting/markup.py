"""Text that comes from outside, made safe for each place that it is written to: the only place where that is done.

| where | function | what stays Markdown |
|---|---|---|
| a sentence or a cell of a table | `literal` | `code` between single backticks |
| a study's own question, statement, note, setting | `prose` | that, emphasis, and links to https:// and http:// |
| between backticks of the template | `code` | nothing |
| a picture's description | `alternative` | nothing |
| a link | `link`, whose target is `address` or `file_address` | nothing |
| a block of code | `fenced` | nothing |
| an SVG's text | `xml` | nothing |
| a sentence of a page in HTML | `html` | `code` between single backticks |

All of them show a character that steers a terminal or turns the direction of reading as �. No text may begin a line as
a heading or a list, hold HTML, load anything, or link by itself. Syntax: CommonMark 0.31 and GitHub's extensions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath
from urllib.parse import quote, urlsplit
from xml.sax.saxutils import escape

STEERING = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # of terminals; XML forbids most of them
    "\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # of the direction of reading; others without a width
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
SHOWN = "\ufffd"
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"(?<![!\\])\[([^\[\]]*)\]\((https?://[^\s()<>\\]+)\)")
ESCAPES = (
    (re.compile(r"&(?=#?\w+;)"), "&amp;"),
    (re.compile(r"<"), "&lt;"),
    (re.compile(r">"), "&gt;"),
    (re.compile(r"([\\`|~$])"), r"\\\1"),
    (re.compile(r"\](?=[(\[:]|$)"), r"\\]"),
    (re.compile(r"(?<=\w):(?=//)"), r"\\:"),
    (re.compile(r"(?<=\bwww)\.", re.IGNORECASE), r"\\."),
    (re.compile(r"^([#+=-])"), r"\\\1"),
    (re.compile(r"^(\d{1,9})([.)])(?=\s|$)"), r"\1\\\2"),
)
EMPHASIS = re.compile(r"\*|(?<![^\W_])_|_(?![^\W_])")
"""An underscore inside a word is none."""
SAFE_IN_URL = "%/:?#@!$&'*+,;=~-._"


def clean(text: object) -> str:
    """`text` on one line, without characters that steer."""
    return re.sub(r"\s+", " ", STEERING.sub(SHOWN, str(text))).strip()


def literal(text: object) -> str:
    """`text` as it is, `code` apart, in a sentence or in a cell of a table."""
    return _around_code(clean(text), lambda part: EMPHASIS.sub(r"\\\g<0>", _escaped(part)))


def prose(text: object) -> str:
    """What the author of a study wrote: `code`, emphasis, and links to the web stay what they are."""
    return _around_code(clean(text), lambda part: _around(LINK, part, _escaped, _link_in_prose))


def code(text: object) -> str:
    """`text` between backticks, as many as it needs; a bar, which a table would take for its own, between two codes."""
    parts = clean(text).split("|")
    return "\\|".join(_code(part) if part or len(parts) == 1 else "" for part in parts)


def _code(part: str) -> str:
    inside = part or " "
    ticks = "`" * (max(map(len, re.findall(r"`+", inside)), default=0) + 1)
    space = " " if len(ticks) > 1 or inside.startswith("`") or inside.endswith("`") else ""
    return f"{ticks}{space}{inside}{space}{ticks}"


def alternative(text: object) -> str:
    """The description of a picture, whose brackets would end it."""
    return literal(clean(text).replace("[", "(").replace("]", ")").replace("`", "'"))


def link(text: object, url: str | None) -> str:
    """`text`, as a link where `url` is one of the web."""
    target = address(url)
    return f"[{alternative(text)}]({target})" if target else literal(text)


def address(url: str | None) -> str | None:
    """`url` as the target of a link; None where it is none of the web: `javascript:` runs, `data:` and `file:` load."""
    if url is None or url != clean(url):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return quote(url, safe=SAFE_IN_URL) if parts.scheme in ("http", "https") and parts.hostname else None


def file_address(path: str) -> str:
    """A path, relative to the report, as the target of a link."""
    return quote(path.encode("utf-8", "surrogatepass"), safe="/=@,+-._")


def file_label(path: str) -> str:
    """What a link to a raw result says: `round of 20:11:45`, `block 0`."""
    file = PurePosixPath(path)
    if file.parent.name != "rounds":
        return f"block {file.stem}"
    clock = file.stem.partition("T")[2]
    return f"round of {clock[:2]}:{clock[2:4]}:{clock[4:6]}" if clock[:6].isdigit() else f"round {file.stem}"


def html(text: object) -> str:
    """`text` as it is, `code` apart, as the content of an element."""
    return _around_code(clean(text), _entities, lambda found: f"<code>{_entities(found[1])}</code>")


def fenced(text: str, language: str) -> str:
    """`text` as a block of code, behind more backticks than it has in a row."""
    lines = STEERING.sub(SHOWN, text).rstrip("\n")
    ticks = "`" * max(3, max(map(len, re.findall(r"`+", lines)), default=0) + 1)
    return f"{ticks}{language}\n{lines}\n{ticks}"


def xml(text: object) -> str:
    """`text` as the content of an element."""
    return _entities(clean(text))


def _entities(part: str) -> str:
    return escape(part, {'"': "&quot;"})


def _escaped(part: str) -> str:
    for pattern, replacement in ESCAPES:
        part = pattern.sub(replacement, part)
    return part


def _link_in_prose(found: re.Match[str]) -> str:
    return f"[{_escaped(found[1])}]({address(found[2])})" if address(found[2]) else _escaped(found[0])


def _around_code(
    text: str, outside: Callable[[str], str], inside: Callable[[re.Match[str]], str] = lambda found: code(found[1])
) -> str:
    return _around(CODE, text, outside, inside)


def _around(
    pattern: re.Pattern[str], text: str, outside: Callable[[str], str], inside: Callable[[re.Match[str]], str]
) -> str:
    """`text` with what matches `pattern` made of `inside`, and all between of `outside`."""
    made, end = "", 0
    for found in pattern.finditer(text):
        made += outside(text[end : found.start()]) + inside(found)
        end = found.end()
    return made + outside(text[end:])
