"""GPUs without one: a management library that answers for two unlike cards and a slice, and a torch that sees some."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from claimbench.analysis import validity
from claimbench.errors import ConfigError
from claimbench.measuring.worker import Energy
from claimbench.schema.cell import Cell, Checkpoint, Workload
from claimbench.system import gpu_watch, gpus, machine, memory, torch_devices

GB = 1 << 30
A100 = gpus.Device("aaaa-1111", "NVIDIA A100-SXM4-80GB", 80 * GB)
T4 = gpus.Device("bbbb-2222", "Tesla T4", 15 * GB)
SLICE = gpus.Device("cccc-3333", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", 10 * GB)
HANDLES = {"GPU-aaaa-1111": "a100", "GPU-bbbb-2222": "t4", "MIG-cccc-3333": "slice"}
ENERGY = {"a100": 5_000_000, "t4": 70_000}


class Driver(ModuleType):
    """As pynvml is, of a machine whose cards the driver lists in another order than torch does."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.opened = 0
        self.pids = [10, 11, 99]

    def nvmlInit(self) -> None:
        self.opened += 1

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in HANDLES:
            raise self.NVMLError(uuid)
        return HANDLES[uuid]

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(total={"a100": 80, "t4": 15, "slice": 10}[handle] * GB)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if handle not in ENERGY:
            raise self.NVMLError("a slice has no counter")
        return ENERGY[handle]

    def nvmlDeviceGetClockInfo(self, handle: str, which: int) -> int:
        return {"a100": 1410, "t4": 1590, "slice": 1410}[handle] * which

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return [SimpleNamespace(pid=pid) for pid in self.pids]

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.82.07"


def forget() -> None:
    for kept in (gpus._seen, gpus._facts, gpus._has_driver):
        kept.cache_clear()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", found)
    forget()
    yield found  # type: ignore[misc]
    forget()


See = Callable[..., None]


@pytest.fixture
def see(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> See:
    """What torch says that it can use."""

    def said(*devices: gpus.Device, why_none: str | None = None) -> None:
        line = json.dumps({"devices": [one._asdict() for one in devices], "why_none": why_none})
        done = subprocess.CompletedProcess([], 0, stdout=f"a library's own words\n{line}\n")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
        forget()

    return said


def test_the_card_that_torch_was_left_is_the_one_that_is_named_keyed_and_read(see: See) -> None:
    keys = []
    for seen in ((A100,), (T4,), (T4, A100), (SLICE,)):
        see(*seen)
        here = machine.identify()
        assert [one["name"] for one in here["gpus"]] == [one.name for one in seen]
        assert [one["memory_bytes"] for one in here["gpus"]] == [one.memory_bytes for one in seen]
        keys.append(here["key"])
    assert len(set(keys)) == 4, "results of one are never taken for those of another"
    see(T4, A100)
    assert (gpus.energy_mj(), gpus.energy_mj(2), gpus.energy_mj(3)) == (70_000, 5_070_000, None)
    snapshot = gpus.snapshot()
    assert snapshot is not None
    assert (snapshot["sm_mhz"], snapshot["pids"], snapshot["celsius"]) == (1590, [10, 11, 99], None)
    see(SLICE)
    assert gpus.energy_mj() is None


def test_a_card_that_torch_cannot_use_is_no_gpu_and_the_reason_is_said(
    see: See, caplog: pytest.LogCaptureFixture
) -> None:
    see(why_none="torch 2.13.0+cpu is built for the CPU alone")
    here = machine.identify()
    assert here["gpus"] == []
    assert machine.resolve_device("auto", here) == "cpu"
    (warning,) = caplog.messages
    assert "the CPU, since torch 2.13.0+cpu is built for the CPU alone although an NVIDIA driver is here" in warning
    with pytest.raises(ConfigError, match=r"asked for cuda, but torch 2\.13\.0\+cpu is built for the CPU alone"):
        machine.resolve_device("cuda", here)


def test_a_card_that_the_driver_says_nothing_of_is_still_a_gpu(
    see: See, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise driver.NVMLError("no permission")

    monkeypatch.setattr(driver, "nvmlInit", refuse)
    see(T4)
    monkeypatch.setattr(gpus, "SIGNS_OF_A_DRIVER", ("/proc",))
    (found,) = machine.identify()["gpus"]
    assert (found["name"], found["memory_bytes"], found["driver"]) == (T4.name, T4.memory_bytes, None)
    assert machine.resolve_device("auto", machine.identify()) == "cuda"
    assert (gpus.snapshot(), gpus.energy_mj()) == (None, None)


def test_a_plan_asks_torch_once_and_opens_the_driver_s_library_twice_at_most(
    see: See, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(A100, T4)
    asked: list[int] = []
    answer = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: asked.append(1) or answer(*a, **k))  # type: ignore[func-returns-value]
    assert len({machine.identify()["key"] for _ in range(25)}) == 1
    assert (len(asked), driver.opened) == (1, 2)


def test_without_a_driver_nobody_is_asked(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise driver.NVMLError("no driver")

    monkeypatch.setattr(driver, "nvmlInit", refuse)
    monkeypatch.setattr(gpus, "SIGNS_OF_A_DRIVER", ())
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("torch was asked"))
    forget()
    assert machine.resolve_device("auto", machine.identify()) == "cpu"
    assert not caplog.messages, "nothing is amiss"
    with pytest.raises(ConfigError, match="asked for cuda, but no NVIDIA driver answers here: use cpu or auto"):
        machine.resolve_device("cuda", machine.identify())


def test_another_makers_gpu_is_named_and_its_users_are_told_what_is_supported(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def refuse() -> None:
        raise driver.NVMLError("no driver")

    monkeypatch.setattr(driver, "nvmlInit", refuse)
    monkeypatch.setattr(gpus, "SIGNS_OF_A_DRIVER", ())
    monkeypatch.setattr(gpus, "OTHER_GPUS", {str(tmp_path): "the GPU here is AMD's, and only NVIDIA's are supported"})
    forget()
    assert machine.resolve_device("auto", machine.identify()) == "cpu"
    assert caplog.messages == ["device: auto: the CPU, since the GPU here is AMD's, and only NVIDIA's are supported"]
    with pytest.raises(ConfigError, match="asked for cuda, but the GPU here is AMD's, and only NVIDIA's are supported"):
        machine.resolve_device("cuda", machine.identify())


@pytest.mark.parametrize("said", ["", "no json", '{"devices": [{"uuid": "x"}], "why_none": null}'])
def test_an_answer_that_is_none_means_no_gpu_and_says_so(
    said: str, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, stdout=said))
    assert "torch could not be asked about GPUs" in str(gpus.seen().why_none)


def test_torch_says_what_it_is_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    assert torch_devices.listed()["why_none"] == f"torch {torch.__version__} is built for the CPU alone"
    monkeypatch.setattr(torch.version, "hip", "6.4", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "AMD's ROCm, and only NVIDIA's GPUs are supported" in torch_devices.listed()["why_none"]
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    monkeypatch.setattr(torch.version, "xpu", "20250301", raising=False)
    assert "Intel's GPUs, and only NVIDIA's GPUs are supported" in torch_devices.listed()["why_none"]
    monkeypatch.setattr(torch.version, "xpu", None, raising=False)
    with monkeypatch.context() as apple:
        apple.setattr(torch.backends.mps, "is_built", lambda: True)
        assert "Apple's GPUs, and only NVIDIA's GPUs are supported" in torch_devices.listed()["why_none"]
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def fail() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\nand more")

    monkeypatch.setattr(torch.cuda, "init", fail)
    assert torch_devices.listed()["why_none"] == "torch cannot use one: The NVIDIA driver on your system is too old"
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    card = SimpleNamespace(uuid="aaaa-1111", name="NVIDIA A100", total_memory=80 * GB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    assert torch_devices.listed()["devices"] == [{"uuid": "aaaa-1111", "name": "NVIDIA A100", "memory_bytes": 80 * GB}]


WORKER = """
import os, sys
from claimbench.measuring import worker
worker.run_block = lambda request, say: say("env", visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
sys.exit(worker.main())
"""


@pytest.mark.parametrize(("device", "visible"), [("cpu", ""), ("cuda", "0,1")])
def test_a_cell_of_the_cpu_sees_no_gpu(device: str, visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    cell = Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama"),
        backend="null_model",
        workload=Workload(prompt="Hello", new_tokens=4),
        device=device,  # type: ignore[arg-type]
    )
    asked = json.dumps({"cell": cell.model_dump(mode="json")})
    done = subprocess.run([sys.executable, "-c", WORKER], input=asked, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"event": "env", "visible": visible}


def look(**changed: Any) -> Any:
    return {"sm_mhz": 1410, "celsius": 50, "throttle_reasons": 0, "pids": [10]} | changed


def test_looks_at_a_gpu_come_to_what_the_rules_are_about() -> None:
    looks = [look(), look(throttle_reasons=0x40 | 1, sm_mhz=900), look(pids=[10, 11, 99, 98], celsius=None)]
    seen = gpu_watch.summed(looks, own=[10, 11])
    assert seen == {
        **{"looks": 3, "throttled": 1, "foreign_gpu": 2},
        **{"sm_mhz_least": 900, "sm_mhz_most": 1410, "celsius_most": 50},
    }
    assert validity.sentences(dict(seen)) == [  # type: ignore[arg-type]
        "the GPU throttled its clocks (seen 1 times)",
        "other processes had the GPU open (2 of them)",
    ]
    assert "foreign_gpu" not in gpu_watch.summed([look(pids=[70_001])], own=[10]), "a container's numbers are others"
    assert gpu_watch.summed([look(sm_mhz=None, pids=None, throttle_reasons=None)], own=[10])["throttled"] == 0


def test_a_watch_that_finds_no_driver_has_seen_nothing_and_leaves_no_process() -> None:
    watch = gpu_watch.GpuWatch([1])
    assert watch.end() == {}
    assert watch._process.poll() is not None


class FakeCuda:
    """Of a process that has tensors on the second of two GPUs."""

    def __init__(self) -> None:
        self.peak = {0: 0, 1: 7 * GB}
        self.reset: list[int] = []

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def reset_peak_memory_stats(self, device: int) -> None:
        self.reset.append(device)

    def max_memory_reserved(self, device: int) -> int:
        return self.peak[device]

    max_memory_allocated = max_memory_reserved

    def mem_get_info(self, device: int) -> tuple[int, int]:
        return (70 * GB, 80 * GB)


def test_peaks_are_those_of_all_gpus_that_a_process_uses_since_it_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    cuda = FakeCuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    memory.reset_peak()
    assert cuda.reset == [0, 1]
    found = memory.peaks("cuda")
    assert (found["device_allocated_peak"], found["device_used"]) == (7 * GB, 10 * GB)
    cuda.peak[0] = 3 * GB
    assert memory.peaks("cuda")["device_reserved_peak"] == 10 * GB
    cuda.peak = {0: 0, 1: 0}
    assert set(memory.peaks("cuda")) == {"rss_peak"}, "a server's client holds nothing there"


def cell_on(device: str) -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama"),
        backend="null_model",
        options={"devices": 2},
        workload=Workload(prompt="Hello", new_tokens=4),
        device=device,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("readings", "spent"),
    [([100, 150, 300, 310], 60), ([100, 150, 300, None], None), ([None, 150, 300, 310], None)],
)
def test_energy_is_that_of_a_cell_s_own_turns(
    readings: list[int | None], spent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others took while it stood still is not its own; a counter that is silent once leaves nothing to tell."""
    left, asked = iter(readings), list[int]()

    def read(devices: int) -> int | None:
        asked.append(devices)
        return next(left)

    monkeypatch.setattr(gpus, "energy_mj", read)
    energy, said = Energy(cell_on("cuda")), list[Any]()
    for _ in range(2):
        energy.resume()
        energy.pause()
    energy.tell(lambda event, **more: said.append((event, more)))
    assert said == ([("energy", {"energy_mj": spent})] if spent is not None else [])
    assert asked == [2] * 4, "of all of its devices"


def test_a_cell_of_the_cpu_asks_for_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "energy_mj", lambda _: pytest.fail("asked"))
    energy = Energy(cell_on("cpu"))
    energy.resume()
    energy.pause()
    energy.tell(lambda *_, **__: pytest.fail("told"))
