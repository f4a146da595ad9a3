"""The workflow where it does not lie: with `--directory`, as a module of another one, and in the catalog's form."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.pipeline

ROOT = Path(__file__).parents[2]
MODULE = """
configfile: "config/config.yaml"


module claimbench:
    snakefile:
        "{project}/workflow/Snakefile"
    config:
        config


use rule * from claimbench as claimbench_*


rule summary:
    default_target: True
    input:
        "reports/report.md",
    output:
        "summary.txt",
    shell:
        "head -n 1 {{input}} > {{output}}"
"""


def jobs(printed: str) -> dict[str, int]:
    return {job: int(count) for job, count in re.findall(r"^(\w+) +(\d+)$", printed, re.M)}


def paces(folder: Path) -> list[float]:
    """What was measured below `folder`."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in (folder / "results/measure").glob("*/*/*.json"))
    return sorted(record["result"]["cell"]["options"]["step_ms"] for record in found)


def study_with(project: Any, pace: float) -> str:
    study = json.loads(json.dumps(project.study))
    study["experiments"]["pace"]["cells"]["slow"]["options"]["step_ms"] = pace
    return yaml.safe_dump(study)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def test_the_snakefile_of_the_catalog_asks_for_the_same(project):
    expected = project.jobs()
    found = jobs(project.snakemake("-n", "-s", "workflow/Snakefile"))
    assert found.pop("everything") == 1
    assert expected.pop("all") == 1
    assert found == expected


def test_the_configuration_of_the_catalog_is_the_one_of_params_yaml():
    assert (ROOT / "config/config.yaml").read_text(encoding="utf-8") == (ROOT / "params.yaml").read_text(
        encoding="utf-8"
    )
    assert (ROOT / "config/README.md").exists()


def test_another_directory_has_its_own_results_by_the_parameters_and_studies_of_the_workflow(project, elsewhere):
    project.snakemake("--directory", str(elsewhere))
    assert paces(elsewhere) == [0, 1, 3]
    assert not (project.folder / "results").exists()


def test_another_directory_may_have_parameters_and_studies_of_its_own(project, elsewhere):
    (elsewhere / "studies").mkdir()
    (elsewhere / "studies/mine.yaml").write_text(study_with(project, 7), encoding="utf-8")
    params = {**project.params, "studies": ["mine", "paces"], "measure": {**project.params["measure"], "blocks": 2}}
    (elsewhere / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    planned = jobs(project.snakemake("-n", "--directory", str(elsewhere)))
    assert planned["measure"] == 1 + 2 * 3, "the reference, and the paces 1, 3 and 7"
    (elsewhere / "studies/paces.yaml").write_text(study_with(project, 7), encoding="utf-8")
    planned = jobs(project.snakemake("-n", "--directory", str(elsewhere)))
    assert planned["measure"] == 1 + 2 * 2, "a study there goes before one of the same name here"
    (elsewhere / "params.yaml").rename(elsewhere / "config.yaml")
    (elsewhere / "config").mkdir()
    shutil.move(elsewhere / "config.yaml", elsewhere / "config/config.yaml")
    assert jobs(project.snakemake("-n", "--directory", str(elsewhere)))["measure"] == 1 + 2 * 2


def test_a_study_that_no_folder_has_is_named(project, elsewhere):
    params = {**project.params, "studies": ["pace"]}
    (elsewhere / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    printed = project.snakemake("-n", "--directory", str(elsewhere), fails=True)
    assert "claimbench: studies: there is no studies/pace.yaml. Did you mean 'paces'?" in printed


def test_another_workflow_uses_this_one_as_a_module(project, elsewhere):
    """It has files of its own under the names that this one has here."""
    for name in ("workflow", "config", "envs", "studies"):
        (elsewhere / name).mkdir()
    (elsewhere / "envs/core.lock").write_text("# another\n", encoding="utf-8")
    (elsewhere / "studies/paces.yaml").write_text(study_with(project, 5), encoding="utf-8")
    (elsewhere / "config/config.yaml").write_text(yaml.safe_dump(project.params), encoding="utf-8")
    (elsewhere / "workflow/Snakefile").write_text(MODULE.format(project=project.folder), encoding="utf-8")
    project.run("bash", "-c", f"cd '{elsewhere}' && snakemake --cores all")
    assert paces(elsewhere) == [0, 1, 5]
    assert (elsewhere / "summary.txt").read_text(encoding="utf-8").startswith("# ")
    again = project.run("bash", "-c", f"cd '{elsewhere}' && snakemake --cores all -n")
    assert "Nothing to be done" in again
