"""The largest batch that fits."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from claimbench.commands import flags

ABOUT = "search between the batches of a sweep for the largest that fits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_long(parser, "--cell", help="the cell of the smallest batch as JSON, or @FILE that holds it")
    parser.add_argument("--key", required=True, help="its key as JSON, as a plan holds it")
    parser.add_argument("--swept", type=Path, nargs="+", required=True, help="the first result of each swept batch")
    parser.add_argument("--output", type=Path, required=True, help="the file to write, .../frontier.json")
    parser.add_argument("--checkpoint", type=Path, help="the folder of its shards")
    parser.add_argument("--draft", type=Path, help="the folder of its draft's shards")
    parser.add_argument("--python", default=sys.executable, help="that runs the trials; default: this one")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.measuring import frontier
    from claimbench.planning import target_machine
    from claimbench.schema.cell import Cell
    from claimbench.schema.frontier import describe
    from claimbench.schema.result import Key

    key = Key.model_validate_json(arguments.key)
    target_machine.expect_here(key.machine)
    found = frontier.find(
        Cell.model_validate_json(arguments.cell),
        key,
        arguments.swept,
        arguments.output,
        checkpoint=arguments.checkpoint,
        draft=arguments.draft,
        python=arguments.python,
    )
    print(f"    {describe(found)}", file=sys.stderr, flush=True)
