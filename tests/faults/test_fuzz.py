"""Every file that comes from outside, changed at random: it is read, or refused with a sentence, soon and in bounds.

The long run is by hand, see fuzz.py. What it found lies in `data/`, one file each, named for its target and what it
was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults import fuzz
from tests.faults.fuzz_targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
CASES = {"study": 60, "params": 40, "result": 60, "round": 60, "verdicts": 60, "tokenizer": 80}
"""Of targets whose cases take long; the others have 250."""
GROUPS = {number: sorted(TARGETS)[number::4] for number in range(4)}


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_only_typed_errors_in_a_bounded_process(group: int) -> None:
    """Each in a process that has a bound on its memory, and each case with a bound on its time."""
    for name in GROUPS[group]:
        command = [sys.executable, "-m", "tests.faults.fuzz", name, "--cases", str(CASES.get(name, 250))]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{done.stdout}{done.stderr[-2000:]}"
        assert f"{name}: {CASES.get(name, 250)} cases" in done.stdout


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_is_changed_is_right_before(name: str, here: Path) -> None:
    """Else everything would be refused for one reason, and nothing behind it be tried."""
    target = TARGETS[name]
    ended = [fuzz.tried(target, content) for content in target.corpus()]
    assert all(what is None for _, what in ended)
    assert "read" in {how for how, _ in ended}


def test_a_case_is_the_same_for_the_same_seed(here: Path) -> None:
    target = TARGETS["result"]
    assert fuzz.mutated(target, 3, 7) == fuzz.mutated(target, 3, 7)
    assert len({fuzz.mutated(target, 3, number) for number in range(50)}) > 45


def test_what_should_be_found_is_found(here: Path) -> None:
    def reads(content: bytes) -> None:
        if b"\xff" in content:
            raise KeyError("an error that no caller expects")
        if len(content) < 3:
            raise ValueError("")

    target = Target("strict", lambda: [b"abcdefgh"], reads, (ValueError,))
    ended, found = fuzz.fuzz(target, 0, 300, None)
    assert min(ended["found"], ended["read"]) > 0
    assert {what.what.partition(":")[0] for what in found} == {"KeyError", "an error without a sentence"}


@pytest.mark.parametrize("path", sorted(DATA.glob("*")), ids=lambda path: path.name)
def test_what_was_found_is_read_or_refused(path: Path, here: Path) -> None:
    target = TARGETS[path.name.partition("-")[0]]
    how, what = fuzz.tried(target, path.read_bytes())
    assert what is None, what
    assert how in {error.__name__ for error in target.refuses} | {"RequestFailed", "read"}
