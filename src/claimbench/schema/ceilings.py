"""A machine's measured limits, `results/ceilings/<machine>-<device>.json`; empty where none were measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from claimbench.errors import ResultError
from claimbench.schema.cell import Device
from claimbench.schema.frozen import Frozen
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


def of_rates(rates: Iterable[Mapping[str, float]]) -> Ceilings:
    """The best of what was read in turn with the arms of a round."""
    found: dict[str, float] = {}
    for each in rates:
        found |= {name: max(rate, found.get(name, 0.0)) for name, rate in each.items()}
    return Ceilings(read_bytes_per_s=found.pop("read", None), matmul_flops_per_s=found)


def as_read(measured: Ceilings, read: Ceilings) -> Ceilings:
    """`read` in a round, and for what was not read there what was measured before."""
    return measured.model_copy(
        update={
            "read_bytes_per_s": read.read_bytes_per_s or measured.read_bytes_per_s,
            "matmul_flops_per_s": {**measured.matmul_flops_per_s, **read.matmul_flops_per_s},
        }
    )


def best_of(several: Iterable[Ceilings]) -> Ceilings:
    """The highest rate of each kind."""
    rates: list[dict[str, float]] = []
    for each in several:
        rates.append(dict(each.matmul_flops_per_s))
        if each.read_bytes_per_s:
            rates[-1]["read"] = each.read_bytes_per_s
    return of_rates(rates)


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
