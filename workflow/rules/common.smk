# Makes the plan from the configuration; a mistake in it ends here with one message and no traceback.

import os
import sys

from snakemake.logging import logger
from snakemake.settings.types import Quietness
from snakemake.utils import update_config
from snakemake_interface_logger_plugins.common import LogEvent

# The package beside this Snakefile is what runs and what results' keys hash, whatever is installed: DVC runs a queued
# experiment in a copy of its revision, where an editable install would bring in the workspace's later code.
SOURCE = Path(workflow.basedir).resolve() / "src"
if (SOURCE / "claimbench").is_dir():
    sys.path.insert(0, str(SOURCE))
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = [path for path in inherited if path and path != str(SOURCE)]
    os.environ.update(PYTHONPATH=os.pathsep.join([str(SOURCE), *others]))

from claimbench.schema.validation import read_yaml
from claimbench.workflow.another_try import make_way
from claimbench.workflow.command_line import as_written
from claimbench.workflow.job_log import JobLogHandler
from claimbench.workflow.jobs import (
    Workflow,
    as_argument,
    as_json,
    expect_no_wildcards,
    in_one_message,
    params_file,
)
from claimbench.workflow.rendered import foreign

# Where Claimbench lies. Results go into the working directory, which is another one with `--directory` or as a module.
HOME = Path(
    os.path.relpath(workflow.current_basedir.get_path_or_uri(secret_free=True))
).parent.parent

# Snakemake's own reader keeps the last of two equal keys without a word, and takes other words than DVC for numbers.
with in_one_message():
    expect_no_wildcards(HOME.resolve())
    PARAMS_FILE = params_file(HOME)
    OF_A_MODULE = workflow.modifier.skip_configfile
    PARAMS = dict(config) if OF_A_MODULE else read_yaml(PARAMS_FILE) or {}


configfile: str(PARAMS_FILE)


with in_one_message():
    if not OF_A_MODULE:
        update_config(PARAMS, as_written(workflow.config_settings.overwrite_config))
    FLOW = Workflow(PARAMS, Path("studies"), HOME / "studies")

# A dry run renames nothing: it counts a job less for each result that a run sets aside. (`workflow.dryrun` is False
# until an executor is chosen, after the rules are read.)
DRY_RUN = workflow.output_settings.dryrun
if workflow.is_main_process and not DRY_RUN:
    with in_one_message():
        make_way(
            FLOW.plan,
            Path(FLOW.decided[0]) if FLOW.decided else None,
            lambda line: print(f"claimbench: {line}", file=sys.stderr, flush=True),
        )

# The rules' `python` is the one that runs Snakemake, whether its environment is activated or not.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
)

# `quiet: rules` leaves four lines of Snakemake around each of ours; `quiet: progress` would take the job table of
# `snakemake -n` with them. So the table stays, and only the lines around jobs go, from the terminal alone.
AROUND_JOBS = {
    LogEvent.JOB_STARTED,
    LogEvent.JOB_FINISHED,
    LogEvent.PROGRESS,
    LogEvent.RESOURCES_INFO,
}
QUIET_RULES = Quietness.RULES in (workflow.output_settings.quiet or ())
if QUIET_RULES:
    for handler in logger.handlers:
        if handler.name == "DefaultStreamHandler":
            handler.addFilter(
                lambda record: getattr(record, "event", None) not in AROUND_JOBS
                and record.msg != "Select jobs to execute..."
            )

if workflow.is_main_process:
    logger.addHandler(
        JobLogHandler(
            {"measure", "frontier", "rounds"},
            lambda: not workflow.local_exec,
            announce=QUIET_RULES and not DRY_RUN,
        )
    )


# On a cluster only what takes long goes to a node; the rest takes seconds, or needs a network that nodes may lack.
localrules:
    plan,
    fetch,
    environment,
    checkpoints,
    aggregate,
    judge,
    report,


wildcard_constraints:
    cell=r"[0-9a-f]{12}",
    key=r"[0-9a-f]{12}",
    block=r"\d+",
    plan_digest=r"[0-9a-f]{12}",
    name=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    source=r"[0-9a-f]{12}",


# With a limit on jobs per second, which is Snakemake's default, every job that has run leaves a timer that wakes the
# scheduler each second: after 250 jobs that is a fifth of a core, beside the block that is being timed.
onstart:
    workflow.scheduler.job_rate_limiter = None
