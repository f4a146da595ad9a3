"""A backend family's own environment: built from its lock, stamped last, and an error of pip in one message."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from claimbench.errors import SourceError
from claimbench.workflow import environments, installing


def test_an_environment_runs_this_package_and_is_stamped_with_its_lock(tmp_path: Path) -> None:
    lock = tmp_path / "family.lock"
    lock.write_text("# nothing but Python\n", encoding="utf-8")
    environments.build(lock, tmp_path / "family", tmp_path / "family/stamp.json")
    stamp = json.loads((tmp_path / "family/stamp.json").read_text(encoding="utf-8"))
    assert stamp["lock"] == hashlib.sha256(lock.read_bytes()).hexdigest()
    assert stamp["python"].startswith("Python 3.")
    python = tmp_path / "family/bin/python"
    asked = [str(python), "-I", "-c", "import claimbench, sys; print(claimbench.__version__, sys.prefix)"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "family") in told


def test_torch_comes_in_the_build_that_is_here_and_before_what_is_compiled_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(installing, "attempt", lambda _tool, _python, lock, _index: asked.append(lock.name))
    for said, build, expected in (
        ("# torch: here\n", "cuda", ["cuda.lock", "family.lock"]),
        ("# torch: here\n", "cpu", ["cpu.lock", "family.lock"]),
        ("# torch: cpu\n", "cuda", ["cpu.lock", "family.lock"]),
        ("# no torch\n", "cuda", ["family.lock"]),
    ):
        monkeypatch.setattr(installing, "here", lambda build=build: build)
        lock = tmp_path / "family.lock"
        lock.write_text(said, encoding="utf-8")
        asked.clear()
        environments.build(lock, tmp_path / "family", tmp_path / "stamp.json")
        assert asked == expected


def test_a_lock_that_cannot_be_installed_leaves_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    lock = tmp_path / "family.lock"
    lock.write_text("no-such-package-of-claimbench==1.0\n", encoding="utf-8")
    with pytest.raises(SourceError, match="no-such-package-of-claimbench"):
        environments.build(lock, tmp_path / "family", tmp_path / "stamp.json")
    assert not (tmp_path / "stamp.json").exists()


def test_what_must_be_compiled_is_compiled_by_the_new_environments_python(tmp_path: Path) -> None:
    lock = tmp_path / "family.lock"
    lock.write_text("# nothing but Python\n", encoding="utf-8")
    program = "import sys, pathlib; pathlib.Path(sys.prefix, 'compiled').write_text(sys.executable)"
    (tmp_path / "family.build.py").write_text(program, encoding="utf-8")
    environments.build(lock, tmp_path / "family", tmp_path / "stamp.json")
    assert (tmp_path / "family/compiled").read_text(encoding="utf-8") == str(tmp_path / "family/bin/python")


def test_a_program_that_fails_leaves_no_stamp_and_its_last_words(tmp_path: Path) -> None:
    lock = tmp_path / "family.lock"
    lock.write_text("# nothing but Python\n", encoding="utf-8")
    (tmp_path / "family.build.py").write_text("raise SystemExit('no compiler in sight')", encoding="utf-8")
    with pytest.raises(SourceError, match="no compiler in sight"):
        environments.build(lock, tmp_path / "family", tmp_path / "stamp.json")
    assert not (tmp_path / "stamp.json").exists()
