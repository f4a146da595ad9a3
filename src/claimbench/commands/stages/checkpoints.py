"""Which weights are here."""

from __future__ import annotations

import argparse
from pathlib import Path

ABOUT = "one small file that says which weights are here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--manifests", type=Path, nargs="*", default=[], help="manifest.json of each checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="the file to write, results/checkpoints.json")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.checkpoints import manifest
    from claimbench.schema.json_file import write_json

    found = {path.parent.name: manifest.read(path.parent) for path in arguments.manifests}
    summary = {
        folder: {
            "checkpoint": m.checkpoint,
            "layout": m.layout.kind,
            "ranks": m.layout.ranks,
            "sha256": m.sha256,
            "source": m.source,
            "revision": m.revision,
            "parameters": m.parameters,
            "weight_bytes": m.weight_bytes,
        }
        for folder, m in found.items()
    }
    write_json(arguments.output, summary)
