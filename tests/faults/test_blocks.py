"""Whatever happens to a block, it ends in one recorded outcome with a reason, within its deadline."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from claimbench.errors import ResultError
from claimbench.measuring.measure import measure
from claimbench.planning.result_key import key_of
from claimbench.schema import result
from claimbench.schema.cell import Cell, Checkpoint, Protocol, Workload
from claimbench.system import machine


def cell_with(protocol: dict[str, Any] | None = None, batch: int = 1, **options: Any) -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama?seed=0", architecture="tiny-llama"),
        backend="null_model",
        options=options,
        workload=Workload(prompt="Hello", new_tokens=4, batch=batch),
        device="cpu",
        protocol=Protocol(**{"samples": 2, "warmup_max": 1, "timeout_s": 60, **(protocol or {})}),
    )


def run(cell: Cell, output: Path, **more: Any) -> result.Result:
    record = measure(cell, 0, key_of(cell, "test-machine"), output, checkpoint=None, **more)
    assert result.read(output) == record
    return record


def started_under(mark: Path) -> list[list[str]]:
    """Command lines of what lives of all that was started while CLAIMBENCH_TEST held `mark`, whoever its parent is."""
    return [
        process.info["cmdline"]
        for process in psutil.process_iter(["environ", "cmdline", "pid"])
        if (process.info["environ"] or {}).get("CLAIMBENCH_TEST") == str(mark) and process.info["pid"] != os.getpid()
    ]


@pytest.mark.parametrize(
    ("failure", "outcome", "reason"),
    [
        ("oom", "oom", "asked to run out of memory"),
        ("allocate", "oom", "MemoryError"),
        ("kill", "error", "killed by SIGKILL"),
        ("nan", "wrong", "NaN"),
        ("short", "wrong", "exactly 4 new tokens, got 1 rows of [3]"),
        ("unavailable", "unavailable", "asked to be unavailable"),
        ("unproven", "wrong", "something else"),
        ("error", "error", "RuntimeError: asked to fail"),
    ],
)
def test_a_failure_is_an_outcome_with_its_reason(tmp_path, failure, outcome, reason):
    record = run(cell_with(fails=failure), tmp_path / "0.json")
    assert record.outcome == outcome
    assert record.reason is not None
    assert reason in record.reason


@pytest.mark.parametrize(("call", "samples"), [(2, 1), (3, 2)])
def test_generations_of_one_block_that_differ_are_wrong(tmp_path, call, samples):
    """Also where the only other one is the warm-up."""
    record = run(cell_with({"samples": samples}, strays_call=call), tmp_path / "0.json")
    assert record.outcome == "wrong"
    assert record.reason == "generations of one block, warm-up included, differ in their tokens"


def test_a_hung_generation_ends_at_its_deadline_and_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAIMBENCH_TEST", str(tmp_path))
    started = time.monotonic()
    record = run(cell_with({"timeout_s": 3}, fails="hang"), tmp_path / "0.json")
    assert record.outcome == "timeout"
    assert record.reason == "over 3 s, during: first call"
    assert time.monotonic() - started < 30
    assert started_under(tmp_path) == []


def test_a_memory_limit_turns_a_large_allocation_into_oom(tmp_path):
    record = run(cell_with({"memory_limit": 2_000_000_000}, fails="allocate"), tmp_path / "0.json")
    assert record.outcome == "oom"


def test_the_last_lines_of_a_failed_worker_are_kept(tmp_path):
    record = run(cell_with(fails="error"), tmp_path / "0.json")
    assert record.detail is not None
    assert "Traceback" in record.detail


def test_a_batch_above_one_that_did_not_fit_is_not_tried(tmp_path):
    small, large = (cell_with(batch=batch, fits_batch=1) for batch in (2, 4))
    assert run(small, tmp_path / "small.json").outcome == "oom"
    record = run(large, tmp_path / "large.json", smaller=tmp_path / "small.json")
    assert record.outcome == "implied-oom"
    assert record.reason == "batch 2 of the same cell is already out of memory"


def test_a_result_that_is_there_is_kept_and_one_of_another_key_is_not(tmp_path):
    output, cell = tmp_path / "0.json", cell_with()
    run(cell, output)
    stamp = output.stat().st_mtime_ns
    run(cell, output)
    assert output.stat().st_mtime_ns == stamp
    measure(cell, 0, key_of(cell, "another-machine"), output, checkpoint=None)
    assert output.stat().st_mtime_ns != stamp


@pytest.mark.parametrize("change", ["number", "outcome", "cut", "not json"])
def test_an_edited_result_is_refused_with_the_file_named(tmp_path, change):
    output = tmp_path / "0.json"
    run(cell_with(), output)
    text = output.read_text(encoding="utf-8")
    envelope = json.loads(text)
    if change == "number":
        envelope["result"]["samples"][0]["wall_ns"] //= 2
    elif change == "outcome":
        envelope["result"]["outcome"] = "oom"
    edited = {"cut": text[: len(text) // 2], "not json": "hello"}.get(change, json.dumps(envelope))
    output.write_text(edited, encoding="utf-8")
    with pytest.raises(ResultError, match=str(output)):
        result.read(output)
    assert run(cell_with(), output).outcome == "ok"


def _command(tmp_path: Path, cell: Cell, output: str = "0.json", machine_key: str | None = None) -> list[str]:
    key = key_of(cell, machine_key or machine.identify()["key"]).model_dump_json()
    values = ["measure", "--cell", cell.model_dump_json(), "--key", key, "--block", "0"]
    files = ["--plan", str(tmp_path / "none.json"), "--output", str(tmp_path / output)]
    return [sys.executable, "-m", "claimbench", *values, *files]


def _start_measuring(tmp_path: Path, cell: Cell) -> subprocess.Popen[bytes]:
    return subprocess.Popen(_command(tmp_path, cell), stderr=subprocess.PIPE)


def _workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "claimbench.measuring.worker" in " ".join(child.cmdline())
        ]
        if workers:
            return workers
        time.sleep(0.05)
    raise AssertionError("no worker started")


def test_a_killed_supervisor_leaves_no_file_and_no_worker(tmp_path):
    process = _start_measuring(tmp_path, cell_with(fails="hang"))
    (worker,) = _workers_of(process)
    time.sleep(1.0)  # let the worker reach the point where it asks to die with its parent
    process.kill()
    process.wait()
    worker.wait(timeout=20)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_worker_is_an_outcome_of_a_command_that_succeeds(tmp_path):
    process = _start_measuring(tmp_path, cell_with(fails="hang"))
    (worker,) = _workers_of(process)
    os.kill(worker.pid, signal.SIGKILL)
    assert process.wait(timeout=30) == 0
    record = result.read(tmp_path / "0.json")
    assert record.outcome == "error"
    assert "killed by SIGKILL" in (record.reason or "")


@pytest.fixture
def small_memory():
    """A control group of 600 MB; yields the file that takes the ids of its processes."""
    for parent, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(parent) / "claimbench-test"
        try:
            group.mkdir(exist_ok=True)
            if (group / limit).exists():  # in a real control group the kernel makes it, nowhere else
                (group / limit).write_text("600000000", encoding="ascii")
                break
            group.rmdir()
        except OSError:
            continue
    else:
        pytest.skip("cannot make a control group with a memory limit here")
    yield group / "cgroup.procs"
    group.rmdir()


def test_a_kill_by_the_kernel_for_memory_is_oom(tmp_path, small_memory):
    def join() -> None:
        small_memory.write_text(str(os.getpid()), encoding="ascii")

    cell = cell_with(fails="eat")
    describe = [sys.executable, "-m", "claimbench", "machine", "--output", str(tmp_path / "machine.json")]
    subprocess.run(describe, check=True, preexec_fn=join)
    described = json.loads((tmp_path / "machine.json").read_text())
    assert described["memory_gb"] == 1, "what a plan that is made in there is for"
    command = _command(tmp_path, cell, machine_key=described["key"])
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=join)
    assert process.wait(timeout=60) == 0
    record = result.read(tmp_path / "0.json")
    assert (record.outcome, record.reason) == ("oom", "killed by the kernel for memory, during: first call")


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_is_one_message_and_leaves_no_half_file(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        _fill(disk / "filler")
        command = _command(tmp_path, cell_with(), "disk/deep/0.json")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("claimbench: ")
        assert "No space left on device" in last
        assert "Traceback" not in done.stderr
        assert [path.name for path in disk.rglob("*") if path.is_file()] == ["filler"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
