"""Fetched files become safetensors shards with a manifest."""

from __future__ import annotations

import argparse
from pathlib import Path

ABOUT = "write a checkpoint as safetensors shards with a manifest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="the checkpoint as JSON, as a plan holds it")
    parser.add_argument("--fetched", type=Path, required=True, help="the folder that `fetch` wrote")
    parser.add_argument("--output", type=Path, required=True, help="the folder, resources/checkpoints/<name>-<hash>")
    parser.add_argument("--max-shard-mb", type=float, help="1e6 bytes per file at most, e.g. 2000; absent: no limit")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.checkpoints import shard
    from claimbench.schema.cell import Checkpoint

    checkpoint = Checkpoint.model_validate_json(arguments.checkpoint)
    most = int(arguments.max_shard_mb * 1e6) if arguments.max_shard_mb else None
    shard.shard(checkpoint, arguments.fetched, arguments.output, most)
