"""What this machine is, and how it was doing while it measured.

`identify` names what a result depends on; its `key` is a hash of that alone, so that an H100's result is never taken
for an A10G's. `telemetry` is a snapshot: clocks, load, neighbours. Nothing here changes a machine's settings.
"""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path
from typing import TypedDict

import psutil

from claimbench.errors import ConfigError
from claimbench.schema.cell import Device
from claimbench.schema.json_file import digest
from claimbench.schema.machine import Cpu, Gpu, MachineFacts, MachineIdentity, Snapshot
from claimbench.system import gpus

# What decides which kernels a CPU can run; the other flags do not change an inference's speed.
INSTRUCTION_SETS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "sve",
    "asimd",
)


logger = logging.getLogger(__name__)


class CpuTicks(TypedDict):
    """Seconds of CPU time since boot, over all cores; `own` is of this process and its descendants."""

    busy: float
    steal: float
    own: float


def usable_cores() -> int:
    """Cores that this process may use, which containers and `taskset` make fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> Cpu:
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "family": fields.get("cpu family", ""),
        "generation": fields.get("model", ""),
        "cores": usable_cores(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
    }


def identify() -> MachineIdentity:
    """This machine."""
    facts: MachineFacts = {
        "cpu": _cpu(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpus": gpus.facts(),
        "architecture": platform.machine(),
    }
    return {
        **facts,
        "key": digest({**facts, "gpus": kinds(facts["gpus"])}),
        "system": f"{platform.system()} {platform.release()}",
    }


def kinds(found: list[Gpu]) -> list[Gpu]:
    """Without those that are like the one before: a job uses the first ones, and the others stand idle.

    So a scheduler that hands out one of eight GPUs of a kind, or all of them, gives results of one key, and two kinds
    in a machine never share one.
    """
    return [gpu for number, gpu in enumerate(found) if not number or gpu != found[number - 1]]


def resolve_device(asked: str, machine: MachineIdentity) -> Device:
    """`auto` is the GPU where torch can use one. Where there is a driver and torch cannot, a warning says why.

    Raises:
        ConfigError: a GPU was asked for by name and there is none, or torch cannot use it.
    """
    if asked == "cuda" and not machine["gpus"]:
        raise ConfigError(f"params.yaml: device: asked for cuda, but {gpus.seen().why_none}: use cpu or auto")
    if asked == "auto" and not machine["gpus"] and gpus.seen().why_none not in (None, gpus.NO_DRIVER):
        why = gpus.seen().why_none
        other = why in gpus.OTHER_GPUS.values()
        logger.warning("device: auto: the CPU, since %s%s", why, "" if other else " although an NVIDIA driver is here")
    if asked == "auto":
        return "cuda" if machine["gpus"] else "cpu"
    return "cuda" if asked == "cuda" else "cpu"


def cpu_ticks() -> CpuTicks:
    times = psutil.cpu_times()
    own = sum(map(_seconds, [psutil.Process(), *psutil.Process().children(recursive=True)]))
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return {
        "busy": busy,
        "steal": getattr(times, "steal", 0.0),
        "own": own,
    }


def _seconds(process: psutil.Process) -> float:
    """CPU time of a process and of its children that have ended; those that live are asked themselves."""
    try:
        spent = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(spent.user + spent.system + spent.children_user + spent.children_system)


def telemetry(device: Device) -> Snapshot:
    """A snapshot of load, memory and, on a GPU, clocks, temperature, power, throttling and who else is there."""
    snapshot: Snapshot = {
        "load_average": round(os.getloadavg()[0], 2),
        "available_memory_bytes": psutil.virtual_memory().available,
    }
    frequency = psutil.cpu_freq()
    if frequency:
        snapshot["cpu_mhz"] = round(frequency.current)
    gpu = gpus.snapshot() if device == "cuda" else None
    if gpu is not None:
        snapshot["gpu"] = gpu
    return snapshot
