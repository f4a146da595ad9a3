"""The GPUs that this process may use, as torch sees them, and what NVIDIA's management library (NVML) says of each.

Which they are and in which order is torch's to say: `CUDA_VISIBLE_DEVICES`, MIG slices and containers decide it, and
NVML knows nothing of that. So torch is asked, in a process of its own that may open the devices, and NVML about them by
their UUIDs. Nothing here changes a device's settings.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from claimbench.schema.machine import Gpu, GpuSnapshot

VISIBLE = "CUDA_VISIBLE_DEVICES"
NO_DRIVER = "no NVIDIA driver answers here"
OTHER_GPUS = {
    "/dev/kfd": "the GPU here is AMD's, and only NVIDIA's are supported",
    "/System/Library/Frameworks/Metal.framework": "the GPU here is Apple's, and only NVIDIA's are supported",
}
"""What shows a GPU of another maker that torch could compute on. Intel's show nothing: every laptop has one."""
SIGNS_OF_A_DRIVER = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg")
"""Linux's own, a container's, and Windows' below Linux."""
ANSWER_S = 180
"""Time for torch to be imported and every device to be opened."""
OURS = "claimbench.system.torch_devices"
THROTTLED = 0x8 | 0x20 | 0x40 | 0x80
"""Hardware slow-down, thermal (software, hardware), power brake."""


class Device(NamedTuple):
    """One that torch can use."""

    uuid: str
    """Without a prefix."""
    name: str
    memory_bytes: int


class Seen(NamedTuple):
    devices: tuple[Device, ...]
    why_none: str | None
    """Why there is none although there is a driver, in a few words."""


def seen() -> Seen:
    """What torch can use here. Where there is a driver, the first look takes seconds."""
    if not _has_driver():
        return Seen((), next((why for sign, why in OTHER_GPUS.items() if Path(sign).exists()), NO_DRIVER))
    visible = os.environ.get(VISIBLE)
    return Seen(_bound[visible], None) if visible in _bound else _seen(visible, sys.executable)


_bound: dict[str | None, tuple[Device, ...]] = {}
"""What this process made visible itself, which torch need not be asked about again."""


@contextmanager
def only(devices: Sequence[Device]) -> Iterator[None]:
    """Meanwhile this process, and all that it starts, uses these GPUs alone, in this order, named by their UUIDs.

    A UUID means the same card whatever `CUDA_DEVICE_ORDER`, a scheduler's own numbers or a container say. Where the
    driver does not know one of them, what was visible stays so.
    """
    with management() as nvml:
        names = [uuid_of(nvml, device) for device in devices]
    if not names or None in names:
        yield
        return
    before, value = os.environ.get(VISIBLE), ",".join(map(str, names))
    _bound[value] = tuple(devices)
    os.environ[VISIBLE] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VISIBLE, None)
        else:
            os.environ[VISIBLE] = before


def alike() -> tuple[Device, ...]:
    """Those of the same kind as the first one: what is measured on one of them holds for the others."""
    devices, found = seen().devices, facts()
    return tuple(device for device, fact in zip(devices, found, strict=True) if fact == found[0])


@functools.cache
def _has_driver() -> bool:
    if any(Path(path).exists() for path in SIGNS_OF_A_DRIVER):
        return True
    with management() as nvml:
        return nvml is not None


@functools.cache
def _seen(visible: str | None, python: str) -> Seen:
    """By torch, which opens the devices: this process may have to fork later, and must not."""
    try:
        done = subprocess.run(
            [python, "-m", OURS], capture_output=True, encoding="utf-8", errors="replace", timeout=ANSWER_S, check=False
        )
        said = json.loads(done.stdout.strip().splitlines()[-1])
        return Seen(tuple(Device(**one) for one in said["devices"]), said["why_none"])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError, KeyError, TypeError) as error:
        return Seen((), f"torch could not be asked about GPUs ({type(error).__name__})")


def hide() -> None:
    """Keep this process, and all that it starts, from every GPU. To be called before torch has opened one."""
    os.environ[VISIBLE] = ""


@contextmanager
def management() -> Iterator[Any]:
    """NVML, or None where it does not answer."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the library raises its own types for "no library", "no driver" and "no permission"
        yield None
        return
    try:
        yield pynvml
    finally:
        with suppress(Exception):  # see above
            pynvml.nvmlShutdown()


def facts() -> list[Gpu]:
    """Of each device that torch can use, what a result depends on. The driver's limits are not asked for twice."""
    return [Gpu(**one) for one in _facts(seen().devices)]  # type: ignore[typeddict-item]


@functools.cache
def _facts(devices: tuple[Device, ...]) -> tuple[dict[str, Any], ...]:
    if not devices:
        return ()
    with management() as nvml:
        return tuple(_facts_of(nvml, device) for device in devices)


def _facts_of(nvml: Any, device: Device) -> dict[str, Any]:
    found: dict[str, Any] = {"name": device.name, "memory_bytes": device.memory_bytes}
    handle = handle_of(nvml, device)
    if handle is None:
        return found | dict.fromkeys(("driver", "cuda", "power_limit_mw", "ecc", "mig"))
    memory = query(nvml, "nvmlDeviceGetMemoryInfo", handle)
    ecc = query(nvml, "nvmlDeviceGetEccMode", handle)
    mig = query(nvml, "nvmlDeviceGetMigMode", handle)
    return found | {
        "memory_bytes": int(memory.total) if memory else device.memory_bytes,
        "driver": text(query(nvml, "nvmlSystemGetDriverVersion")),
        "cuda": query(nvml, "nvmlSystemGetCudaDriverVersion"),
        "power_limit_mw": query(nvml, "nvmlDeviceGetPowerManagementLimit", handle),
        "ecc": bool(ecc[0]) if ecc else None,
        "mig": bool(mig[0]) if mig else None,
    }


def handle_of(nvml: Any, device: Device) -> Any:
    """NVML's handle of a device that torch names, a MIG slice or a whole one; None where it knows it not."""
    name = uuid_of(nvml, device)
    return None if name is None else query(nvml, "nvmlDeviceGetHandleByUUID", name)


def uuid_of(nvml: Any, device: Device) -> str | None:
    """Its UUID as the driver and `CUDA_VISIBLE_DEVICES` write it; None where the driver knows it not."""
    names = [] if nvml is None else [f"{prefix}{device.uuid}" for prefix in ("MIG-", "GPU-")]
    known = (name for name in names if query(nvml, "nvmlDeviceGetHandleByUUID", name) is not None)
    return next(known, None)


def text(value: object) -> str | None:
    return None if value is None else value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def query(nvml: Any, call: str, *arguments: Any) -> Any:
    """An answer of NVML, or None for a question that this device does not support, or answers with nonsense."""
    with suppress(Exception):  # besides its own types: no such function, bytes that are no text
        return getattr(nvml, call)(*arguments)
    return None


def snapshot() -> GpuSnapshot | None:
    """Clocks, temperature, power, throttling and processes of the first device that torch uses; None without NVML."""
    devices = seen().devices
    with management() as nvml:
        handle = handle_of(nvml, devices[0]) if devices else None
        if handle is None:
            return None
        processes = query(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) or []
        return {
            "uuid": devices[0].uuid,
            "sm_mhz": query(nvml, "nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": query(nvml, "nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM),
            "celsius": query(nvml, "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
            "power_mw": query(nvml, "nvmlDeviceGetPowerUsage", handle),
            "throttle_reasons": query(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle),
            "energy_mj": query(nvml, "nvmlDeviceGetTotalEnergyConsumption", handle),
            "processes": len(processes),
            "pids": sorted(int(one.pid) for one in processes),
        }


def energy_mj(devices: int = 1) -> int | None:
    """The energy counters of the first `devices` GPUs, millijoules since the driver was loaded; None without them."""
    used = seen().devices[:devices]
    with management() as nvml:
        handles = [handle_of(nvml, device) for device in used]
        if len(handles) < devices or None in handles:
            return None
        values = [query(nvml, "nvmlDeviceGetTotalEnergyConsumption", handle) for handle in handles]
        known = [int(value) for value in values if isinstance(value, int)]
        return sum(known) if len(known) == devices else None
