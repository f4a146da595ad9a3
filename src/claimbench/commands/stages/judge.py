"""A verdict for every claim."""

from __future__ import annotations

import argparse
from pathlib import Path

ABOUT = "a verdict for every claim"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", type=Path, required=True, help="results/plan/<digest>.json")
    parser.add_argument("--table", type=Path, required=True, help="results/table.parquet")
    parser.add_argument("--output", type=Path, required=True, help="the file to write, results/verdicts.json")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.analysis import table_file
    from claimbench.judging import judge
    from claimbench.schema import frontier, verdicts
    from claimbench.schema.plan import read as read_plan
    from claimbench.workflow import derived_files

    plan = read_plan(arguments.plan)
    read = table_file.read(arguments.table, {"plan": plan.seal})
    found = {id: frontier.read(Path(search.path)) for id, search in plan.frontiers.items()}
    judged = judge.judge(plan, read.table, frontiers=found)
    of_table = {"table": read.seal, "table_file": derived_files.digest_of_table(arguments.table)}
    made_of = {**read.made_of, **of_table}
    verdicts.write(arguments.output, judged.model_copy(update={"made_of": made_of}))
