"""DVC runs a queued experiment in a copy of its revision: that copy's code runs there, and is in the keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory, project_in: Any) -> Any:
    """A project that was never run, at one commit; its package is installed for editing, as a clone's is."""
    folder = tmp_path_factory.mktemp("queued") / "project"
    folder.mkdir()
    project = project_in(folder)
    mark(project, "committed")
    project.run("git", "init", "--quiet")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "A project")
    return project


def mark(project: Any, word: str) -> None:
    """Have the null backend's proof say `word`."""
    path = project.folder / "src/claimbench/backends/null_model.py"
    text = path.read_text(encoding="utf-8")
    marked = re.sub(r'else \{"calls": self\.calls[^}]*\}', f'else {{"calls": self.calls, "marked": "{word}"}}', text)
    assert marked != text
    path.write_text(marked, encoding="utf-8")


def seen(project: Any) -> set[tuple[str, str]]:
    """Of each result, what the proof says and the code in its key."""
    return {(one["proof"]["marked"], one["key"]["code"]) for one in project.records()}


@pytest.mark.slow
def test_a_queued_experiment_runs_the_code_that_it_was_queued_with(committed: Any, tmp_path: Path) -> None:
    project = committed.copy(tmp_path / "project")
    mark(project, "queued")
    project.run("dvc", "exp", "run", "--queue", "--name", "first")
    mark(project, "later")
    project.run("dvc", "exp", "run", "--run-all", timeout=400)
    project.run("git", "checkout", "--quiet", "--force", ".")
    project.run("dvc", "exp", "apply", "first")
    (only,) = seen(project)
    assert only[0] == "queued"
    assert '"queued"' in (project.folder / "src/claimbench/backends/null_model.py").read_text(encoding="utf-8")
    assert project.measured_by("measured") == [], "its key is of the code that was applied with it"
