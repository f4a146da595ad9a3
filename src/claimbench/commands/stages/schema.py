"""JSON schemas of params.yaml and of studies."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from claimbench.errors import ConfigError

ABOUT = "JSON schemas of params.yaml and studies, for editors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="the folder, studies/schema")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is another")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.schema.params import json_schemas

    for name, schema in json_schemas().items():
        path, text = arguments.output / name, json.dumps(schema, indent=2, sort_keys=True) + "\n"
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            raise ConfigError(f"{path} is not what the code says: run `make schema`")
