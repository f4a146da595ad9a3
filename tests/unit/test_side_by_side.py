"""Several GPUs without one: who may time on which, what a job sees of them, and whether neighbours do harm."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from claimbench.analysis import validity
from claimbench.measuring.device_lock import device_lock
from claimbench.schema.cell import Cell, Checkpoint, Workload
from claimbench.schema.result import Key, Result, Sample
from claimbench.schema.round import TWIN, Arm, Round, Turns
from claimbench.system import gpus, machine, turns

GB = 1 << 30
FIRST = gpus.Device("aaaa-1111", "NVIDIA A100-SXM4-80GB", 80 * GB)
SECOND = gpus.Device("aaaa-2222", "NVIDIA A100-SXM4-80GB", 80 * GB)
T4 = gpus.Device("bbbb-3333", "Tesla T4", 15 * GB)
SLICE = gpus.Device("cccc-4444", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", 10 * GB)
KNOWN = {f"GPU-{one.uuid}": one for one in (FIRST, SECOND, T4)} | {f"MIG-{SLICE.uuid}": SLICE}


class Driver(ModuleType):
    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")

    def nvmlInit(self) -> None:
        pass

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> gpus.Device:
        if uuid not in KNOWN:
            raise self.NVMLError(uuid)
        return KNOWN[uuid]

    def nvmlDeviceGetMemoryInfo(self, handle: gpus.Device) -> Any:
        return SimpleNamespace(total=handle.memory_bytes)


def forget() -> None:
    for kept in (gpus._seen, gpus._facts, gpus._has_driver):
        kept.cache_clear()
    gpus._bound.clear()


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    monkeypatch.setenv(turns.VARIABLE, str(tmp_path))
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    forget()
    yield
    forget()


def has(monkeypatch: pytest.MonkeyPatch, *devices: gpus.Device) -> None:
    """What torch sees while nothing else is said."""
    forget()
    monkeypatch.setattr(gpus, "_seen", lambda *_: gpus.Seen(devices, None))
    monkeypatch.setattr(gpus._seen, "cache_clear", lambda: None, raising=False)


def visible() -> str | None:
    """What a process that is started now would inherit."""
    code = f"import os; print(os.environ.get({gpus.VISIBLE!r}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return None if said == "None" else said


@pytest.mark.parametrize("handed_out", [None, "0,1", "1,0", "GPU-aaaa", "7"])
def test_a_job_is_bound_to_its_gpus_by_uuid_whatever_a_scheduler_wrote(
    handed_out: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if handed_out is not None:
        monkeypatch.setenv(gpus.VISIBLE, handed_out)
    monkeypatch.setenv("SLURM_JOB_GPUS", "5")
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    has(monkeypatch, T4, FIRST, SECOND)
    for devices, expected in ((1, "GPU-bbbb-3333"), (2, "GPU-bbbb-3333,GPU-aaaa-1111")):
        with device_lock("cuda", devices) as beside:
            assert visible() == expected
            assert len(gpus.seen().devices) == devices
            assert beside() == {}
        assert visible() == handed_out
    has(monkeypatch, SLICE)
    with device_lock("cuda"):
        assert visible() == "MIG-cccc-4444"


def test_what_the_driver_does_not_know_stays_as_it_was_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "3")
    has(monkeypatch, gpus.Device("dddd-9999", "NVIDIA H100", 80 * GB))
    with device_lock("cuda"):
        assert visible() == "3"


def test_a_cell_of_the_cpu_is_bound_to_no_gpu_and_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "seen", lambda: pytest.fail("torch was asked"))
    with device_lock("cpu", side_by_side=True) as beside:
        assert (visible(), beside()) == (None, {})


def test_like_gpus_are_used_at_once_where_it_is_allowed_and_each_job_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has(monkeypatch, FIRST, T4, SECOND)
    with device_lock("cuda", side_by_side=True) as beside:
        assert visible() == "GPU-aaaa-1111"
        assert beside() == {"beside": 0.0}
        with monkeypatch.context() as another_job:
            another_job.delenv(gpus.VISIBLE)
            with device_lock("cuda", side_by_side=True) as other:
                assert visible() == "GPU-aaaa-2222", "the T4 is of another kind"
                assert (other(), beside()) == ({"beside": 1.0}, {"beside": 1.0})
        assert beside() == {"beside": 1.0}, "the most so far"


HOLDS = """
import sys
from claimbench.system import turns
with turns.alone(turns.of_machine(sys.argv[1]), "a test", shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(stack: ExitStack, name: str, how: str = "alone") -> subprocess.Popen[str]:
    started = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", HOLDS, name, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "held\n"
    return started


def waits(side_by_side: bool, devices: int = 1) -> tuple[threading.Thread, threading.Event]:
    got = threading.Event()

    def run() -> None:
        with device_lock("cuda", devices, side_by_side=side_by_side):
            got.set()

    thread = threading.Thread(target=run)
    thread.start()
    return thread, got


@pytest.mark.parametrize("freed", [0, 1])
def test_where_all_are_held_the_next_to_become_free_is_taken(
    freed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever waits for a certain one waits for an hour beside another that has long been free."""
    places = [tmp_path / "first", tmp_path / "second"]
    with ExitStack() as held:
        each = [held.enter_context(ExitStack()) for _ in places]
        for stack, place in zip(each, places, strict=True):
            stack.enter_context(turns.alone(place, "a test"))
        monkeypatch.setattr(turns.time, "sleep", lambda _: each[freed].close())
        with turns.first_free(places, "a measurement on each") as which:
            assert which == freed
            assert [turns.is_held(place) for place in places] == [True, True]
        assert turns.is_held(places[1 - freed])
        assert not turns.is_held(places[freed])
    said = capfd.readouterr().err
    assert said.count("waiting for a measurement on each") == 1
    assert said.count(f"process {os.getpid()} of ") == 2, "it says for whom"


@pytest.mark.parametrize(
    ("held", "how", "side_by_side", "devices", "goes_on"),
    [
        ("cuda", "alone", False, 1, False),  # as ever: one at a time
        ("cuda", "alone", True, 1, False),  # a job that wants no neighbours has none
        ("cuda", "shared", True, 1, True),
        ("cuda", "shared", False, 1, False),  # and waits for those that are there
        ("cuda", "shared", True, 2, False),  # one that needs two GPUs has the machine
        ("gpu-aaaa-1111", "alone", True, 1, True),  # on the other one
    ],
)
def test_who_waits_for_whom(
    held: str, how: str, side_by_side: bool, devices: int, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, FIRST, SECOND)
    with ExitStack() as stack:
        other = holder(stack, held, how)
        thread, got = waits(side_by_side, devices)
        assert got.wait(10 if goes_on else 0.5) == goes_on
        other.communicate("")
        thread.join(20)
        assert got.is_set()


def test_one_gpu_of_its_kind_has_no_side(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, FIRST, T4)
    with ExitStack() as stack:
        other = holder(stack, "cuda", "shared")
        thread, got = waits(side_by_side=True)
        assert not got.wait(0.5)
        other.communicate("")
        thread.join(20)
        assert got.is_set()


def test_keys_are_of_the_kind_of_gpu_and_not_of_how_many_were_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(*devices: gpus.Device) -> str:
        has(monkeypatch, *devices)
        return machine.identify()["key"]

    assert key(FIRST) == key(SECOND) == key(FIRST, SECOND)
    kinds = {key(FIRST), key(T4), key(SLICE), key(FIRST, T4), key(T4, FIRST)}
    assert len(kinds) == 5, "two unlike cards never share a result"


CELL = Cell(
    checkpoint=Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama"),
    backend="null_model",
    workload=Workload(prompt="Hello", new_tokens=1),
    device="cuda",
)


def arm(name: str, milliseconds: list[float]) -> Arm:
    samples = tuple(
        Sample(step_ns=(int(ms * 1e6),), step_tokens=(1,), wall_ns=int(ms * 1e6), tokens_sha256="0" * 64)
        for ms in milliseconds
    )
    key = Key(code="c", libraries={}, outside={}, lacking=None, machine="m", series=0)
    record = Result(
        cell=CELL,
        block=0,
        key=key,
        started_at="2026-01-01T00:00:00+00:00",
        duration_s=1.0,
        outcome="ok",
        samples=samples,
    )
    sat = tuple(Turns(number=n, places=(0,), begun_ns=0, ended_ns=1, samples=1) for n in range(len(samples)))
    return Arm(name=name, result=record, turns=sat)


@pytest.mark.parametrize(
    ("beside", "again", "weight"),
    [
        (1.0, [10.05, 9.95, 10.0], 1.0),
        (1.0, [10.3, 10.3, 10.3], 0.5),
        (1.0, [9.7, 9.7, 9.7], 0.5),
        (1.0, [11.0, 11.0, 11.0], 0.0),
        (0.0, [11.0, 11.0, 11.0], 1.0),  # it had no neighbours to blame
    ],
)
def test_a_round_beside_others_counts_as_far_as_a_cell_equals_itself(
    beside: float, again: list[float], weight: float
) -> None:
    base, twin = arm("base", [10.0, 10.0, 10.0]), arm(TWIN, again)
    record = Round(
        started_at="2026-01-01T00:00:00+00:00",
        duration_s=1.0,
        seed=0,
        passes=3,
        arms=(base, twin),
        conditions={"beside": beside},
    )
    assert validity.weight(validity.of_round(record)) == weight
    assert validity.was_disturbed_beside(record) == (weight < 1)
    alone = record.model_copy(update={"conditions": {}})
    assert validity.weight(validity.of_round(alone)) == 1


def test_another_power_limit_driver_or_mode_of_memory_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same card at 250 W is slower than at 400 W, and with ECC reads less in a second."""
    usual: dict[str, Any] = {
        "nvmlDeviceGetPowerManagementLimit": 400_000,
        "nvmlSystemGetDriverVersion": "570.1",
        "nvmlSystemGetCudaDriverVersion": 12080,
        "nvmlDeviceGetEccMode": (1, 1),
    }
    others = {
        "nvmlDeviceGetPowerManagementLimit": 250_000,
        "nvmlSystemGetDriverVersion": "580.2",
        "nvmlSystemGetCudaDriverVersion": 13000,
        "nvmlDeviceGetEccMode": (0, 0),
    }
    keys = []
    for answers in (usual, *(usual | {name: other} for name, other in others.items())):
        for name, answer in answers.items():
            monkeypatch.setattr(Driver, name, lambda *_, answer=answer: answer, raising=False)
        has(monkeypatch, FIRST)
        keys.append(machine.identify()["key"])
    assert len(set(keys)) == len(keys)


def round_of(*arms: Arm, **conditions: float) -> Round:
    return Round(
        started_at="2026-01-01T00:00:00+00:00", duration_s=1.0, seed=0, passes=3, arms=arms, conditions=conditions
    )


def test_the_twin_is_compared_with_its_own_cell_and_with_no_other() -> None:
    other = arm("other", [20.0, 20.0, 20.0])
    longer = other.result.cell.model_copy(update={"workload": Workload(prompt="Other", new_tokens=1)})
    other = other.model_copy(update={"result": other.result.model_copy(update={"cell": longer})})
    base, twin = arm("base", [10.0, 10.0, 10.0]), arm(TWIN, [10.1, 10.1, 10.1])
    for arms in ((other, base, twin), (twin, other, base), (base, twin, other)):
        assert validity.of_round(round_of(*arms, beside=1.0))["beside_gap"] == pytest.approx(0.01)
    assert "beside_gap" not in validity.of_round(round_of(base, other, beside=1.0))
    assert "beside_gap" not in validity.of_round(round_of(other, twin, beside=1.0))


def test_a_first_pass_that_takes_longer_is_said_where_three_passes_tell() -> None:
    slow, usual = arm("slow", [15.0, 10.0, 10.0]), arm("usual", [10.5, 10.0, 10.0])
    assert validity.of_round(round_of(slow))["first_pass"] == pytest.approx(0.5)
    assert validity.of_round(round_of(slow, usual))["first_pass"] == pytest.approx(0.275)
    assert "first_pass" not in validity.of_round(round_of(arm("two", [15.0, 10.0])))


def test_what_all_arms_took_while_they_waited_is_one_condition() -> None:
    arms = [arm(name, [10.0]).model_copy(update={"waiting_cpu": share}) for name, share in (("a", 0.1), ("b", 0.2))]
    assert validity.of_round(round_of(*arms, steal=0.1)) == {"steal": 0.1, "waiting_cpu": pytest.approx(0.3)}
