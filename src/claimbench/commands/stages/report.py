"""Renders the report."""

from __future__ import annotations

import argparse
from pathlib import Path

from claimbench.commands import table_inputs

ABOUT = "render the report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", type=Path, required=True, help="results/plan/<digest>.json")
    parser.add_argument("--table", type=Path, required=True, help="results/table.parquet")
    parser.add_argument("--verdicts", type=Path, required=True, help="results/verdicts.json")
    parser.add_argument("--ceilings", type=Path, required=True, help="results/ceilings/<machine>-<device>.json")
    parser.add_argument("--rounds", type=Path, help="the list of rounds, results/decided/<digest>.json")
    parser.add_argument("--code", default="", help="hash of the code that renders, as the workflow knows it")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write, reports")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.analysis import table_file
    from claimbench.reporting import origin, report
    from claimbench.schema import rendering, sealed, verdicts
    from claimbench.schema import round as round_file

    plan, limits, made_of = table_inputs.read(arguments)
    read = table_file.read(arguments.table, made_of)
    judged = verdicts.read(arguments.verdicts)
    sealed.require_made_of(arguments.verdicts, judged.made_of, {"plan": plan.seal, "table": read.seal}, "judge")
    rounds = round_file.read_summary(arguments.rounds) if arguments.rounds else None
    of = origin.origin_of(plan, arguments.plan.stem, read.measured)
    report.render(plan, read.table, judged, limits, arguments.output, rounds, origin=of)
    files = rendering.files_in(arguments.output)
    made_of |= {"table": read.seal, "verdicts": sealed.seal(judged)}
    rendered = rendering.Rendering(origin=of, made_of=made_of, code=arguments.code, files=files)
    rendering.write(arguments.output, rendered)
