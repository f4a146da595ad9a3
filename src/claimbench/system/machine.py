"""What this machine is, and how it was doing while it measured.

`identify` names what a result depends on; its `key` is a hash of that alone, so that an H100's result is never taken
for an A10G's. `telemetry` is a snapshot: clocks, load, neighbours. Nothing here changes a machine's settings.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
from pathlib import Path
from typing import TypedDict

import psutil

from claimbench.errors import ConfigError
from claimbench.schema.cell import Device
from claimbench.schema.json_file import digest
from claimbench.schema.machine import Cpu, Gpu, MachineFacts, MachineIdentity, Snapshot
from claimbench.system import control_groups, gpus
from claimbench.system.unread import Readings

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

STAT = Path("/proc/stat")

logger = logging.getLogger(__name__)


class CpuTicks(TypedDict, total=False):
    """Seconds of CPU time since boot; absent where it cannot be read."""

    busy: float
    """Over the cores that this process may use."""
    steal: float
    own: float
    """Of this process and its descendants."""
    unread: dict[str, str]
    """Why a figure is absent, by its name."""


def usable_cores() -> int:
    """Threads that can compute at once here: cores that `taskset` or a cpuset leaves, and whole ones of a quota.

    A thread more than the quota's would have all of them stand still for the rest of each period.
    """
    quota = control_groups.cpu_quota()
    cores = affinity_cores()
    return cores if quota is None else max(1, min(cores, int(quota)))


def cores_worth() -> float:
    """Seconds of CPU time that this process can take in a second."""
    quota = control_groups.cpu_quota()
    cores = affinity_cores()
    return cores if quota is None else min(quota, cores)


def is_quota_bound() -> bool:
    """Whether a quota is less than the cores that it may be spent on: others may then compute on the same ones."""
    return cores_worth() < affinity_cores()


def affinity_cores() -> int:
    """Cores that this process may run on."""
    return len(_affinity())


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def memory_bytes() -> int:
    """Of this machine, or what a container leaves of it."""
    total = Readings().read("memory", lambda: psutil.virtual_memory().total) or _pages("SC_PHYS_PAGES")
    return min(total, control_groups.memory_limit() or sys.maxsize)


def available_bytes() -> int:
    """Memory that can be taken now without swapping, or without being killed for it in a container."""
    left = control_groups.memory_left()
    available = Readings().read("memory", lambda: psutil.virtual_memory().available)
    available = _pages("SC_AVPHYS_PAGES") if available is None else int(available)
    return available if left is None else min(available, left)


def _pages(name: str) -> int:
    """Bytes by the C library, which asks the kernel and not /proc."""
    return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")


def _cpu_fields() -> dict[str, str]:
    """Of the first core; none where the system does not say."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    return fields


def cpu_flags() -> set[str]:
    """What the CPU can do, as Linux names it."""
    fields = _cpu_fields()
    return set(fields.get("flags", fields.get("Features", "")).split())


def _cpu() -> Cpu:
    fields, flags = _cpu_fields(), cpu_flags()
    found: Cpu = {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "family": fields.get("cpu family", ""),
        "generation": fields.get("model", ""),
        "cores": usable_cores(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
    }
    return {**found, "quota": round(cores_worth(), 2)} if is_quota_bound() else found


def identify() -> MachineIdentity:
    """This machine."""
    facts: MachineFacts = {
        "cpu": _cpu(),
        "memory_gb": round(memory_bytes() / 1e9),
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
    """What of it can be read; cores that this process may not use are nobody's neighbours."""
    readings = Readings()
    own = readings.read("own", lambda: sum(map(_seconds, _family())))
    found: CpuTicks = {"unread": readings.unread} if own is None else {"own": own, "unread": readings.unread}
    busy = readings.read("busy", _busy)
    return found if busy is None else {**found, **busy}


def _family() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _busy() -> CpuTicks:
    """By /proc/stat, of the cores that this process may use; of all, where it numbers them otherwise or says none."""
    cores = _cpu_times()
    usable = [cores[f"cpu{core}"] for core in _affinity() if f"cpu{core}" in cores]
    counted = usable if len(usable) == affinity_cores() else [cores["cpu"]]
    if not any(map(any, counted)):
        raise ValueError(f"{STAT} says that no core ever did anything")
    return {
        "busy": sum(user + nice + system + irq + softirq for user, nice, system, _, _, irq, softirq, *_ in counted),
        "steal": sum(times[7] for times in counted if len(times) > 7),
    }


def _cpu_times() -> dict[str, list[float]]:
    """Seconds by core, `cpu` for all: user, nice, system, idle, iowait, irq, softirq, steal."""
    ticks = os.sysconf("SC_CLK_TCK")
    lines = (line.split() for line in STAT.read_text(encoding="ascii").splitlines() if line.startswith("cpu"))
    return {name: [int(value) / ticks for value in values] for name, *values in lines}


def _seconds(process: psutil.Process) -> float:
    """CPU time of a process and of its children that have ended; those that live are asked themselves."""
    try:
        spent = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(spent.user + spent.system + spent.children_user + spent.children_system)


def telemetry(device: Device) -> Snapshot:
    """A snapshot of load, memory and, on a GPU, clocks, temperature, power, throttling and who else is there."""
    snapshot: Snapshot = {}
    readings = Readings()
    load = readings.read("load_average", lambda: round(os.getloadavg()[0], 2))
    if load is not None:
        snapshot["load_average"] = load
    available = readings.read("available_memory_bytes", available_bytes)
    if available is not None:
        snapshot["available_memory_bytes"] = available
    megahertz = readings.read("cpu_mhz", _megahertz)
    if megahertz:
        snapshot["cpu_mhz"] = megahertz
    gpu = readings.read("gpu", gpus.snapshot) if device == "cuda" else None
    if gpu is not None:
        snapshot["gpu"] = gpu
    return {**snapshot, "unread": readings.unread} if readings.unread else snapshot


def _megahertz() -> int | None:
    frequency = psutil.cpu_freq()
    return round(frequency.current) if frequency else None
