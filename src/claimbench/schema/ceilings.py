"""A machine's measured limits, `results/ceilings/<machine>-<device>.json`; empty where none were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from claimbench.errors import ResultError
from claimbench.schema import sealed
from claimbench.schema.cell import Device
from claimbench.schema.frozen import Frozen

ADVICE = "Delete it and run again: the stage `ceiling` measures them anew"
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Ceilings(Frozen):
    device: Device | None = None
    machine: str | None = None
    """Its key."""
    torch: str | None = None
    threads: int | None = None
    read_bytes_per_s: Rate | None = None
    matmul_flops_per_s: dict[str, Rate] = {}
    """By dtype."""
    file_read_bytes_per_s: dict[str, Rate | None] = {}
    """By state of the page cache; None where it cannot be brought into that state."""
    copy_bytes_per_s: Rate | None = None
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
    sealed.write(path, "ceilings", ceilings)


def read(path: Path, machine: str, device: Device) -> Ceilings:
    """The ceilings at `path`, which are of `device` of `machine`, by its key.

    Raises:
        ResultError: there is no such file, it was edited, or holds no ceilings, or those of another machine.
    """
    found = sealed.read(path, "ceilings", Ceilings, ADVICE)
    if (found.machine, found.device) != (machine, device):
        raise ResultError(
            f"expected the ceilings of {device} on machine {machine}, got those of {found.device} on machine "
            f"{found.machine}. {ADVICE}: {path}"
        )
    return found
