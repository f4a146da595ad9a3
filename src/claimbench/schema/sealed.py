"""Files that are sealed with a hash of their own content, so that an edited one is refused rather than believed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from claimbench.errors import ResultError
from claimbench.schema import durable, plain_file
from claimbench.schema.json_file import digest, json_bytes

Model = TypeVar("Model", bound=BaseModel)
MOST_BYTES: Final = 1_000_000_000
OPENING: Final = re.compile(rb'\{"seal":"([0-9a-f]{64})"')


def seal_of(content: object) -> str:
    """The sha256 of a value's canonical JSON."""
    return digest(content, length=64)


def seal(record: BaseModel) -> str:
    """`seal_of` a record as it is written."""
    return seal_of(record.model_dump(mode="json"))


def seal_in(path: Path) -> str:
    """What the sealed file at `path` says is its seal, without reading on: it opens with it.

    Raises:
        ResultError: it is missing, or does not.
    """
    try:
        with path.open("rb") as file:
            found = OPENING.match(file.read(100))
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror}") from error
    if found is None:
        raise ResultError(f"{path}: expected a sealed file. Delete it and run again")
    return found[1].decode()


def require_made_of(path: Path, made_of: Mapping[str, str], given: Mapping[str, str], stage: str) -> None:
    """Raises ResultError where the file at `path` was made of other inputs than those `given`, by name and seal."""
    for name, expected in given.items():
        if made_of.get(name) != expected:
            raise ResultError(
                f"{path} does not follow from the {name} that it is shown with: it was made of others. "
                f"Delete it and run again: the stage `{stage}` makes it anew"
            )


def write(path: Path, kind: str, record: BaseModel) -> None:
    """Write `record`, which is a `kind`, whole or not at all."""
    durable.write(path, _envelope(kind, record))


def write_new(path: Path, kind: str, record: BaseModel) -> None:
    """`write` where nothing is yet.

    Raises:
        FileExistsError: something is, and stays as it is.
    """
    durable.write_new(path, _envelope(kind, record))


def _envelope(kind: str, record: BaseModel) -> bytes:
    content = record.model_dump(mode="json")
    return json_bytes({"seal": seal_of(content), kind: content})


def seal_at(path: Path) -> str | None:
    """The seal of the file at `path` as it is written there, unchecked; None where there is none."""
    try:
        seal = json.loads(plain_file.read_text(path, MOST_BYTES))["seal"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return seal if isinstance(seal, str) else None


def read(path: Path, kind: str, model: type[Model], advice: str) -> Model:
    """The `kind` at `path`; `advice` says what to do about a file that cannot be used.

    Raises:
        ResultError: the file is missing, cut short, edited by hand, or of another schema.
    """
    several = kind.endswith("s")
    try:
        envelope = json.loads(plain_file.read_text(path, MOST_BYTES))
        record = model.model_validate(envelope[kind])
        seal, content = envelope["seal"], seal_of(envelope[kind])
    except OSError as error:
        raise ResultError(f"cannot read {kind} {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        first = str(error).splitlines()[0]
        what = kind if several else f"a {kind}"
        raise ResultError(f"not {what} of this version of Claimbench ({first}). {advice}: {path}") from error
    if seal != content:
        edited = f"a {kind} was edited after it was measured: its seal does not match its content"
        if several:
            edited = f"{kind} were edited after they were made: their seal does not match their content"
        raise ResultError(f"{edited}. {advice}: {path}")
    return record
