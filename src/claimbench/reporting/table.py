"""A table as data: what stands in each place, what it rests on, and how it reads in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from claimbench.reporting.markup import literal
from claimbench.schema.interval import Interval

Style = Literal["plain", "strong", "emphasis"]
WRAPPED: dict[Style, str] = {"plain": "{}", "strong": "**{}**", "emphasis": "*{}*"}


class Entry(NamedTuple):
    """What stands in one place of a table."""

    text: str
    below: tuple[str, ...] = ()
    """Further lines, of our own making."""
    is_outside: bool = False
    """Written by a study or a machine, so that no character of it may be taken for markup but code's backticks."""
    style: Style = "plain"
    marks: tuple[int, ...] = ()
    """The numbers of the notes below the table that it refers to."""
    found: Interval | None = None
    """The number itself, in the unit of its column."""
    cell: str | None = None
    """Id of the cell whose samples it rests on."""
    metric: str | None = None

    @property
    def markdown(self) -> str:
        first = WRAPPED[self.style].format(literal(self.text) if self.is_outside else self.text)
        raised = f" <sup>{', '.join(map(str, self.marks))}</sup>" if self.marks else ""
        return "<br>".join([first + raised, *self.below])


NOTHING = Entry("–")


def outside(text: object) -> Entry:
    """What a study or a machine says."""
    return Entry(str(text), is_outside=True)


class Table(NamedTuple):
    title: str
    head: tuple[Entry, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]
    """What the marks in the entries refer to, in order."""
    plotted: int | None = None
    """The column of ratios to the first row, which can be drawn beside their rows."""


class Notes:
    """Reasons and doubts of one table, each numbered once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, texts: Iterable[str]) -> tuple[int, ...]:
        """The numbers of `texts`."""
        found = []
        for text in texts:
            if text not in self.texts:
                self.texts.append(text)
            found.append(self.texts.index(text) + 1)
        return tuple(found)
