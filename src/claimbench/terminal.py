"""What a person sees of jobs that run elsewhere: the lines of each block, which were printed where nobody looks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from snakemake_interface_logger_plugins.common import LogEvent


class LinesOfBlocks(logging.Handler):
    """Prints the log of each job of `rules` once the job has ended."""

    def __init__(self, rules: set[str], elsewhere: Callable[[], bool]) -> None:
        super().__init__()
        self.rules, self.elsewhere = rules, elsewhere
        self.logs: dict[int, Path] = {}

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_INFO and record.__dict__["rule_name"] in self.rules:
            self.logs[record.__dict__["jobid"]] = Path(record.__dict__["log"][0])
        elif event == LogEvent.JOB_FINISHED and self.elsewhere():
            log = self.logs.pop(record.__dict__["job_id"], None)
            with suppress(OSError):  # a file that is late on a shared disk is no reason to stop
                sys.stderr.write(log.read_text(encoding="utf-8") if log else "")
