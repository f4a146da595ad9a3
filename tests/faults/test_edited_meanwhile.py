"""What is measured is what its key names: nothing is sealed under a key whose code or libraries were changed since."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from claimbench.backends import null_model
from claimbench.errors import ResultError
from claimbench.measuring import measure, rounds
from claimbench.measuring.arm import ArmRequest
from claimbench.measuring.block_request import BlockRequest
from claimbench.measuring.round_process import RoundRequest
from claimbench.planning import code_hash, result_key
from claimbench.planning.result_key import key_of
from claimbench.schema.cell import Cell, Checkpoint, Protocol, Workload
from claimbench.schema.result import Key


class Installation:
    """A copy of the package's sources, with a library and a lock: what keys are made from, and may be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "src/claimbench"
        shutil.copytree(code_hash.PACKAGE, self.package, ignore=shutil.ignore_patterns("*.pyc", "*.so"))
        self.versions = {"paced-library": "1.0"}
        (folder / "envs").mkdir()
        self.lock = folder / "envs/family.lock"
        self.lock.write_text("package==1.0\n", encoding="utf-8")

    def append(self, path: str, text: str) -> None:
        with (self.package / path).open("a", encoding="utf-8") as file:
            file.write(text)

    def replace(self, path: str, old: str, new: str) -> None:
        text = (self.package / path).read_text(encoding="utf-8")
        assert old in text
        (self.package / path).write_text(text.replace(old, new), encoding="utf-8")

    def replace_quietly(self, path: str, old: str, new: str) -> None:
        """Where an archive or a tool puts back the time that a file was changed."""
        found = (self.package / path).stat()
        self.replace(path, old, new)
        os.utime(self.package / path, ns=(found.st_atime_ns, found.st_mtime_ns))
        assert (self.package / path).stat().st_size == found.st_size


Change = Callable[[Installation], object]

FALSIFYING: dict[str, Change] = {
    "code that times": lambda here: here.append("measuring/clock.py", "EDITED = 1\n"),
    "code of the backend": lambda here: here.append("backends/null_model.py", "EDITED = 1\n"),
    "a module of no import yet": lambda here: (
        here.append("backends/added.py", "EDITED = 1\n"),
        here.append("backends/null_model.py", "from claimbench.backends import added\n"),
    ),
    "a module that is gone": lambda here: (here.package / "system/unread.py").unlink(),
    "the backend is gone": lambda here: (here.package / "backends/null_model.py").unlink(),
    "code that does not parse": lambda here: here.append("measuring/clock.py", "def half_a_thought(:\n"),
    "code that is no text": lambda here: (here.package / "measuring/clock.py").write_bytes(b"\xff\xfe\x00"),
    "a file of equal size and time": lambda here: here.replace_quietly("measuring/clock.py", "first", "fIrst"),
    "an upgrade": lambda here: here.versions.update({"paced-library": "2.0"}),
    "a library that is gone": lambda here: here.versions.clear(),
}
HARMLESS: dict[str, Change] = {
    "nothing": lambda _: None,
    "a remark": lambda here: here.append("measuring/clock.py", "# A remark.\n"),
    "a docstring": lambda here: here.replace("measuring/clock.py", '"""The clock:', '"""A clock:'),
    "what is not executed": lambda here: here.append("reporting/report.py", "EDITED = 1\n"),
    "another library": lambda here: here.versions.update({"some-other": "3.0"}),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Installation(tmp_path / "installation")

    def version(name: str) -> str:
        if name in made.versions:
            return made.versions[name]
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(code_hash, "PACKAGE", made.package)
    monkeypatch.setattr(code_hash.metadata, "version", version)
    monkeypatch.setattr(null_model, "LIBRARIES", ("paced-library",))
    monkeypatch.setattr(result_key, "locks_folder", lambda: made.folder / "envs")
    code_hash.forget()
    yield made
    monkeypatch.undo()
    code_hash.forget()


def cell() -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama?seed=0", architecture="tiny-llama"),
        backend="null_model",
        options={"step_ms": 1},
        workload=Workload(prompt="Hello", new_tokens=4),
        device="cpu",
        protocol=Protocol(samples=1, warmup_max=1, timeout_s=60),
    )


def in_a_block(key: Key, output: Path) -> object:
    return measure.measure(cell(), 0, key, output, checkpoint=None)


def in_a_round(key: Key, output: Path) -> object:
    arms = tuple(ArmRequest(name=name, block=BlockRequest(cell=cell()), key=key) for name in ("one", "other"))
    return rounds.measure_round(RoundRequest(arms=arms, passes=1, seed=0), output)


def after(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, happens: Callable[[], object]) -> None:
    """Have something happen when what measures has what it measured, and has not written it yet."""
    usual = getattr(where, name)

    def then(*arguments: Any, **more: Any) -> Any:
        found = usual(*arguments, **more)
        happens()
        return found

    monkeypatch.setattr(where, name, then)


PLACES = [(in_a_block, measure, "supervise"), (in_a_round, rounds._Running, "ask")]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("change", FALSIFYING)
@pytest.mark.parametrize(("measures", "where", "name"), PLACES)
def test_nothing_is_written_under_a_key_that_names_other_code(
    measures: Any, where: Any, name: str, change: str, when: str, here: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    key, output, started = key_of(cell(), "m"), tmp_path / "0.json", []
    after(monkeypatch, where, name, lambda: started.append(1))
    if when == "before":
        FALSIFYING[change](here)
    else:
        after(monkeypatch, where, name, lambda: FALSIFYING[change](here))
    with pytest.raises(ResultError, match="since the plan was made") as refused:
        measures(key, output)
    assert not output.exists()
    assert len(started) == (when == "meanwhile"), "what is changed before is not measured at all"
    said = str(refused.value)
    assert ("paced-library is" in said) == (change in ("an upgrade", "a library that is gone"))
    assert ("code of Claimbench" in said) == ("paced-library is" not in said)
    code_hash.forget()
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        assert key_of(cell(), "m") != key


@pytest.mark.parametrize("change", HARMLESS)
@pytest.mark.parametrize(("measures", "where", "name"), PLACES)
def test_what_changes_no_key_stops_nothing(
    measures: Any, where: Any, name: str, change: str, here: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    key, output = key_of(cell(), "m"), tmp_path / "0.json"
    after(monkeypatch, where, name, lambda: HARMLESS[change](here))
    measures(key, output)
    assert output.exists()
    code_hash.forget()
    assert key_of(cell(), "m") == key


def test_the_lock_of_an_environment_counts_as_its_libraries(here: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(null_model, "ENVIRONMENT", "family")
    key = key_of(cell(), "m")
    here.lock.write_text("package==2.0\n", encoding="utf-8")
    with pytest.raises(ResultError, match=r"envs/family\.lock is .* and was .* since the plan was made"):
        in_a_block(key, tmp_path / "0.json")


def test_what_is_there_already_is_kept_whatever_was_edited(here: Any, tmp_path: Path) -> None:
    key, output = key_of(cell(), "m"), tmp_path / "0.json"
    first = in_a_block(key, output)
    FALSIFYING["code that times"](here)
    assert in_a_block(key, output) == first
