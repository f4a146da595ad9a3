"""What only informs and cannot be read is absent with its reason: no block, round, plan or report ends for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import psutil
import pytest
from tests.faults.test_blocks import cell_with
from tests.faults.test_checkpoints import RANDOM
from tests.faults.test_rounds import arm

from claimbench.checkpoints.shard import shard
from claimbench.measuring import measure, worker
from claimbench.measuring.round_process import RoundRequest
from claimbench.planning.result_key import key_of
from claimbench.schema import result
from claimbench.schema.round import Round
from claimbench.system import gpus, machine, memory, page_cache, processes
from claimbench.system.unread import Readings

HARDENED = """
import builtins, io, os, re
HIDDEN = re.compile(r"/proc/(?!self/fd|self/oom)|/sys/")
ALLOWED = set()

def refusing(real):
    def open(file, *arguments, **settings):
        if isinstance(file, (str, bytes, os.PathLike)) and HIDDEN.match(os.fsdecode(file)):
            with real(os.environ["SEEN"], "a") as seen:
                seen.write(os.fsdecode(file) + "\\n")
            if os.environ["HOW"] == "missing":
                raise FileNotFoundError(2, "No such file or directory", os.fsdecode(file))
            if os.environ["HOW"] == "denied":
                raise PermissionError(13, "Permission denied", os.fsdecode(file))
            file = os.environ["GARBAGE"]
        return real(file, *arguments, **settings)
    return open

builtins.open = refusing(builtins.open)
io.open = refusing(io.open)
"""
"""A sitecustomize for every process that is started: /proc and /sys are hidden, or full of nonsense."""


@pytest.fixture(params=["missing", "denied", "garbage"])
def hardened(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    (folder := tmp_path / "site").mkdir()
    (folder / "sitecustomize.py").write_text(HARDENED)
    (tmp_path / "garbage").write_bytes(b"\xff\xfe -1 x: y\n\x00cpu cpu cpu\n: :\n")
    paths = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    told = {"HOW": request.param, "GARBAGE": str(tmp_path / "garbage"), "SEEN": str(tmp_path / "seen")}
    return {**os.environ, **told, "PYTHONPATH": paths}


def run(environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "claimbench", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_block_ends_well_where_proc_and_sys_are_hidden_or_nonsense(hardened: dict[str, str], tmp_path: Path) -> None:
    run(hardened, "machine", "--output", str(tmp_path / "machine.json"))
    described = json.loads((tmp_path / "machine.json").read_text())
    assert described["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert described["memory_gb"] > 0, "the C library knows it"
    cell = cell_with(step_ms=150)
    key = key_of(cell, described["key"]).model_dump_json()
    files = ["--plan", str(tmp_path / "none.json"), "--output", str(tmp_path / "0.json")]
    run(hardened, "measure", "--cell", cell.model_dump_json(), "--key", key, "--block", "0", *files)
    record = result.read(tmp_path / "0.json")
    assert (record.outcome, record.reason) == ("ok", None), record.detail
    assert "foreign_cpu" not in record.conditions
    assert record.telemetry["unread"].keys() >= {"busy"}
    assert all(": " in reason for reason in record.telemetry["unread"].values())
    seen = (tmp_path / "seen").read_text()
    assert "/proc/stat" in seen
    assert "/proc/self/mountinfo" in seen


def test_a_round_ends_well_there_too_and_an_arm_that_hangs_is_ended(hardened: dict[str, str], tmp_path: Path) -> None:
    hung = arm("hang", fails="hang", protocol={"timeout_s": 2})
    asked = RoundRequest(arms=(arm("base", step_ms=40), arm("twin", step_ms=40), hung), passes=3, seed=0)
    done = subprocess.run(
        [sys.executable, "-m", "claimbench.measuring.round_process"],
        env=hardened,
        input=asked.model_dump_json() + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = Round.model_validate_json(done.stdout)
    assert {one.name: one.result.outcome for one in record.arms} == {"base": "ok", "twin": "ok", "hang": "timeout"}
    assert "foreign_cpu" not in record.conditions
    assert record.arms[0].result.telemetry["unread"].keys() >= {"busy"}


def broken(*_: Any, **__: Any) -> NoReturn:
    raise psutil.AccessDenied(1, "init")


def nonsense(*_: Any, **__: Any) -> Any:
    return SimpleNamespace(current="fast", percent=None)


@pytest.mark.parametrize("fails", [broken, nonsense])
@pytest.mark.parametrize(
    ("name", "module", "function"),
    [
        ("cpu_mhz", psutil, "cpu_freq"),
        ("available_memory_bytes", machine, "available_bytes"),
        ("load_average", os, "getloadavg"),
        ("gpu", gpus, "snapshot"),
    ],
)
def test_each_figure_of_a_snapshot_is_absent_alone(
    name: str, module: Any, function: str, fails: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = machine.telemetry("cuda")
    monkeypatch.setattr(module, function, fails)
    found = machine.telemetry("cuda")
    if fails is broken:
        assert name not in found
        assert found["unread"][name].startswith("AccessDenied")
    assert found.keys() >= whole.keys() - {name}


def test_what_is_unread_is_said_in_one_short_line() -> None:
    readings = Readings()

    def look() -> NoReturn:
        raise ValueError("\n first\nsecond" + "x" * 999)

    assert readings.read("a", look) is None
    assert readings.read("b", lambda: 1 // 0) is None
    assert readings.read("c", lambda: 0) == 0
    assert readings.unread == {"a": "ValueError: first", "b": "ZeroDivisionError: integer division or modulo by zero"}


@pytest.mark.parametrize("missing", ["own", "busy"])
def test_neighbours_are_unknown_where_one_of_their_figures_is(missing: str) -> None:
    plain: machine.CpuTicks = {"busy": 1.0, "steal": 0.0, "own": 1.0, "unread": {}}
    later: machine.CpuTicks = {"busy": 9.0, "steal": 0.0, "own": 2.0, "unread": {}}
    assert worker.neighbours(plain, later, 1.0)["foreign_cpu"] > 0
    unread: machine.CpuTicks = {**later, "unread": {missing: "PermissionError"}}
    assert worker.neighbours(plain, unread, 1.0) == worker.neighbours(unread, plain, 1.0) == {}


def test_a_page_cache_that_is_not_told_leaves_the_block_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(RANDOM, tmp_path / "fetched", tmp_path / "tiny")
    cell = cell_with(step_ms=1)

    def refuse(*_: Any) -> NoReturn:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(page_cache, "cached", refuse)
    facts = measure._checkpoint_facts(cell, tmp_path / "tiny", None)
    assert "outcome" not in facts
    assert facts["telemetry"] == {"unread": {"checkpoint": "OSError: [Errno 95] Operation not supported"}}
    cold = cell.model_copy(update={"protocol": cell.protocol.model_copy(update={"page_cache": "cold"})})
    facts = measure._checkpoint_facts(cold, tmp_path / "tiny", None)
    assert (facts["outcome"], "Operation not supported" in str(facts["reason"])) == ("unavailable", True)


class Driver:
    """NVML as it answers where it should not: wrong types, errors of other kinds, and one when it is left."""

    NVML_CLOCK_SM = NVML_CLOCK_MEM = NVML_TEMPERATURE_GPU = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def answer(*_: Any) -> Any:
            if name == "nvmlDeviceGetHandleByUUID":
                return object()
            if name == "nvmlSystemGetDriverVersion":
                return b"\xff550"
            if name in ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetClockInfo"):
                return "N/A"
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, f"{name} answers with nonsense")

        return answer


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    found = Driver()
    monkeypatch.setattr(found, "nvmlInit", lambda: None, raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", found)
    device = gpus.Device("0", "a GPU", 1 << 30)
    monkeypatch.setattr(gpus, "seen", lambda: gpus.Seen((device,), None))
    gpus._facts.cache_clear()
    yield
    gpus._facts.cache_clear()


def test_a_driver_that_answers_with_nonsense_ends_nothing(driver: None) -> None:
    (facts,) = gpus.facts()
    assert (facts["name"], facts["memory_bytes"], facts["ecc"]) == ("a GPU", 1 << 30, None)
    assert gpus.energy_mj() is None
    found = machine.telemetry("cuda")["gpu"]
    assert found["celsius"] is None
    assert found["pids"] == []


def test_memory_and_ends_of_processes_do_not_hang_on_what_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "memory_info", broken)
    assert memory.resident() == 0
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = psutil.Process(child.pid)
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "kill", broken)
        processes.kill_all([other])
    processes.kill_all([other])
    assert child.wait(timeout=20) == -9
