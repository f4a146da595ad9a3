"""Whole runs of Snakemake and of `dvc repro`, killed at a random moment with all that they started, and run again.

The seed of each moment is printed. Fifty of each: `CLAIMBENCH_KILLS=50 pytest -m long tests/faults/test_kills.py -s`.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.pipeline.conftest import Project, lay_out

from claimbench.schema import result
from claimbench.schema import round as round_file

pytestmark = [pytest.mark.long, pytest.mark.pipeline]

KILLS = int(os.environ.get("CLAIMBENCH_KILLS", "2"))
SEED = int(os.environ.get("CLAIMBENCH_KILL_SEED", "0")) or secrets.randbits(32)
COMMANDS = {"snakemake": ("snakemake", "--cores", "all"), "dvc": ("dvc", "repro")}
LONGEST_S = 60.0
"""Of a run that is left alone, and more."""


@pytest.fixture(scope="module", params=COMMANDS)
def begun(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Project]:
    """A fresh project with blocks and rounds, committed, in which nothing has run."""
    folder = tmp_path_factory.mktemp(request.param) / "project"
    folder.mkdir()
    project = lay_out(folder)
    project.params["measure"] |= {"blocks": 2, "budget_minutes": 0.3}
    project.study["experiments"]["alone"] = {
        "question": "What starts cold?",
        "cells": {"cold": {"page_cache": "cold", "options": {"step_ms": 2}}, "fails": {"options": {"fails": "oom"}}},
    }
    project.write()
    project.run("git", "init", "--quiet")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "A project")
    return request.param, project


def whole(project: Project) -> dict[str, bytes]:
    """Every result and round that is there, each of which can be read."""
    found = {}
    for path in sorted((project.folder / "results").glob("measure/*/*/[0-9]*.json")):
        result.read(path)
        found[str(path.relative_to(project.folder))] = path.read_bytes()
    for path in sorted((project.folder / "results").glob("rounds/*.json")):
        round_file.read(path)
        found[str(path.relative_to(project.folder))] = path.read_bytes()
    return found


def kill(project: Project, command: tuple[str, ...], after_s: float) -> bool:
    """Run it and kill it after so long, with all that it started; False: it had ended by then."""
    with subprocess.Popen(
        command,
        cwd=project.folder,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        begun = time.monotonic()
        while process.poll() is None and time.monotonic() < begun + after_s:
            time.sleep(0.02)
        was_there = process.poll() is None
        os.killpg(process.pid, signal.SIGKILL) if was_there else None
        process.wait()
    return was_there


@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_that_is_killed_keeps_its_results_and_the_next_one_ends_well(
    begun: tuple[str, Project], number: int, tmp_path: Path
) -> None:
    name, fresh = begun
    project = fresh.copy(tmp_path / "project")
    chance = random.Random(f"{SEED} {number}")  # noqa: S311 - a moment, not a secret
    print(f"\nCLAIMBENCH_KILL_SEED={SEED}, kill {number} of {name}")
    there: dict[str, bytes] = {}
    for _ in range(chance.choice([1, 1, 2, 3])):
        killed = kill(project, COMMANDS[name], after_s=LONGEST_S * chance.random() ** 2)
        now = whole(project)
        assert there.items() <= now.items(), "what was there before a kill is there after it"
        there = now
        if not killed:
            break
    project.run(*COMMANDS[name], timeout=900)
    last = whole(project)
    assert there.items() <= last.items(), "no result that was whole is measured again"
    assert not list((project.folder / "results").rglob("*.damaged.*"))
    assert not list((project.folder / "results").rglob(".*.unfinished"))
    again = project.run(*COMMANDS[name], timeout=900)
    assert whole(project) == last, again
