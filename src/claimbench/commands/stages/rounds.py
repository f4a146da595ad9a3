"""Rounds until every claim is settled."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ABOUT = "measure in rounds until every claim is settled or the budget is spent"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", type=Path, required=True, help="results/plan/<digest>.json")
    parser.add_argument("--folder", type=Path, required=True, help="of the rounds, results/rounds; those there count")
    parser.add_argument("--output", type=Path, required=True, help="their list, results/decided/<digest>.json")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.deciding.settle import settle
    from claimbench.planning import target_machine
    from claimbench.schema.plan import read as read_plan

    plan = read_plan(arguments.plan)
    target_machine.expect_here(plan.machine["key"])

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    settle(plan, arguments.folder, arguments.output, say)
