"""The report in its place is of this plan, this machine and these results, whoever put another one there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from claimbench.schema import rendering, sealed

pytestmark = pytest.mark.pipeline
TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores, to take one away")
RENDERED_ALONE = {"report": 1, "all": 1, "total": 2}


def shown(project: Any) -> dict[str, str]:
    """The sha256 of every file of the report."""
    return rendering.files_in(project.folder / "reports")


def origin(project: Any) -> rendering.Origin:
    return rendering.read(project.folder / "reports").origin


@pytest.fixture(scope="module")
def pair(tmp_path_factory, project_in):
    """One project, and another one whose study has another pace: each with its report, in git and in DVC."""
    found = []
    for name, pace in (("mine", 3), ("theirs", 5)):
        folder = tmp_path_factory.mktemp(name) / "project"
        folder.mkdir()
        project = project_in(folder)
        project.study["experiments"]["pace"]["cells"]["slow"]["options"]["step_ms"] = pace
        project.write()
        project.run("git", "init", "--quiet")
        project.run("git", "add", "--all")
        project.run("git", "commit", "--quiet", "--message", "A project")
        project.run("dvc", "repro")
        found.append(project)
    return found


@pytest.fixture
def mine(pair, tmp_path):
    project = pair[0].copy(tmp_path / "project")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "Its results")
    return project


def check_out_theirs(pair, project, *names: str) -> None:
    """As `git pull` or a checkout of another revision does it: newer than all that is here."""
    theirs, here = pair[1].folder / "reports", project.folder / "reports"
    for name in names or [path.name for path in theirs.iterdir()]:
        target = here / name
        if (theirs / name).is_dir():
            shutil.rmtree(target)
            shutil.copytree(theirs / name, target, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(theirs / name, target)


def test_a_report_carries_its_plan_its_commit_its_hours_and_its_versions(mine):
    (plan,) = (mine.folder / "results/plan").glob("*.json")
    text = (mine.folder / "reports/report.md").read_text(encoding="utf-8")
    commit = mine.run("git", "rev-parse", "--short=12", "HEAD~").strip()
    hours = sorted(record["started_at"] for record in mine.records())
    assert origin(mine).plan == plan.stem
    assert origin(mine).commit == commit
    assert origin(mine).measured == (hours[0], hours[-1])
    assert f"plan `{plan.stem}`; measured {hours[0][:10]} " in text
    assert f"commit `{commit}`" in text


def test_a_foreign_report_is_rendered_again_and_nothing_is_measured(pair, mine):
    before = shown(mine)
    check_out_theirs(pair, mine)
    assert shown(mine) == shown(pair[1]) != before
    assert mine.jobs() == RENDERED_ALONE
    assert mine.measured_by("all") == []
    assert shown(mine) == before
    assert mine.jobs() == {}


def test_dvc_certifies_no_foreign_report(pair, mine):
    before, lock = shown(mine), (mine.folder / "dvc.lock").read_bytes()
    check_out_theirs(pair, mine)
    assert "report" in json.loads(mine.run("dvc", "status", "--json"))
    assert mine.measured_while(lambda: mine.run("dvc", "repro")) == []
    assert shown(mine) == before
    assert (mine.folder / "dvc.lock").read_bytes() == lock


@pytest.mark.parametrize("name", ["report.md", "report.html", "metrics.json", "figures", "plots", "provenance.json"])
def test_one_foreign_file_is_enough(pair, mine, name):
    before = shown(mine)
    check_out_theirs(pair, mine, name)
    assert mine.jobs() == RENDERED_ALONE
    mine.snakemake("all")
    assert shown(mine) == before


def test_an_edit_a_figure_too_many_and_a_report_of_other_verdicts_are_noticed(mine):
    before, reports = shown(mine), mine.folder / "reports"
    spoiled = [
        lambda: (reports / "report.md").write_text("# Faster than all\n", encoding="utf-8"),
        lambda: (reports / "report.html").write_text("<h1>Faster than all</h1>", encoding="utf-8"),
        lambda: (reports / "report.html").unlink(),
        lambda: (reports / "figures/another.svg").write_text("<svg/>", encoding="utf-8"),
        lambda: next((reports / "figures").glob("*.svg")).unlink(),
        lambda: rendering.write(
            reports, rendering.read(reports).model_copy(update={"made_of": {"verdicts": "0" * 64}})
        ),
        lambda: rendering.write(reports, rendering.read(reports).model_copy(update={"code": "older"})),
        lambda: (reports / "provenance.json").unlink(),
    ]
    for spoil in spoiled:
        spoil()
        assert mine.jobs()["report"] == 1
    mine.snakemake("all")
    assert shown(mine) == before


def test_a_foreign_report_that_is_dated_tomorrow_is_rendered_again(pair, mine):
    before = shown(mine)
    check_out_theirs(pair, mine, "report.md")
    tomorrow = (mine.folder / "reports/report.md").stat().st_mtime + 86_400
    os.utime(mine.folder / "reports/report.md", (tomorrow, tomorrow))
    mine.snakemake("all")
    assert shown(mine) == before


def test_a_clone_that_pulls_has_the_same_report_and_a_foreign_one_there_is_replaced(pair, mine, tmp_path):
    mine.run("dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    mine.run("git", "commit", "--quiet", "--all", "--message", "A remote")
    mine.run("dvc", "push")
    mine.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = mine.at(tmp_path / "clone")
    clone.run("dvc", "pull")
    assert shown(clone) == shown(mine)
    check_out_theirs(pair, clone)
    assert clone.measured_by("all") == []
    assert shown(clone) == shown(mine)
    check_out_theirs(pair, clone)
    clone.run("dvc", "checkout", "--force")
    assert shown(clone) == shown(mine)
    assert clone.measured_by("all") == []
    assert shown(clone) == shown(mine)


@TWO_CORES
@pytest.mark.slow
def test_on_another_machine_dvc_measures_and_reports_anew_and_the_first_finds_its_own_again(mine):
    core, before, results = str(min(os.sched_getaffinity(0))), said(mine), mine.results()
    mine.run("taskset", "-c", core, "dvc", "repro", "plan")
    assert json.loads(mine.run("dvc", "status", "--json"))["measure"] == [
        {"changed deps": {"results/plan": "modified"}}
    ]
    assert len(mine.measured_while(lambda: mine.run("taskset", "-c", core, "dvc", "repro"))) == len(results)
    assert said(mine) != before
    assert mine.measured_while(lambda: mine.run("dvc", "repro")) == []
    assert said(mine) == before


def said(project: Any) -> str:
    """The report, but for the commit of the code: what ran before may be committed since."""
    text = (project.folder / "reports/report.md").read_text(encoding="utf-8")
    return re.sub(r"commit `\w+`( and uncommitted changes)?", "commit", text)


def test_a_lock_of_an_environment_is_among_what_dvc_looks_at(mine):
    with (mine.folder / "envs/core.lock").open("a", encoding="utf-8") as file:
        file.write("# another\n")
    status = json.loads(mine.run("dvc", "status", "--json"))
    assert {"changed deps": {"envs": "modified"}} in status["plan"]


def test_the_weights_are_in_dvc_where_a_parameter_says_so_alone(mine, tmp_path):
    assert "resources" not in (mine.folder / "dvc.lock").read_text(encoding="utf-8")
    shard = mine.folder / "resources/checkpoints/mine-0/model.safetensors"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"weights")
    mine.params["dvc"]["weights"] = ["resources/checkpoints"]
    mine.write()
    assert mine.measured_while(lambda: mine.run("dvc", "repro")) == []
    assert "resources/checkpoints" in (mine.folder / "dvc.lock").read_text(encoding="utf-8")
    mine.run("dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    mine.run("dvc", "push")
    mine.run("git", "add", "--all")
    mine.run("git", "commit", "--quiet", "--message", "Weights")
    mine.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = mine.at(tmp_path / "clone")
    clone.run("dvc", "pull")
    assert (clone.folder / "resources/checkpoints/mine-0/model.safetensors").read_bytes() == b"weights"


def test_a_commit_is_named_only_where_git_tracks_the_code(tmp_path: Path) -> None:
    """An environment inside of another project's clone."""
    package = tmp_path / "site-packages"
    shutil.copytree(
        Path(rendering.__file__).parents[1], package / "claimbench", ignore=shutil.ignore_patterns("*.json")
    )
    program = "from claimbench.system import revision; print(revision.commit())"

    def said() -> str:
        environment = {**os.environ, "PYTHONPATH": str(package), "GIT_CONFIG_GLOBAL": "/dev/null"}
        done = subprocess.run(
            ["python", "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def git(*arguments: str) -> None:
        author = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
        subprocess.run(["git", *author, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert said() == "None"
    git("init")
    git("commit", "--allow-empty", "--message", "Another project")
    assert said() == "None"
    git("add", "--all")
    git("commit", "--message", "The code")
    assert len(said()) == 12
    with (package / "claimbench/errors.py").open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    assert said().endswith("-dirty")


def test_a_rendering_is_sealed(mine):
    path = mine.folder / "reports" / rendering.NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["seal"] == sealed.seal_of(content["rendering"])
