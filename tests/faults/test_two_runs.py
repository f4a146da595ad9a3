"""Two runs in one folder: whoever waits for its turn takes what the other has sealed meanwhile. Rounds: simulated."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.pipeline.conftest import lay_out

COUNTING = """

from pathlib import Path as _Path

_load = load


def load(cell, checkpoint, draft):
    with _Path({place!r}).open("a") as file:
        file.write(f"{{cell.options['step_ms']}}\\n")
    return _load(cell, checkpoint, draft)
"""


@pytest.mark.pipeline
def test_two_workflows_in_one_folder_measure_each_block_once(tmp_path: Path) -> None:
    (folder := tmp_path / "project").mkdir()
    project = lay_out(folder)
    backend = folder / "src/claimbench/backends/null_model.py"
    place = str(tmp_path / "loads")
    text = backend.read_text(encoding="utf-8")
    backend.write_text(text + COUNTING.format(place=place), encoding="utf-8")
    paces = {"fast": 1, "slow": 3, "third": 5, "last": 7}
    cells = {name: {"options": {"step_ms": step_ms}} for name, step_ms in paces.items()}
    project.study["experiments"]["pace"]["cells"] = cells
    project.write()
    command = ["snakemake", "--cores", "all", "measured"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    both = [subprocess.Popen(command, cwd=folder, env=project.environment(), **pipes) for _ in range(2)]
    printed = [run.communicate(timeout=300)[0].decode() for run in both]
    assert [run.returncode for run in both] == [0, 0], "\n".join(printed)
    loaded = sorted(Path(place).read_text().split())
    assert loaded == ["0.0", "1.0", "3.0", "5.0", "7.0"], "\n".join(printed)
    assert len(project.results()) == 5, "the reference too"


SEALING = """

import shutil as _shutil
from pathlib import Path as _Path

_load = load


def load(cell, checkpoint, draft):
    sealed = _Path({place!r})
    if sealed.exists():
        _shutil.copytree(sealed, "results/measure", dirs_exist_ok=True)
        _shutil.rmtree(sealed)
    with _Path({loads!r}).open("a") as file:
        file.write("loaded ")
    return _load(cell, checkpoint, draft)
"""


@pytest.mark.pipeline
def test_what_another_run_seals_before_a_job_begins_is_not_deleted(tmp_path: Path) -> None:
    """Snakemake removes what a job declares before it runs it, unless it is told otherwise."""
    (folder := tmp_path / "project").mkdir()
    project = lay_out(folder)
    place, loads = tmp_path / "sealed", tmp_path / "loads"
    with (folder / "src/claimbench/backends/null_model.py").open("a", encoding="utf-8") as file:
        file.write(SEALING.format(place=str(place), loads=str(loads)))
    project.snakemake("measured")
    before = project.results()
    (folder / "results/measure").rename(place)
    loads.unlink()
    project.snakemake("measured")
    assert loads.read_text().split() == ["loaded"], "the first block, while which the others were sealed"
    after = project.results()
    assert len(after) == len(before) == 3
    assert after == before, "the first block's too, which was sealed while this run measured it"
