"""Results become one table."""

from __future__ import annotations

import argparse
from pathlib import Path

from claimbench.commands import table_inputs

ABOUT = "results to one tidy table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", type=Path, required=True, help="results/plan/<digest>.json")
    parser.add_argument("--rounds", type=Path, help="the list of rounds, results/decided/<digest>.json")
    parser.add_argument("--ceilings", type=Path, required=True, help="results/ceilings/<machine>-<device>.json")
    parser.add_argument("--parquet", type=Path, required=True, help="the file to write, results/table.parquet")
    parser.add_argument("--csv", type=Path, required=True, help="the same for people, results/table.csv")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.analysis import aggregate, hours, table_file
    from claimbench.schema import round as round_file
    from claimbench.workflow import derived_files

    plan, limits, made_of = table_inputs.read(arguments)
    rounds = round_file.read_all(arguments.rounds) if arguments.rounds else {}
    table = aggregate.aggregate(plan, limits, rounds=rounds)
    made_of["results"] = derived_files.made_of_results(path for each in plan.cells.values() for path in each.paths())
    table_file.write(table, arguments.parquet, arguments.csv, made_of, hours.hours_of(plan, rounds))
