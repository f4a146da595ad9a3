"""A machine's measured limits, `results/ceilings/<machine>-<device>.json`; empty where none were measured."""

from __future__ import annotations

import json
from pathlib import Path

from claimbench.errors import ResultError
from claimbench.schema.cell import Device, Frozen
from claimbench.schema.json_file import write_json


class Ceilings(Frozen):
    device: Device | None = None
    machine: str | None = None
    """Its key."""
    torch: str | None = None
    threads: int | None = None
    read_bytes_per_s: float | None = None
    matmul_flops_per_s: dict[str, float] = {}
    """By dtype."""
    file_read_bytes_per_s: dict[str, float | None] = {}
    """By state of the page cache; None where it cannot be brought into that state."""
    copy_bytes_per_s: float | None = None
    """Of a GPU's memory; reads and writes both count."""


def write(path: Path, ceilings: Ceilings) -> None:
    write_json(path, ceilings.model_dump(mode="json", exclude_none=True))


def read(path: Path) -> Ceilings:
    """The ceilings at `path`.

    Raises:
        ResultError: there is no such file, it holds no ceilings, or those of another version.
    """
    try:
        return Ceilings.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ResultError(f"{path}: no ceilings can be read ({first}). Delete it and run again.") from error
