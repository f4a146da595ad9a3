"""What commands print: tables, notes, and a line of progress. Colour and moving lines are for terminals alone.

`NO_COLOR` is honoured, and `FORCE_COLOR` (https://no-color.org, https://force-color.org), by rich. What goes into a
pipe is as wide as it is: one line a row.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from claimbench.system.redaction import redact

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 10_000
STYLES = {
    "supported": "green",
    "refuted": "red",
    "bounded": "cyan",
    "undecided": "yellow",
    "ok": "green",
    "worse": "red",
    "better": "green",
    "no": "red",
    "unavailable": "yellow",
    "oom": "yellow",
    "wrong": "red",
    "error": "red",
    "refused": "yellow",
}
"""By the first word of a cell of a table."""


class Column(NamedTuple):
    head: str
    is_number: bool = False
    wraps: bool = False
    """On a terminal; other columns keep their text in one line."""


def console(*, to_stderr: bool = False) -> Console:
    from rich.console import Console

    class Pipeable(Console):
        """rich ends the process where the reader of a pipe has gone; here the caller does, with a status of its own."""

        def on_broken_pipe(self) -> NoReturn:
            raise BrokenPipeError

    file = sys.stderr if to_stderr else sys.stdout
    width = None if file.isatty() else PIPE_WIDTH
    return Pipeable(file=file, width=width, highlight=False, soft_wrap=False)


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table without lines around it; nothing where there are no rows."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left", title_style="bold")
    for column in columns:
        made.add_column(
            column.head,
            justify="right" if column.is_number else "left",
            no_wrap=not column.wraps,
            overflow="fold",
        )
    for row in rows:
        made.add_row(*(Text(redact(text), style=STYLES.get(text.partition(" ")[0].rstrip(":"), "")) for text in row))
    shown = console()
    if shown.is_terminal:
        shown.print(made)
        return
    with shown.capture() as text:
        shown.print(made)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))


def rows(columns: Sequence[Column], found: Sequence[Sequence[str]], *, json: bool, none: str) -> None:
    """What a command found: for programs, or as a table, or that there is `none`."""
    if json:
        as_json(columns, found)
    elif found:
        table(columns, found)
    else:
        note(none)


def as_json(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """The rows as a list of objects by the columns' heads, for programs."""
    found = [{column.head: text for column, text in zip(columns, row, strict=True)} for row in rows]
    print(redact(json.dumps(found, indent=1, ensure_ascii=False)))


def say(text: str) -> None:
    print(redact(text))


def note(text: str) -> None:
    """To standard error, which is no part of the answer."""
    print(f"claimbench: {redact(text)}", file=sys.stderr, flush=True)


class Progress:
    """A line that says what is going on; where nobody watches, each new thing is a line of its own."""

    def __init__(self, console: Console | None) -> None:
        self.console = console
        self.status = console.status("starting") if console else None

    def line(self, text: str) -> None:
        """Something that is to stay on the screen."""
        if self.console:
            from rich.text import Text

            self.console.print(Text(redact(text)))
        else:
            print(redact(text), file=sys.stderr, flush=True)

    def doing(self, text: str) -> None:
        """What is going on now."""
        if self.status:
            from rich.text import Text

            self.status.update(Text(redact(text)))


@contextmanager
def progress() -> Iterator[Progress]:
    shown = Progress(console(to_stderr=True) if sys.stderr.isatty() else None)
    if shown.status is None:
        yield shown
        return
    with shown.status:
        yield shown
