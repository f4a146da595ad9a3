"""The wheel alone is enough: the command finds workflow, studies and defaults in it, from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ("Snakefile", "params.yaml", "workflow", "profiles", "studies", "envs")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of what git tracks, unpacked as pip would."""
    copy, wheels, folder = (tmp_path_factory.mktemp(name) for name in ("copy", "wheels", "site"))
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("reports/", "tests/", "benchmarks/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(wheels),
        str(copy),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(unpacked: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    packages = sysconfig.get_path("purelib")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(unpacked), packages])}
    return subprocess.run(
        [sys.executable, "-m", "claimbench", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_everything_of_the_workflow_is_in_it(unpacked: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *SHIPPED], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(tracked) > 30
    missing = [name for name in tracked if not (unpacked / "claimbench/project" / name).is_file()]
    assert missing == []


def test_from_an_empty_folder_it_lists_and_plans(unpacked: Path, tmp_path: Path) -> None:
    listed = run(unpacked, tmp_path, "list", "studies")
    assert "quickstart" in listed.stdout, listed.stderr
    planned = run(unpacked, tmp_path, "run", "random://tiny-llama?seed=0", "--try", "sdpa", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "2 cells on" in planned.stdout
    asked = [sys.executable, "-m", "snakemake", "--workflow-profile", "none", "--cores", "1", "-n", "--quiet", "reason"]
    packages = os.pathsep.join([str(unpacked), sysconfig.get_path("purelib")])
    dry = subprocess.run(
        asked,
        cwd=tmp_path / "runs/tiny-llama",
        env={**os.environ, "PYTHONPATH": packages},
        capture_output=True,
        text=True,
        check=False,
    )
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert "rounds" in dry.stdout + dry.stderr
    assert str(unpacked) in str((tmp_path / "runs/tiny-llama/envs").resolve())


def test_an_installation_without_the_workflow_says_what_to_do(unpacked: Path, tmp_path: Path) -> None:
    (unpacked / "claimbench/project/Snakefile").rename(unpacked / "claimbench/project/aside")
    try:
        told = run(unpacked, tmp_path, "list", "models")
    finally:
        (unpacked / "claimbench/project/aside").rename(unpacked / "claimbench/project/Snakefile")
    assert told.returncode == 2
    assert told.stderr.startswith("claimbench: this installation lacks the workflow")
    assert told.stderr.count("\n") == 1
