"""DVC around Snakemake, for real: what a change measures, and what comes back from a remote or an older revision."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from typing import Any

import pytest

pytestmark = pytest.mark.pipeline


def commit(project: Any, message: str) -> None:
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", message)


def step_times(records: list[dict[str, Any]]) -> list[float]:
    return sorted(record["cell"]["options"]["step_ms"] for record in records)


def table(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()]


def fast_tok_s(project: Any) -> float:
    metrics = json.loads((project.folder / "reports/metrics.json").read_text(encoding="utf-8"))
    (key,) = set(metrics) - {"machine"}
    return float(metrics[key]["paces"]["pace"]["decode_tok_s"])


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory, project_in):
    """A project after its first `dvc repro`, and what that printed. Its backend needs a checkpoint, as most do."""
    folder = tmp_path_factory.mktemp("reproduced") / "project"
    folder.mkdir()
    project = project_in(folder)
    backends = folder / "src/claimbench/backends"
    code = (backends / "null_model.py").read_text(encoding="utf-8")
    for old, new in (("LIBRARIES: tuple[str, ...] = ()", 'LIBRARIES = ("numpy",)'), ('"null_model"', '"weighty"')):
        assert old in code
        code = code.replace(old, new)
    (backends / "weighty.py").write_text(code, encoding="utf-8")
    project.study["defaults"]["backend"] = "weighty"
    project.write()
    project.run("git", "init", "--quiet")
    commit(project, "A project")
    printed = project.run("dvc", "repro")
    return project, printed


@pytest.fixture
def tracked(reproduced, tmp_path):
    project = reproduced[0].copy(tmp_path / "project")
    commit(project, "Its results")
    return project


def is_up_to_date(project: Any) -> bool:
    """Whether `dvc status` finds nothing but that the plan is looked at in every reproduction."""
    return json.loads(project.run("dvc", "status", "--json")) == {"plan": ["always changed"]}


def test_the_first_reproduction_measures_every_block_once_and_git_sees_the_lock_alone(reproduced):
    project, printed = reproduced
    assert printed.count("· block 0 ·") == len(project.results()) == 3
    untracked = project.run("git", "status", "--porcelain", "--untracked-files=all").split()[1::2]
    assert untracked == ["dvc.lock"]


def test_a_second_reproduction_looks_at_the_plan_and_runs_nothing_else(tracked):
    printed = tracked.run("dvc", "repro")
    assert "Stage 'measure' didn't change, skipping" in printed
    assert "Stage 'report' didn't change, skipping" in printed
    assert printed.count("python -m snakemake") == 1
    assert tracked.run("git", "status", "--porcelain") == ""
    assert is_up_to_date(tracked)


def test_a_cell_that_a_study_changes_is_measured_alone_and_the_older_revision_comes_back_with_its_results(tracked):
    older = (tracked.folder / "reports/report.md").read_bytes()
    tracked.study["experiments"]["pace"]["cells"]["slow"]["options"]["step_ms"] = 5
    tracked.write()
    assert step_times(tracked.measured_while(lambda: tracked.run("dvc", "repro"))) == [5]
    commit(tracked, "A slower pace")
    newer = (tracked.folder / "reports/report.md").read_bytes()
    assert newer != older
    for revision, report in (("HEAD~", older), ("-", newer)):
        tracked.run("git", "checkout", "--quiet", revision)
        tracked.run("dvc", "checkout")
        assert tracked.measured_by("all") == []
        assert (tracked.folder / "reports/report.md").read_bytes() == report
        assert is_up_to_date(tracked)


def test_an_experiment_with_more_blocks_measures_those_alone_and_dvc_shows_what_changed(tracked):
    before = fast_tok_s(tracked)
    added = tracked.measured_while(lambda: tracked.run("dvc", "exp", "run", "-S", "measure.blocks=2"))
    assert step_times(added) == [1, 3]
    assert {record["block"] for record in added} == {1}
    assert "measure.blocks" in tracked.run("dvc", "exp", "show", "--csv").splitlines()[0]
    assert ["params.yaml", "measure.blocks", "1", "2"] in table(tracked.run("dvc", "params", "diff"))
    metrics = table(tracked.run("dvc", "metrics", "diff", "--all"))
    shown = [row[2:4] for row in metrics if row[1].endswith(".paces.pace.decode_tok_s")]
    assert [[float(value) for value in values] for values in shown] == [[before, fast_tok_s(tracked)]]
    tracked.run("dvc", "plots", "diff", "HEAD")
    page = (tracked.folder / "dvc_plots/index.html").read_text(encoding="utf-8")
    for title in ("Decode speed", "Speed end to end", "Time to the first token", "Peak memory", "Verdicts"):
        assert f'"title": "{title}"' in page
    assert '"rev": "workspace"' in page
    assert '"rev": "HEAD"' in page
    assert '"cell": "paces: pace/slow"' in page
    assert "<DVC_METRIC" not in page
    assert not re.search(r"""<(?:script|link|img)[^>]+(?:src|href)=["']?(?:https?:)?//""", page)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, to see what a reader sees")
def test_the_page_of_plots_draws_without_a_network(tracked, tmp_path):
    tracked.run("dvc", "plots", "show")
    page = (tracked.folder / "dvc_plots/index.html").as_uri()
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=20000",
        f"--user-data-dir={tmp_path}",
    ]
    proxy = "--proxy-server=127.0.0.1:9"  # a port that nobody listens at: no network, whatever the machine has
    short = f"TMPDIR={tempfile.gettempdir()}"  # it aborts where the path of its socket is longer than 107 bytes
    drawn = tracked.run("bash", "-c", f"{short} {CHROMIUM} {' '.join(flags)} {proxy} --dump-dom '{page}' 2> /dev/null")
    assert drawn.count("<canvas") + drawn.count('<svg class="marks"') == 7, "one for each file of plots in dvc.yaml"


def test_two_machines_are_not_subtracted(tracked):
    """Metrics stand under the key of their machine, so nothing of one has the name of anything of the other."""
    path = tracked.folder / "reports/metrics.json"
    text = path.read_text(encoding="utf-8")
    (key,) = set(json.loads(text)) - {"machine"}
    path.write_text(text.replace(key, "0123456789ab"), encoding="utf-8")
    changes = json.loads(tracked.run("dvc", "metrics", "diff", "--json"))["reports/metrics.json"]
    assert "machine" in changes
    assert len(changes) > 10
    assert [name for name, change in changes.items() if "diff" in change] == []


def rounds_in(project: Any) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (project.folder / "results/rounds").glob("*.json")}


@pytest.mark.slow
def test_an_experiment_in_a_folder_of_its_own_keeps_the_rounds_that_are_there(tracked):
    tracked.params["measure"]["budget_minutes"] = 0.6
    tracked.write()
    tracked.run("dvc", "repro")
    commit(tracked, "Rounds")
    first = rounds_in(tracked)
    tracked.run("dvc", "exp", "run", "--temp", "--name", "longer", "-S", "measure.budget_minutes=0.8")
    assert rounds_in(tracked) == first, "the workspace stays as it is"
    tracked.run("dvc", "exp", "apply", "longer")
    assert first.items() <= rounds_in(tracked).items()
    assert "budget_minutes: 0.8" in (tracked.folder / "params.yaml").read_text(encoding="utf-8")
    assert is_up_to_date(tracked)


@pytest.mark.slow
def test_a_larger_budget_keeps_the_rounds_that_are_there_and_a_clone_pulls_them(tracked, tmp_path):
    tracked.params["measure"]["budget_minutes"] = 0.6
    tracked.write()
    tracked.run("dvc", "repro")
    commit(tracked, "Rounds")
    first = rounds_in(tracked)
    assert len(first) >= 2
    tracked.run("dvc", "exp", "run", "-S", "measure.budget_minutes=0.8")
    assert first.items() <= rounds_in(tracked).items()
    assert is_up_to_date(tracked)
    tracked.run("dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    commit(tracked, "More of them")
    tracked.run("dvc", "push")
    tracked.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = tracked.at(tmp_path / "clone")
    clone.run("dvc", "pull")
    assert rounds_in(clone) == rounds_in(tracked)
    clone.snakemake("all")
    assert rounds_in(clone) == rounds_in(tracked)


@pytest.fixture
def clone(tracked, tmp_path):
    """A fresh clone, without what git ignores; the remote has the results."""
    tracked.run("dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    commit(tracked, "A remote")
    tracked.run("dvc", "push")
    tracked.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    return tracked.at(tmp_path / "clone")


def test_a_clone_that_pulls_measures_nothing_and_writes_the_same_report(tracked, clone):
    clone.run("dvc", "pull")
    assert clone.results() == tracked.results()
    assert clone.measured_by("all") == []
    for path in ("reports/report.md", "reports/report.html", "reports/metrics.json", "reports/plots/decode.csv"):
        assert (clone.folder / path).read_bytes() == (tracked.folder / path).read_bytes()
    assert clone.run("git", "status", "--porcelain") == ""
    assert not (clone.folder / "resources").exists()


def test_a_clone_that_pulls_and_changes_a_cell_fetches_the_checkpoint_and_measures_that_cell_alone(clone):
    clone.run("dvc", "pull")
    clone.study["experiments"]["pace"]["cells"]["slow"]["options"]["step_ms"] = 5
    clone.write()
    before = clone.results()
    assert step_times(clone.measured_by("judged")) == [5]
    (added,) = clone.results().keys() - before.keys()
    assert added in (clone.folder / "results/table.csv").read_text(encoding="utf-8")
    assert list((clone.folder / "resources/checkpoints").glob("*/manifest.json"))


def test_a_clone_that_pulls_on_another_machine_measures_everything_and_plans_and_reports_anew(clone):
    clone.run("dvc", "pull")
    machine = clone.folder / "src/claimbench/system/machine.py"
    text = machine.read_text(encoding="utf-8")
    assert "platform.machine()" in text
    machine.write_text(text.replace("platform.machine()", '"another"'), encoding="utf-8")
    jobs = clone.jobs()
    assert [jobs[rule] for rule in ("plan", "ceiling", "measure", "aggregate", "judge", "report")] == [1, 1, 3, 1, 1, 1]


def test_a_clone_that_does_not_pull_measures_everything(clone):
    assert not (clone.folder / "reports").exists()
    assert clone.jobs()["measure"] == 3
