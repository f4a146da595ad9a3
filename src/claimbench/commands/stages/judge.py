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

    plan = read_plan(arguments.plan)
    read = table_file.read(arguments.table, {"plan": plan.seal})
    found = {id: frontier.read(Path(search.path)) for id, search in plan.frontiers.items()}
    judged = judge.judge(plan, read.table, frontiers=found)
    made_of = {"plan": plan.seal, "table": read.seal}
    verdicts.write(arguments.output, judged.model_copy(update={"made_of": made_of}))
