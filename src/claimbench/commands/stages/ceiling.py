"""This machine's limits."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

ABOUT = "measure this machine's limits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", required=True, help="cpu or cuda")
    parser.add_argument("--machine", required=True, help="the machine's key, which is checked")
    parser.add_argument("--output", type=Path, required=True, help="results/ceilings/<machine>-<device>.json")


def run(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from claimbench.measuring import ceiling
    from claimbench.planning import target_machine
    from claimbench.schema import ceilings

    target_machine.expect_here(arguments.machine)
    ceilings.write(arguments.output, ceiling.measure_ceilings(arguments.device, arguments.machine))
