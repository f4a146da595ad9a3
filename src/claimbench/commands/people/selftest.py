"""What this machine can tell apart."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ABOUT = "what this machine can tell apart: a model against itself, and against itself slowed down"
EXAMPLES = ("claimbench selftest --minutes 5",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=10.0, help="default: 10")
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="names the device; default: params.yaml here"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/selftest"), help="of the rounds; default: results/selftest"
    )


def run(arguments: argparse.Namespace) -> None:
    from claimbench.measuring import selftest
    from claimbench.schema.params import load_params
    from claimbench.schema.validation import read_yaml
    from claimbench.system import machine

    here = machine.identify()
    asked = load_params(read_yaml(arguments.params)).device if arguments.params.exists() else "auto"
    cell = selftest.default_cell(machine.resolve_device(asked, here))
    arguments.output.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    rounds = selftest.run(cell, selftest.prepare(), here["key"], arguments.minutes, arguments.output, say)
    print("\n".join(selftest.report(rounds)))
