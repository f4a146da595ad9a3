"""What this machine is, as a file, for a plan that is made elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

ABOUT = "say what this machine is, for a plan made elsewhere"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="the file to write, e.g. node.json")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.schema.json_file import write_json
    from claimbench.system import machine

    write_json(arguments.output, machine.identify())
