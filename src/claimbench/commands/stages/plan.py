"""Every cell with its key and its files."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from claimbench.commands import flags
from claimbench.errors import ConfigError

ABOUT = "write every cell, its key and its files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_long(parser, "--params", help="params.yaml as JSON, or @FILE that holds it")
    parser.add_argument("--studies", required=True, help="the folder of studies, e.g. studies")
    parser.add_argument("--digest", required=True, help="that the plan must have: the one with which Snakemake began")
    parser.add_argument("--output", type=Path, required=True, help="the file to write, results/plan/<digest>.json")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.schema import durable
    from claimbench.schema.json_file import write_json
    from claimbench.system import revision
    from claimbench.workflow import jobs

    plan = jobs.plan_for(json.loads(arguments.params), *map(Path, arguments.studies.split(os.pathsep)))
    if jobs.digest_of(plan) != arguments.digest:
        raise ConfigError("the code, the studies or the libraries changed while the workflow ran: start it again")
    write_json(arguments.output, plan.model_copy(update={"commit": revision.commit()}).model_dump(mode="json"))
    for other in set(arguments.output.parent.glob("*.json")) - {arguments.output}:
        durable.remove(other)
