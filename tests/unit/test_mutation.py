"""What is known of the tests' own strength: the list of broken lines, and the page of sampled mutants."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from tests.unit.programs import program
from tests.unit.test_promises import names_in

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/mutation.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def mutation() -> ModuleType:
    return program("benchmarks/mutation.py")


def test_every_line_that_is_broken_by_hand_is_there_once_and_so_is_its_test(mutation: ModuleType) -> None:
    listed = mutation.broken_lines()
    assert len(listed) > 20
    for entry in listed:
        text = (ROOT / mutation.PACKAGE / entry["file"]).read_text(encoding="utf-8")
        assert text.count(entry["line"]) == 1, entry["what"]
        assert entry["line"] != entry["instead"]
        path, _, name = entry["test"].partition("::")
        assert name in names_in(f"tests/{path}"), entry["what"]


def test_every_module_that_is_mutated_exists_and_so_do_its_tests(mutation: ModuleType) -> None:
    for module, tests in mutation.TESTS.items():
        assert list((ROOT / mutation.PACKAGE).glob(f"{module}.py")), module
        for name in tests:
            path, _, test = name.partition("::")
            assert (ROOT / "tests" / path).is_file(), name
            assert not test or test in names_in(f"tests/{path}"), name


def test_the_page_has_a_row_for_each_module_with_the_interval_of_its_sample(mutation: ModuleType) -> None:
    rows = re.findall(
        r"^\| `([\w/*]+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+)% \((\d+)% to (\d+)%\)", PAGE, flags=re.MULTILINE
    )
    assert sorted(row[0] for row in rows) == sorted(mutation.TESTS)
    in_all, drawn, seen = (sum(int(row[column]) for row in rows) for column in (1, 2, 3))
    assert f"Of {in_all} mutants {drawn} were drawn, and {seen} of them noticed." in " ".join(PAGE.split())
    for module, mutants, sampled, noticed, *said in rows:
        assert int(noticed) <= int(sampled) <= int(mutants), module
        low, high = mutation.wilson(int(noticed), int(sampled))
        found = [round(100 * share) for share in (int(noticed) / int(sampled), low, high)]
        assert [int(each) for each in said] == found, module


def test_an_interval_of_a_share_is_wilson_s(mutation: ModuleType) -> None:
    """Newcombe (1998), table I: 81 of 263."""
    assert mutation.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


@pytest.mark.parametrize(("statuses", "missed"), [((0, 1), 0), ((0, 0), 1), ((0, 5), 1)])
def test_a_break_is_noticed_where_a_test_that_passed_fails(
    mutation: ModuleType, statuses: tuple[int, int], missed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest's status of the whole lines, then of the broken one; 5 is that there was no such test."""
    broken = tmp_path / mutation.PACKAGE / "a.py"
    broken.parent.mkdir(parents=True)
    broken.write_text("whole\n", encoding="utf-8")
    entry = {"file": "a.py", "line": "whole", "instead": "broken", "what": "it", "test": "unit/test_a.py"}
    ended, seen = iter(statuses), []

    def pytest_in(*_: object) -> int:
        seen.append(broken.read_text(encoding="utf-8"))
        return next(ended)

    monkeypatch.setattr(mutation, "broken_lines", lambda: [entry])
    monkeypatch.setattr(mutation, "pytest_in", pytest_in)
    assert mutation.break_by_hand(tmp_path) == missed
    assert seen == ["whole\n", "broken\n"]
    assert broken.read_text(encoding="utf-8") == "whole\n"


def test_tests_that_fail_on_whole_lines_say_nothing_about_broken_ones(
    mutation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutation, "pytest_in", lambda *_: 1)
    with pytest.raises(SystemExit, match="while every line is whole"):
        mutation.break_by_hand(tmp_path)
