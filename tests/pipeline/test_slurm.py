"""The workflow under a SLURM that is really there: every timed job goes through sbatch and has its node to itself.

Nodes must see the folder of the tests: `pytest -m slurm --basetemp FOLDER` on a cluster whose /tmp is each node's own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from claimbench.schema import result


def slurm_answers() -> bool:
    if not shutil.which("sinfo"):
        return False
    try:
        asked = subprocess.run(["sinfo", "--noheader"], capture_output=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0 and bool(asked.stdout.strip())


pytestmark = [
    pytest.mark.slurm,
    pytest.mark.pipeline,
    pytest.mark.skipif(not slurm_answers(), reason="no SLURM answers here: `sinfo` is missing or fails"),
]

SMALL = ("--default-resources", "mem_mb=1500", "runtime=5")
"""A node of a test cluster has less than the profile asks for."""


def command(target: str = "all") -> tuple[str, ...]:
    return ("snakemake", target, "--profile", "profiles/slurm", *SMALL)


SUBMITTED = re.compile(r"Job \d+ has been submitted with SLURM jobid (\d+) \(log: (\S*/rule_(\w+)/\S+)\)")


def with_description_of_a_node(project) -> dict[str, str]:
    """As docs/machines.md says: what a node is, seen from a job that has it to itself."""
    alone = ("srun", "--exclusive", "--ntasks=1", "--cpu-bind=none")
    project.run(*alone, "python", "-m", "claimbench", "machine", "--output", "node.json")
    return {**project.environment(), "CLAIMBENCH_MACHINE": "node.json"}


def run(project, *command: str, fails: bool = False) -> str:
    done = subprocess.run(
        command,
        cwd=project.folder,
        env={**project.environment(), "CLAIMBENCH_MACHINE": "node.json"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert bool(done.returncode) == fails, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory, project_in):
    """A project after a run under SLURM, and what that printed."""
    folder = tmp_path_factory.mktemp("slurm") / "project"
    folder.mkdir()
    project = project_in(folder)
    project.study["experiments"]["pace"]["cells"] |= {
        "full": {"options": {"fails": "oom"}},
        "pair": {"options": {"step_ms": 1, "devices": 2, "oversubscribe": True, "launcher": "srun"}},
        "model": {"backend": "transformers"},
    }
    project.write()
    with_description_of_a_node(project)
    return project, run(project, *command())


def records(project) -> list[result.Result]:
    return [result.read(project.folder / path) for path in project.results()]


def test_what_takes_long_goes_through_sbatch_and_the_rest_stays(finished):
    rules = sorted(rule for _, _, rule in SUBMITTED.findall(finished[1]))
    assert rules == ["ceiling", *["measure"] * len(finished[0].results()), "shard"]


def test_timed_jobs_have_their_node_to_themselves(finished):
    timed = [id for id, _, rule in SUBMITTED.findall(finished[1]) if rule in ("ceiling", "measure")]
    asked = [subprocess.run(["scontrol", "show", "job", id], capture_output=True, text=True) for id in timed]
    known = [each.stdout for each in asked if each.returncode == 0]  # SLURM forgets jobs after minutes
    assert known
    assert all("OverSubscribe=NO" in each for each in known)


def test_the_lines_of_each_block_come_out_where_snakemake_runs_and_the_report_is_there(finished):
    project, printed = finished
    lines = printed.splitlines()
    count = len(project.results())
    begun = [line for line in lines if re.fullmatch(rf"\[\d+/{count}\] .+ · block 0 · about .+ left", line)]
    assert len(begun) == count
    assert sum(line.startswith("    ok: ") for line in lines) == count - 1
    assert "    oom: asked to run out of memory" in lines
    assert "A step of 1 ms is faster" in (project.folder / "reports/report.md").read_text(encoding="utf-8")


def test_a_failed_block_a_model_and_several_ranks_are_results(finished):
    found = records(finished[0])
    assert {each.cell.backend for each in found} == {"null_model", "transformers"}
    assert [each.outcome for each in found if each.cell.options.get("fails") == "oom"] == ["oom"]
    assert {each.outcome for each in found if each.cell.options.get("fails") is None} == {"ok"}
    assert [[rank["rank"] for rank in each.ranks] for each in found if each.cell.devices == 2] == [[0, 1]]


def test_a_second_run_does_nothing(finished):
    before = finished[0].results()
    assert "Nothing to be done" in run(finished[0], *command())
    assert finished[0].results() == before


def test_a_job_that_was_cancelled_leaves_a_log_and_alone_is_run_again(project):
    project.study["experiments"]["pace"]["cells"]["slow"]["options"]["step_ms"] = 2000
    project.write()
    environment = with_description_of_a_node(project)
    first = subprocess.Popen(
        command("measured"), cwd=project.folder, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        assert first.stderr
        log = cancel_the_slow_block(project, first.stderr)
        rest = first.stderr.read()
        assert first.wait(timeout=200) != 0, rest
    finally:
        first.kill()
        first.wait()
    assert "CANCELLED" in log.read_text(encoding="utf-8")
    kept = project.results()
    assert len(kept) == 2, rest
    again = run(project, *command("measured"))
    assert len([rule for _, _, rule in SUBMITTED.findall(again) if rule == "measure"]) == 1
    assert {path: content for path, content in project.results().items() if path in kept} == kept
    assert [each.outcome for each in records(project)] == ["ok"] * 3


def cancel_the_slow_block(project, lines) -> Path:
    """Cancel its job once it is being timed; where SLURM's log of it lies."""
    for line in lines:
        found = SUBMITTED.search(line)
        if not found or found[3] != "measure":
            continue
        log, job = Path(found[2]), found[1]
        while is_active(job):
            if any(
                "pace/slow" in each.read_text(encoding="utf-8") for each in project.folder.glob("logs/measure/*/*/*")
            ):
                subprocess.run(["scancel", job], check=True)
                return log
            time.sleep(0.2)
    raise AssertionError("the slow block was never run")


def is_active(job: str) -> bool:
    """Waiting or running; SLURM answers with nothing, or an error, once a job is over."""
    asked = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, check=False)
    return asked.returncode == 0 and bool(asked.stdout.strip())


def test_a_job_on_another_machine_than_the_plan_is_for_fails_and_writes_nothing(project):
    with_description_of_a_node(project)
    path = project.folder / "node.json"
    other = 'import json, sys; from claimbench.schema.json_file import digest; m = json.load(open("node.json"));'
    other += ' m["memory_gb"] = 1;'
    other += ' m["key"] = digest({k: v for k, v in m.items() if k not in ("key", "system")}); json.dump(m, sys.stdout)'
    path.write_text(project.run("python", "-c", other), encoding="utf-8")
    printed = run(project, *command("measured"), fails=True)
    assert "claimbench: the plan is for machine" in printed
    assert re.search(r"^measure failed: .+ Its logs: logs/measure/\S+, \S+/slurm_logs/rule_measure/\S+$", printed, re.M)
    assert project.results() == {}
