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
        fields: dict[str, Any] = record.__dict__
        event = fields.get("event")
        if event == LogEvent.JOB_INFO:
            if fields["local"]:
                self.here.add(fields["jobid"])
            elif fields["rule_name"] in self.rules:
                self.logs[fields["jobid"]] = Path(fields["log"][0])
        elif event == LogEvent.JOB_FINISHED and self.elsewhere():
            log = self.logs.pop(fields["job_id"], None)
            sys.stderr.write(_text_of(log) if log else "")
        elif event == LogEvent.JOB_ERROR and self.elsewhere() and fields["jobid"] not in self.here:
            sys.stderr.write(_failure(fields))


def _failure(fields: dict[str, Any]) -> str:
    """The job's own log, the executor's message, and where both logs lie."""
    own = _text_of(Path(fields["log"][0])) if fields["log"] else ""
    logs = ", ".join(str(path) for path in fields["log"])
    return f"{own}{fields['rule_name']} failed: {fields['rule_msg'] or 'no reason is known.'} Its logs: {logs}\n"


def _text_of(log: Path) -> str:
    """A file that is late on a shared disk is no reason to stop."""
    try:
        return log.read_text(encoding="utf-8")
    except OSError:
        return ""
