"""JSON as it is hashed, compared and written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from claimbench.schema import durable


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces. What is hashed and compared is always this text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object, length: int = 12) -> str:
    """The first `length` hex digits of the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def parse_json(text: str) -> Any:
    """The value that `text` says, if it can be written again.

    Raises:
        ValueError: it is no JSON, or holds a number that is not finite, or half a character.
        RecursionError: it is nested too deeply.
    """
    value = json.loads(text)
    canonical_json(value).encode()
    return value


def json_bytes(value: object) -> bytes:
    """A value as it is written to a file."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"{text}\n".encode()


def write_json(path: Path, value: object) -> None:
    """Whole or not at all: see durable.py."""
    durable.write(path, json_bytes(value))
