"""`claimbench run` as a person types it: the workflow runs in a folder of its own, and a table answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.pipeline

PARAMS = {"studies": ["paces"], "checkpoints": {"tiny": "random://tiny-llama?seed=0"}}


def laid_out(project: Any, step_ms: int = 1) -> Path:
    """An empty folder with a study of the null backend, beside the copy of the package that the test runs."""
    folder: Path = project.folder.parent / "elsewhere"
    (folder / "mine").mkdir(parents=True)
    study = project.study
    study["defaults"]["new_tokens"] = 8
    study["experiments"]["pace"]["cells"] = {
        "fast": {"options": {"step_ms": step_ms}},
        "slow": {"options": {"step_ms": 3 * step_ms}},
    }
    (folder / "mine/paces.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS), encoding="utf-8")
    return folder


def command(project: Any, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "claimbench", "run", "mine/paces.yaml", "--minutes", "0.6", *arguments]


def test_a_run_from_an_empty_folder_ends_in_a_table_and_a_report_and_again_measures_nothing(project: Any) -> None:
    folder = laid_out(project)
    environment = {**project.environment(), "CLAIMBENCH_LOCKS": str(project.scratch)}
    done = subprocess.run(
        command(project), cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "the study: runs/paces/studies/paces.yaml"
    assert any(line.split()[0] == "fast" and " supported " in line for line in lines if line.strip()), done.stdout
    assert (folder / lines[-1].removeprefix("the report: ")).is_file()
    rounds = {path: path.read_bytes() for path in (folder / "runs/paces/results/rounds").glob("*.json")}
    assert rounds
    again = subprocess.run(
        command(project), cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert again.stdout == done.stdout
    assert {path: path.read_bytes() for path in (folder / "runs/paces/results/rounds").glob("*.json")} == rounds
    for name in ("check", "explain"):
        asked = [name, "pace/fast", "--folder", "runs/paces"] if name == "explain" else [name, "runs/paces"]
        told = subprocess.run(
            [sys.executable, "-m", "claimbench", *asked], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert told.returncode == 0, told.stdout + told.stderr
        assert "rounds" in told.stdout


def test_ctrl_c_ends_everything_that_was_started(project: Any) -> None:
    folder = laid_out(project, step_ms=2000)  # minutes of work, so that nothing ends by itself meanwhile
    running = subprocess.Popen(
        command(project, "--minutes", "5"),
        cwd=folder,
        env={**project.environment(), "MARK_OF_THIS_TEST": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=typed_at_a_terminal,
    )
    assert running.stderr is not None
    for line in running.stderr:
        if " left, now: " in line:
            break
    os.kill(running.pid, signal.SIGINT)
    running.stderr.read()
    assert running.wait(60) == 130
    until = time.monotonic() + 30
    while (left := marked(str(folder))) and time.monotonic() < until:
        time.sleep(0.2)
    assert left == []


def typed_at_a_terminal() -> None:
    """A shell that runs these tests in the background has them, and all that they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def marked(mark: str) -> list[str]:
    """Command lines of the processes that have `mark` in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK_OF_THIS_TEST={mark}".encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " "))
        except OSError:
            continue
    return found
