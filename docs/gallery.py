"""Writes the verdicts of each kept report into the table of docs/gallery.md; the rest of it is written by hand.

python docs/gallery.py           writes the page
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/gallery.md"
ROW = re.compile(r"^(\| \[[^]]*\]\(\.\./(reports/[^)]+/report\.md)\) \|[^|]*\|) [^|]* \|$", re.MULTILINE)


def verdicts_of(report: str) -> str:
    """`13 supported, 3 refuted`: what a report says of itself first, without what there are none of.

    Raises:
        ValueError: the text has no such line.
    """
    found = re.search(r"\*\*(\d+ supported, [^*]*)\.\*\*", report)
    if found is None:
        raise ValueError("expected a line with the number of each verdict at the top of the report, found none")
    return ", ".join(part for part in found[1].split(", ") if not part.startswith("0 "))


def written(page: str) -> str:
    """`page` with the verdicts as they are now."""
    return ROW.sub(lambda row: f"{row[1]} {verdicts_of((ROOT / row[2]).read_text(encoding='utf-8'))} |", page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
