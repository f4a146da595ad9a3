"""Arguments that several commands take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_long(parser: argparse.ArgumentParser, flag: str, **settings: Any) -> None:
    """An argument that may be too long for a command line; required where it has no default."""
    parser.add_argument(flag, type=from_file, required="default" not in settings, **settings)


def from_file(text: str) -> str:
    """`text` itself, or what the file holds that it names behind an `@`."""
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"cannot read {text[1:]}: {error}") from error
