"""What a machine is, and how it was doing: as plans and results hold it.

Every key may be absent, and others may be there: a result of another version of Claimbench is still read.
"""

from __future__ import annotations

import re

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from claimbench.schema.cell import Device

KEEPS_OTHERS = ConfigDict(extra="allow")


@with_config(KEEPS_OTHERS)
class Cpu(TypedDict, total=False):
    model: str
    family: str
    generation: str
    cores: int
    quota: float
    """Seconds of CPU time in a second, where a control group grants less than the cores have."""
    instruction_sets: list[str]


@with_config(KEEPS_OTHERS)
class Gpu(TypedDict, total=False):
    """None where the driver does not say."""

    name: str
    memory_bytes: int | None
    driver: str | None
    cuda: int | None
    power_limit_mw: int | None
    ecc: bool | None
    mig: bool | None


@with_config(KEEPS_OTHERS)
class MachineFacts(TypedDict, total=False):
    """What a result depends on; `memory_gb` counts 1e9 bytes."""

    cpu: Cpu
    memory_gb: int
    gpus: list[Gpu]
    architecture: str


@with_config(KEEPS_OTHERS)
class MachineIdentity(MachineFacts, total=False):
    key: str
    system: str
    """For people: not part of the key."""


@with_config(KEEPS_OTHERS)
class GpuSnapshot(TypedDict, total=False):
    """None where the device does not say."""

    uuid: str
    """Of the card that was looked at."""
    sm_mhz: int | None
    memory_mhz: int | None
    celsius: int | None
    power_mw: int | None
    throttle_reasons: int | None
    energy_mj: int | None
    processes: int
    pids: list[int]


@with_config(KEEPS_OTHERS)
class Snapshot(TypedDict, total=False):
    """Of one moment; `gpu` is of the first GPU, where a block runs on GPUs."""

    load_average: float
    available_memory_bytes: int
    cpu_mhz: int
    unread: dict[str, str]
    """Why a figure is absent that could not be read, by its name."""
    gpu: GpuSnapshot


@with_config(KEEPS_OTHERS)
class CheckpointFiles(TypedDict, total=False):
    """Sizes of what is loaded, and of what of it lay in the page cache."""

    bytes: int
    cached_bytes: int


@with_config(KEEPS_OTHERS)
class Telemetry(TypedDict, total=False):
    """Around one block."""

    checkpoint: CheckpointFiles
    before: Snapshot
    after: Snapshot
    unread: dict[str, str]
    """Why one of the conditions is absent, by its name."""


def device_names(machine: MachineIdentity, device: Device) -> list[str]:
    if device == "cuda":
        return [gpu["name"] for gpu in machine.get("gpus", [])]
    return [machine.get("cpu", {}).get("model", "unknown CPU")]


def readable(pattern: str) -> str:
    """A regular expression as a person would write the name: `A100.*80GB` is A100 80GB."""
    return " ".join(re.sub(r"[.*+?^$\\()\[\]{}]+", " ", pattern).replace("|", " or ").split())
