"""docs/gallery.md has every kept report, with the verdicts that the report says at its top."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from tests.unit.programs import program

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/gallery.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    return program("docs/gallery.py")


def test_every_kept_report_is_on_the_page_with_the_verdicts_that_it_says(gallery: ModuleType) -> None:
    reports = {*(ROOT / "reports").glob("*/report.md"), *(ROOT / "reports").glob("*.md")} - {ROOT / "reports/report.md"}
    linked = {ROOT / path for path in re.findall(r"\(\.\./(reports/[^)]+)\)", PAGE)}
    assert linked == reports
    assert gallery.written(PAGE) == PAGE, "write it anew: python docs/gallery.py"


def test_a_count_that_is_not_the_reports_is_put_right(gallery: ModuleType) -> None:
    edited = re.sub(r"\d+ supported", "99 supported", PAGE)
    assert edited != PAGE
    assert gallery.written(edited) == PAGE


def test_verdicts_that_there_are_none_of_are_left_out(gallery: ModuleType) -> None:
    assert gallery.verdicts_of("x\n\nOn it: **2 supported, 0 refuted, 1 undecided.**\n") == "2 supported, 1 undecided"
    computed = "On it: **2 supported, 1 refuted.** Computed from figures: 0 that agree, 1 that differs."
    assert gallery.verdicts_of(computed) == "2 supported, 1 refuted"
    with pytest.raises(ValueError, match="number of each verdict"):
        gallery.verdicts_of("# Nothing of the kind\n")
