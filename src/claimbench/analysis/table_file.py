"""The table as a file: parquet that is sealed and says what it was made of, and the same as CSV for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
import pyarrow
from pyarrow import parquet

from claimbench.analysis.aggregate import COLUMNS
from claimbench.errors import ResultError
from claimbench.schema import durable, plain_file, sealed
from claimbench.schema.metrics import METRICS
from claimbench.schema.rendering import Hours

KEY: Final = b"claimbench"
"""Of the metadata in a parquet file's schema."""
VERSION: Final = 1
ADVICE: Final = "Delete it and run again: the stage `aggregate` makes it anew"


class TableFile(NamedTuple):
    table: pd.DataFrame
    seal: str
    made_of: dict[str, str]
    """Seals of the inputs, by name."""
    measured: Hours | None
    """When the first and the last block or round began; None where there is none."""


def write(
    table: pd.DataFrame, path: Path, csv: Path, made_of: Mapping[str, str], measured: Hours | None = None
) -> None:
    text = table.to_csv(index=False)
    said = {"schema_version": VERSION, "seal": _seal(text), "made_of": dict(made_of), "measured": measured}
    arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), KEY: json.dumps(said)})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(arrow, sink)
    durable.write(csv, text.encode())
    durable.write(path, sink.getvalue().to_pybytes())


def read(path: Path, given: Mapping[str, str]) -> TableFile:
    """The table that `write` wrote, made of the inputs that are `given` by name and seal.

    Raises:
        ResultError: it is missing, edited, of another version, made of other inputs, or has an infinite number.
    """
    try:
        arrow = parquet.read_table(pyarrow.BufferReader(plain_file.read_bytes(path, sealed.MOST_BYTES)))
        said = json.loads((arrow.schema.metadata or {})[KEY])
        version, known_seal, made_of = said["schema_version"], said["seal"], dict(said["made_of"])
        measured = Hours(*said["measured"]) if said.get("measured") else None
        table = arrow.to_pandas()
    except OSError as error:
        raise ResultError(f"cannot read the table {path}: {error.strerror or error}. {ADVICE}") from error
    except (ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        first = str(error).splitlines()[0]
        raise ResultError(f"{path}: not a table of this version of Claimbench ({first}). {ADVICE}") from error
    try:
        _check(path, table, version, known_seal)
    except (ValueError, TypeError, pyarrow.ArrowException) as error:  # columns of wrong types, or no text
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResultError(f"{path}: not a table of this version of Claimbench ({first}). {ADVICE}") from error
    sealed.require_made_of(path, made_of, given, "aggregate")
    return TableFile(table, known_seal, made_of, measured)


def _check(path: Path, table: pd.DataFrame, version: object, known_seal: str) -> None:
    missing = [column for column in COLUMNS if column not in table.columns]
    if version != VERSION or missing:
        lacking = f"it lacks {', '.join(missing)}" if missing else f"expected version {VERSION}, got {version!r}"
        raise ResultError(f"{path}: the table is of another version: {lacking}. {ADVICE}")
    if seal(table) != known_seal:
        raise ResultError(
            f"{path}: the table was edited after it was made: its seal does not match its content. {ADVICE}"
        )
    if np.isinf(table[list(METRICS)].to_numpy(dtype=float, na_value=np.nan)).any():
        raise ResultError(f"{path}: expected finite numbers, and a metric is infinite. {ADVICE}")


def as_written(table: pd.DataFrame) -> pd.DataFrame:
    """What `read` gives of `table` after `write`: parquet has types of its own for what is missing."""
    read: pd.DataFrame = pyarrow.Table.from_pandas(table, preserve_index=False).to_pandas()
    return read


def seal(table: pd.DataFrame) -> str:
    """The sha256 of its CSV, which says every value in full and nothing else."""
    return _seal(table.to_csv(index=False))


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
