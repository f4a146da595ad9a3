"""A block that ran elsewhere is told of here, once it has ended."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from claimbench.workflow.job_log import JobLogHandler


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "0.log"
    path.write_text("[1/2] mine: quoting/plain\n    ok\n", encoding="utf-8")
    return path


def tell(handler: JobLogHandler, log: Path, rule: str = "measure") -> None:
    """What Snakemake's logger hears of one job."""
    for event in (
        {"event": LogEvent.JOB_INFO, "rule_name": rule, "jobid": 7, "log": [str(log)], "local": False},
        {"event": LogEvent.JOB_FINISHED, "job_id": 7},
        {"event": LogEvent.PROGRESS},
    ):
        handler.handle(logging.makeLogRecord(event))


def test_a_block_that_ran_elsewhere_is_printed_once(log, capsys):
    tell(JobLogHandler({"measure"}, lambda: True), log)
    assert capsys.readouterr().err == log.read_text(encoding="utf-8")


def test_a_block_that_ran_here_has_been_printed_already(log, capsys):
    tell(JobLogHandler({"measure"}, lambda: False), log)
    assert capsys.readouterr().err == ""


def test_other_jobs_and_a_log_that_is_late_are_passed_over(log, tmp_path, capsys):
    tell(JobLogHandler({"measure"}, lambda: True), log, rule="report")
    tell(JobLogHandler({"measure"}, lambda: True), tmp_path / "late.log")
    assert capsys.readouterr().err == ""


def failed(handler: JobLogHandler, log: Path, *, local: bool) -> None:
    job = {"rule_name": "ceiling", "jobid": 7, "log": [str(log)]}
    handler.handle(logging.makeLogRecord({"event": LogEvent.JOB_INFO, "local": local, **job}))
    why = {"rule_msg": "SLURM status is: 'FAILED'.", **job, "log": [str(log), "slurm.log"]}
    handler.handle(logging.makeLogRecord({"event": LogEvent.JOB_ERROR, **why}))


def test_a_job_that_failed_elsewhere_says_why_and_names_its_logs(log, capsys):
    failed(JobLogHandler({"measure"}, lambda: True), log, local=False)
    told = f"ceiling failed: SLURM status is: 'FAILED'. Its logs: {log}, slurm.log\n"
    assert capsys.readouterr().err == log.read_text(encoding="utf-8") + told


def test_a_job_that_failed_here_has_said_why_already(log, capsys):
    failed(JobLogHandler({"measure"}, lambda: True), log, local=True)
    assert capsys.readouterr().err == ""


def announced(name: str, capsys, *, announce: bool = True) -> str:
    job = {"rule_name": name, "jobid": 7, "log": ["a.log"], "local": True, "rule_msg": f"What {name} does"}
    JobLogHandler({"measure"}, lambda: False, announce=announce).handle(
        logging.makeLogRecord({"event": LogEvent.JOB_INFO, **job})
    )
    return capsys.readouterr().err


def test_a_rule_s_message_is_printed_as_its_job_starts_and_a_block_has_its_own_line(capsys):
    assert announced("shard", capsys) == "What shard does\n"
    assert announced("measure", capsys) == ""
    assert announced("shard", capsys, announce=False) == ""
