"""A study with a budget, measured in rounds by the real Snakemake on the null backend."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from claimbench.judging import recommend

pytestmark = pytest.mark.pipeline


def rounds_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "results/rounds").glob("*.json"))}


def decided(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "results/decided").glob("*.json")
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["rounds"]
    return written


def test_rounds_settle_a_study_and_a_larger_budget_keeps_them(project: Any) -> None:
    project.params["measure"]["budget_minutes"] = 0.6
    project.write()
    said = project.snakemake("all")
    assert re.search(r"1 of 1 claims decided in \d+ rounds", said), said
    assert "now: what to switch on (paces: pace), 3 cells" in said
    first = rounds_in(project.folder)
    assert len(first) == len(decided(project.folder)["seals"]) >= 2
    report = (project.folder / "reports/report.md").read_text(encoding="utf-8")
    assert "| **supported** |" in report
    assert all(name in report for name in first)
    assert "fast (paces)" in report
    assert recommend.TOO_FEW not in report
    assert project.jobs() == {}

    project.params["measure"]["budget_minutes"] = 0.8
    claim = {"id": "P2", "kind": "ratio", "statement": "The same pace"}
    check = {"kind": "ratio", "metric": "total_ms", "of": "pace/slow", "to": "pace/fast", "expect": {"at_most": 2.0}}
    project.study["claims"].append({**claim, "checks": [check]})
    project.write()
    assert project.jobs()["rounds"] == 1
    project.snakemake("all")
    assert first.items() <= rounds_in(project.folder).items()


def test_a_run_that_is_killed_goes_on_with_the_rounds_that_are_there(project: Any) -> None:
    project.params["measure"]["budget_minutes"] = 0.6
    for options in project.study["experiments"]["pace"]["cells"].values():
        options["options"]["step_ms"] = 100
    project.study["experiments"]["pace"]["cells"]["slow"]["options"]["step_ms"] = 200
    project.write()
    command = [str(Path(sys.executable).parent / "snakemake"), "--cores", "all"]
    running = subprocess.Popen(
        command, cwd=project.folder, env=project.environment(), start_new_session=True, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while not rounds_in(project.folder):
        assert time.monotonic() < until, "no round came"
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    first = rounds_in(project.folder)
    project.run("snakemake", "--unlock")
    said = project.snakemake("all")
    assert re.search(r"claims decided in \d+ rounds", said), said
    assert first.items() <= rounds_in(project.folder).items()
    assert len(rounds_in(project.folder)) >= 2
