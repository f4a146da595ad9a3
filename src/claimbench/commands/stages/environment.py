"""An environment of its own for a backend."""

from __future__ import annotations

import argparse
from pathlib import Path

ABOUT = "build a backend's environment from its lock"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lock", type=Path, required=True, help="the lock, e.g. envs/vllm.lock")
    parser.add_argument("--folder", type=Path, required=True, help="to build it in, resources/environments/vllm")
    parser.add_argument("--output", type=Path, required=True, help="the stamp, written last: <folder>/stamp.json")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.workflow import environments

    environments.build(arguments.lock, arguments.folder, arguments.output)
