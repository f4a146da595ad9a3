"""A small project on the null backend, run by the real Snakemake (and DVC) in a folder of its own.

It has its own copy of the package on its path, so that a test can change the code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent

PARAMS: dict[str, Any] = {
    "studies": ["paces"],
    "device": "cpu",
    "measure": {"blocks": 1, "samples": 1, "warmup_max": 1, "timeout_s": 60},
    "checkpoints": {
        "tiny": {"source": "random://tiny-llama?seed=0", "architecture": "tiny-llama"},
        "other": {"source": "random://tiny-llama?seed=1", "architecture": "tiny-llama"},
    },
    "dvc": {"weights": []},
}
STUDY: dict[str, Any] = {
    "title": "Paces",
    "document": {"title": "A document of paces"},
    "prompts": {"hello": "Hello"},
    "defaults": {"checkpoint": "tiny", "backend": "null_model", "prompt": "hello", "new_tokens": 4},
    "experiments": {
        "pace": {
            "question": "Is a slower pace slower?",
            "cells": {"fast": {"options": {"step_ms": 1}}, "slow": {"options": {"step_ms": 3}}},
        }
    },
    "claims": [
        {
            "id": "P1",
            "kind": "ratio",
            "statement": "A step of 1 ms is faster than one of 3 ms",
            "checks": [
                {"kind": "ratio", "metric": "decode_tok_s", "of": "pace/fast", "to": "pace/slow", "expect": "above"}
            ],
        }
    ],
}


def _let_neighbours_be(rules: Path) -> None:
    """Tests that run beside this one take the cores, and would void its rounds. That rule is tested elsewhere."""
    usual, found = 'Rule("foreign_cpu", 0.50, Effect.VOID', rules.read_text(encoding="utf-8")
    assert usual in found
    rules.write_text(found.replace(usual, 'Rule("foreign_cpu", 9.0, Effect.VOID'), encoding="utf-8")


QUICKLY = {
    "ROUNDS = 3": "ROUNDS = 1",
    "REPEATS = 7": "REPEATS = 1",
    "AT_LEAST_S = 0.6": "AT_LEAST_S = 0.0",
    '"cpu": 1 << 29': '"cpu": 1 << 24',
    "FILE_BYTES = 1 << 28": "FILE_BYTES = 1 << 22",
    "FILE_READS = 3": "FILE_READS = 1",
    "1024, 2048, 4096, 8192)": ")",
}


def _measure_limits_quickly(ceiling: Path) -> None:
    """Every project measures the machine's limits once, and half a minute of it proves nothing about a workflow."""
    text = ceiling.read_text(encoding="utf-8")
    for usual, quick in QUICKLY.items():
        assert text.count(usual) == 1, usual
        text = text.replace(usual, quick)
    ceiling.write_text(text, encoding="utf-8")


def lay_out(folder: Path) -> Project:
    """Put everything that a clone has into `folder`, with the study of paces in place of the documents'."""
    for name in ("workflow", "profiles", "src", "envs", "plots"):
        ignored = shutil.ignore_patterns("*.pyc.*", "*.egg-info")  # with what is compiled, which takes seconds anew
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    _measure_limits_quickly(folder / "src/claimbench/measuring/ceiling.py")
    _let_neighbours_be(folder / "src/claimbench/analysis/validity.py")
    (folder / ".dvc").mkdir()
    for name in ("Snakefile", "dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, folder / name)
    project = Project(folder, json.loads(json.dumps(PARAMS)), json.loads(json.dumps(STUDY)))
    project.write()
    return project


class Project:
    """A folder with a workflow, and the means to run it."""

    def __init__(self, folder: Path, params: dict[str, Any], study: dict[str, Any]) -> None:
        self.folder, self.params, self.study = folder, params, study

    def copy(self, folder: Path) -> Project:
        """The project in another folder, results, history and all."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return self.at(folder)

    def at(self, folder: Path) -> Project:
        """The project as a clone in `folder` holds it."""
        return Project(folder, json.loads(json.dumps(self.params)), json.loads(json.dumps(self.study)))

    def write(self) -> None:
        (self.folder / "studies").mkdir(exist_ok=True)
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params), encoding="utf-8")
        (self.folder / "studies/paces.yaml").write_text(yaml.safe_dump(self.study), encoding="utf-8")

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": f"{self.folder / 'src'}:{self.folder / 'libraries'}",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_AUTHOR_NAME": "tests",
            "GIT_AUTHOR_EMAIL": "tests@localhost",
            "GIT_COMMITTER_NAME": "tests",
            "GIT_COMMITTER_EMAIL": "tests@localhost",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.folder.parent / "dvc"),
            "DVC_SYSTEM_CONFIG_DIR": str(self.folder.parent / "no-config"),
            "DVC_GLOBAL_CONFIG_DIR": str(self.folder.parent / "no-config"),
            "XDG_CACHE_HOME": str(self.folder.parent / "cache"),
            "TMPDIR": str(self.scratch),
            "CLAIMBENCH_LOCKS": str(self.scratch),  # tests do not wait for a study that runs
        }

    @property
    def scratch(self) -> Path:
        scratch = self.folder.parent / "tmp"
        scratch.mkdir(exist_ok=True)
        return scratch

    def run(self, *command: str, fails: bool = False, timeout: float = 240) -> str:
        """Run a command in the project; its whole output. `fails` says which exit status is expected."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert bool(done.returncode) == fails, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def snakemake(self, *arguments: str, fails: bool = False) -> str:
        return self.run("snakemake", "--cores", "all", *(arguments or ("measured",)), fails=fails)

    def jobs(self, target: str = "all") -> dict[str, int]:
        """The job table of `snakemake -n`."""
        return {job: int(count) for job, count in re.findall(r"^(\w+) +(\d+)$", self.snakemake("-n", target), re.M)}

    def results(self) -> dict[str, bytes]:
        """Every result file with its content: no block takes the same nanoseconds twice."""
        found = sorted((self.folder / "results/measure").glob("*/*/*.json"))
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}

    def measured_by(self, *arguments: str) -> list[dict[str, Any]]:
        """Run Snakemake; the records that this run wrote anew."""
        return self.measured_while(lambda: self.snakemake(*arguments))

    def measured_while(self, happens: Callable[[], object]) -> list[dict[str, Any]]:
        """The records that are new or other after `happens`."""
        before = self.results()
        happens()
        return [self.record(path) for path, content in self.results().items() if before.get(path) != content]

    def record(self, path: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.folder / path).read_text(encoding="utf-8"))["result"]
        return record

    def records(self) -> list[dict[str, Any]]:
        return [self.record(path) for path in self.results()]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    return lay_out(folder)


@pytest.fixture(scope="session")
def project_in() -> Callable[[Path], Project]:
    """For fixtures of a wider scope than a test."""
    return lay_out


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A project after `snakemake`, and what that printed."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    folder.mkdir()
    project = lay_out(folder)
    return project, project.snakemake("all")


@pytest.fixture
def rendered(finished: tuple[Project, str], tmp_path: Path) -> Project:
    """The same in a folder of its own, which may be changed."""
    return finished[0].copy(tmp_path / "project")
