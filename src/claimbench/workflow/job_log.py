"""What a person sees of jobs that run elsewhere: the lines of each block, and why a job failed.

A job prints them where it runs, where nobody looks. Snakemake's `quiet: rules` leaves out its own words on a failure.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.common import LogEvent


class JobLogHandler(logging.Handler):
    """Prints the log of each job of `rules` once the job has ended, and that of any job that failed."""

    def __init__(self, rules: set[str], elsewhere: Callable[[], bool]) -> None:
        super().__init__()
        self.rules, self.elsewhere = rules, elsewhere
        self.logs: dict[int, Path] = {}
        self.here: set[int] = set()
        """Jobs that run where Snakemake does even so, and have printed what they had to say."""

    def emit(self, record: logging.LogRecord) -> None:
        said: dict[str, Any] = record.__dict__
        event = said.get("event")
        if event == LogEvent.JOB_INFO:
            if said["local"]:
                self.here.add(said["jobid"])
            elif said["rule_name"] in self.rules:
                self.logs[said["jobid"]] = Path(said["log"][0])
        elif event == LogEvent.JOB_FINISHED and self.elsewhere():
            log = self.logs.pop(said["job_id"], None)
            sys.stderr.write(_text_of(log) if log else "")
        elif event == LogEvent.JOB_ERROR and self.elsewhere() and said["jobid"] not in self.here:
            sys.stderr.write(_failure(said))


def _failure(said: dict[str, Any]) -> str:
    """The job's own log, the executor's message, and where both logs lie."""
    own = _text_of(Path(said["log"][0])) if said["log"] else ""
    logs = ", ".join(str(path) for path in said["log"])
    return f"{own}{said['rule_name']} failed: {said['rule_msg'] or 'no reason is known.'} Its logs: {logs}\n"


def _text_of(log: Path) -> str:
    """A file that is late on a shared disk is no reason to stop."""
    try:
        return log.read_text(encoding="utf-8")
    except OSError:
        return ""
