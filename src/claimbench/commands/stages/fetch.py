"""Brings a checkpoint's files here."""

from __future__ import annotations

import argparse
from pathlib import Path

ABOUT = "bring a checkpoint's files here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="the checkpoint as JSON, as a plan holds it")
    parser.add_argument("--output", type=Path, required=True, help="the folder, resources/fetched/<source>")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.checkpoints import fetch
    from claimbench.schema.cell import Checkpoint

    fetch.fetch(Checkpoint.model_validate_json(arguments.checkpoint), arguments.output)
