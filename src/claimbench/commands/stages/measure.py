"""One block of one cell."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from claimbench.commands import flags
from claimbench.errors import SourceError

ABOUT = "measure one block of one cell"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_long(parser, "--cell", help="the cell as JSON, or @FILE that holds it")
    parser.add_argument("--key", required=True, help="its key as JSON, as a plan holds it")
    parser.add_argument("--block", type=int, required=True, help="its number, from 0")
    parser.add_argument("--plan", type=Path, required=True, help="the plan, to say how much is left")
    parser.add_argument("--output", type=Path, required=True, help="the file to write, results/measure/.../0.json")
    parser.add_argument("--checkpoint", type=Path, help="the folder of its shards")
    parser.add_argument("--draft", type=Path, help="the folder of its draft's shards")
    flags.add_long(
        parser, "--reference", default="", help="the cell whose tokens it is compared with, as JSON or @FILE"
    )
    parser.add_argument("--reference-checkpoint", type=Path, help="the folder of the reference's shards, if another")
    parser.add_argument("--smaller", type=Path, help="the result of the next smaller batch")
    parser.add_argument(
        "--side-by-side", choices=("no", "yes"), default="no", help="whether others may measure on like GPUs meanwhile"
    )
    parser.add_argument("--python", default=sys.executable, help="that runs the block; default: this one")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.measuring import measure
    from claimbench.planning import target_machine
    from claimbench.schema.cell import Cell
    from claimbench.schema.plan import read as read_plan
    from claimbench.schema.result import Key
    from claimbench.workflow import progress

    key = Key.model_validate_json(arguments.key)
    target_machine.expect_here(key.machine)
    for folder in filter(None, (arguments.checkpoint, arguments.draft)):
        if not folder.is_dir():
            raise SourceError(f"there is no checkpoint at {folder}: `snakemake fetched` makes it")
    cell = Cell.model_validate_json(arguments.cell)
    line = progress.Line(read_plan(arguments.plan) if arguments.plan.exists() else None, cell, arguments.block)
    print(line.before(), file=sys.stderr, flush=True)
    record = measure.measure(
        cell,
        arguments.block,
        key,
        arguments.output,
        checkpoint=arguments.checkpoint,
        draft=arguments.draft,
        reference=Cell.model_validate_json(arguments.reference) if arguments.reference else None,
        reference_checkpoint=arguments.reference_checkpoint,
        smaller=arguments.smaller,
        python=arguments.python,
        side_by_side=arguments.side_by_side == "yes",
    )
    print(line.after(record), file=sys.stderr, flush=True)
