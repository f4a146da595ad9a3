"""Files that are sealed with a hash of their own content, so that an edited one is refused rather than believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from claimbench.errors import ResultError
from claimbench.schema.json_file import digest, write_json

Model = TypeVar("Model", bound=BaseModel)


def seal_of(content: object) -> str:
    """The sha256 of a value's canonical JSON."""
    return digest(content, length=64)


def write(path: Path, kind: str, record: BaseModel) -> None:
    """Write `record`, which is a `kind`, whole or not at all."""
    content = record.model_dump(mode="json")
    write_json(path, {"seal": seal_of(content), kind: content})


def read(path: Path, kind: str, model: type[Model], advice: str) -> Model:
    """The `kind` at `path`; `advice` says what to do about a file that cannot be used.

    Raises:
        ResultError: the file is missing, cut short, edited by hand, or of another schema.
    """
    try:
        envelope = json.loads(path.read_text(encoding="utf-8"))
        record = model.model_validate(envelope[kind])
        seal, content = envelope["seal"], seal_of(envelope[kind])
    except OSError as error:
        raise ResultError(f"cannot read {kind} {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise ResultError(f"not a {kind} of this version of Claimbench ({first}). {advice}: {path}") from error
    if seal != content:
        edited = f"a {kind} was edited after it was measured: its seal does not match its content"
        raise ResultError(f"{edited}. {advice}: {path}")
    return record
