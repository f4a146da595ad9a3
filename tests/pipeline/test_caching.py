"""What runs again and what does not, shown with the real Snakemake on the null backend."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.pipeline


def paces(records: list[dict[str, Any]]) -> list[float]:
    """Which cells these records are of, by their pace; 0 is the reference."""
    return sorted(record["cell"]["options"]["step_ms"] for record in records)


ALL = [0, 1, 3]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_second_run_measures_nothing(rendered):
    assert paces(rendered.records()) == ALL
    assert rendered.measured_by() == []


def test_a_change_of_one_cell_measures_that_cell_alone_and_going_back_measures_nothing(rendered):
    cells = rendered.study["experiments"]["pace"]["cells"]
    cells["slow"]["options"]["step_ms"] = 5
    rendered.write()
    assert paces(rendered.measured_by()) == [5]
    cells["slow"]["options"]["step_ms"] = 3
    rendered.write()
    assert rendered.measured_by() == []


def test_swapping_two_values_between_cells_is_noticed(rendered):
    cells = rendered.study["experiments"]["pace"]["cells"]
    cells["fast"], cells["slow"] = (
        {"options": {"step_ms": 1, "prefill_ms": 2}},
        {"options": {"step_ms": 2, "prefill_ms": 1}},
    )
    rendered.write()
    assert paces(rendered.measured_by()) == [1, 2]
    cells["fast"], cells["slow"] = cells["slow"], cells["fast"]
    rendered.write()
    assert rendered.measured_by() == []


def test_more_blocks_measure_only_the_blocks_that_are_missing(rendered):
    rendered.params["measure"]["blocks"] = 2
    rendered.write()
    added = rendered.measured_by()
    assert paces(added) == [1, 3]
    assert {record["block"] for record in added} == {1}


def test_a_change_of_executed_code_measures_again(rendered):
    clock = rendered.folder / "src/claimbench/measuring/clock.py"
    edit(clock, "itertools.chain([first], steps)", "itertools.chain([first], iter(steps))")
    assert paces(rendered.measured_by()) == ALL


def test_a_change_of_one_backend_measures_its_cells_alone(project):
    backends = project.folder / "src/claimbench/backends"
    shutil.copy(backends / "null_model.py", backends / "other_model.py")
    edit(backends / "other_model.py", 'REFERENCE = "null_model"', 'REFERENCE = "other_model"')
    project.study["experiments"]["pace"]["cells"]["other"] = {"backend": "other_model", "options": {"step_ms": 2}}
    project.write()
    project.measured_by()
    edit(backends / "other_model.py", "prompt_ids = (0, 1, 2, 3)", "prompt_ids = (0, 1, 2, 4)")
    assert {record["cell"]["backend"] for record in project.measured_by()} == {"other_model"}


def test_comments_docstrings_and_unrelated_code_measure_nothing(rendered):
    package = rendered.folder / "src/claimbench"
    edit(package / "measuring/clock.py", "def _host_clock", "# A remark.\n\n\ndef _host_clock")
    edit(package / "measuring/clock.py", '"""The clock:', '"""A clock:')
    with (package / "reporting/report.py").open("a", encoding="utf-8") as file:
        file.write("\nUNRELATED = 1\n")
    assert rendered.measured_by() == []


def test_touching_files_measures_nothing(rendered):
    for path in [*rendered.folder.glob("studies/*"), *rendered.folder.glob("src/claimbench/*.py")]:
        os.utime(path)
    os.utime(rendered.folder / "params.yaml")
    os.utime(rendered.folder / "Snakefile")
    assert rendered.measured_by() == []


def test_another_version_of_a_library_measures_the_cells_that_use_it_alone(project):
    backends = project.folder / "src/claimbench/backends"
    shutil.copy(backends / "null_model.py", backends / "other_model.py")
    edit(backends / "other_model.py", "LIBRARIES: tuple[str, ...] = ()", 'LIBRARIES = ("paced-library",)')
    edit(backends / "other_model.py", 'REFERENCE = "null_model"', 'REFERENCE = "other_model"')
    metadata = project.folder / "libraries/paced_library-1.0.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: paced-library\nVersion: 1.0\n", encoding="utf-8")
    project.study["experiments"]["pace"]["cells"]["other"] = {"backend": "other_model", "options": {"step_ms": 2}}
    project.write()
    project.measured_by()
    edit(metadata, "Version: 1.0", "Version: 2.0")
    again = project.measured_by()
    assert {record["cell"]["backend"] for record in again} == {"other_model"}
    assert {record["key"]["libraries"]["paced-library"] for record in again} == {"2.0"}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores, to take one away")
def test_another_machine_measures_everything_and_the_first_one_finds_its_results_again(rendered):
    before = rendered.results()
    core = str(min(os.sched_getaffinity(0)))
    rendered.run("taskset", "-c", core, "snakemake", "--cores", "all", "measured")
    assert len(rendered.results()) == 2 * len(before)
    assert rendered.measured_by() == []


def test_another_checkpoint_measures_the_cells_that_use_it_alone(project):
    project.study["experiments"]["pace"]["cells"]["slow"]["checkpoint"] = "other"
    project.write()
    project.measured_by()
    project.params["checkpoints"]["other"]["source"] = "random://tiny-llama?seed=2"
    project.write()
    again = project.measured_by()
    assert {record["cell"]["checkpoint"]["name"] for record in again} == {"other"}


def test_blocks_are_interleaved_in_a_seeded_order(project):
    project.params["measure"]["blocks"] = 2
    project.study["experiments"]["pace"]["cells"] |= {f"c{n}": {"options": {"step_ms": n}} for n in (5, 7, 9)}
    project.write()
    project.measured_by()
    in_time = sorted(project.results(), key=lambda path: (project.folder / path).stat().st_mtime_ns)
    blocks = [project.record(path)["block"] for path in in_time]
    assert blocks == sorted(blocks)
    assert blocks.count(1) == 5


def test_a_batch_between_two_others_is_measured_alone(project):
    project.study["experiments"]["pace"]["sweep"] = {"batch": [1, 4]}
    project.study["claims"] = []
    project.write()
    project.measured_by()
    project.study["experiments"]["pace"]["sweep"] = {"batch": [1, 2, 4]}
    project.write()
    assert {record["cell"]["workload"]["batch"] for record in project.measured_by()} == {2}


def test_a_larger_batch_of_a_cell_that_ran_out_of_memory_is_implied_and_not_run(project):
    experiment = project.study["experiments"]["pace"]
    experiment["cells"]["fast"]["options"]["fits_batch"] = 2
    experiment["sweep"] = {"batch": [1, 2, 4, 8, 16]}
    project.study["claims"] = []
    project.write()
    outcomes = {
        record["cell"]["workload"]["batch"]: record["outcome"]
        for record in project.measured_by()
        if record["cell"]["options"]["step_ms"] == 1
    }
    assert outcomes == {1: "ok", 2: "ok", 4: "oom", 8: "implied-oom", 16: "implied-oom"}
