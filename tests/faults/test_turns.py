"""Runs that meet wait for one another and say for whom: for a device, whoever they are, and for a checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from claimbench.checkpoints import fetch, manifest
from claimbench.checkpoints.shard import shard
from claimbench.errors import ClaimbenchError
from claimbench.measuring.device_lock import device_lock
from claimbench.schema.cell import Checkpoint
from claimbench.system import turns

TINY = Checkpoint(name="tiny", source="random://tiny-llama?seed=0", architecture="tiny-llama")
HOLDING = """
import sys, time
from claimbench.measuring.device_lock import device_lock
with device_lock("cpu"):
    print("held", flush=True)
    sys.stdin.readline()
    print(time.monotonic_ns(), flush=True)
"""
SHARDING = """
import sys
from pathlib import Path
from claimbench.checkpoints.shard import shard
from claimbench.schema.cell import Checkpoint
shard(Checkpoint.model_validate_json(sys.argv[1]), Path("fetched/x"), Path("checkpoints/x"), 100_000)
"""


def holder(**environment: str) -> subprocess.Popen[str]:
    """A process that holds the CPU's lock until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=30)


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder := tmp_path / "locks").mkdir()
    monkeypatch.setenv(turns.VARIABLE, str(folder))
    return folder


def test_a_measurement_under_another_tmpdir_is_waited_for_by_name(tmp_path: Path, capfd) -> None:
    (tmp_path / "elsewhere").mkdir()
    process = holder(TMPDIR=str(tmp_path / "elsewhere"))
    subprocess.Popen(["sh", "-c", f"sleep 1; echo > /proc/{process.pid}/fd/0"])  # its line comes after a second
    begun = time.monotonic()
    with device_lock("cpu"):
        waited_s = time.monotonic() - begun
    process.communicate(timeout=30)
    assert waited_s > 0.5
    err = capfd.readouterr().err
    assert f"claimbench: waiting for another measurement on cpu, which process {process.pid} of " in err
    assert err.count("waiting for") == 1


def test_a_lock_whose_holder_was_killed_is_free(capfd) -> None:
    process = holder()
    process.kill()
    process.wait()
    with device_lock("cpu"):
        pass
    assert "waiting" not in capfd.readouterr().err


def test_the_device_of_every_user_is_one_whatever_tmpdir_and_umask(monkeypatch, locks: Path, tmp_path: Path) -> None:
    monkeypatch.delenv(turns.VARIABLE)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert turns.of_machine("cpu") == turns.EVERYONE / "claimbench-cpu.lock"
    before = os.umask(0o077)
    try:
        with turns.alone(locks / "made.lock", "nothing"):
            pass
    finally:
        os.umask(before)
    assert (locks / "made.lock").stat().st_mode & 0o777 == 0o666


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_the_lock_of_another_user_is_waited_for_in_a_sticky_folder(locks: Path, tmp_path: Path) -> None:
    """The kernel lets nobody create over another's file there (fs.protected_regular)."""
    for folder in (*tmp_path.parents[:3], tmp_path, locks):
        folder.chmod(0o1777 if folder == locks else 0o755)
    with turns.alone(locks / "a.lock", "nothing"):
        child = os.fork()
        if child == 0:  # another user
            os.setgid(65534)
            os.setuid(65534)
            handle = turns._opened(locks / "a.lock")
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize("thing", ["a FIFO", "a folder", "a link"])
def test_what_is_no_lock_is_told_of(thing: str, locks: Path) -> None:
    path = locks / "a.lock"
    {"a FIFO": os.mkfifo, "a folder": os.mkdir, "a link": lambda where: where.symlink_to("/etc/passwd")}[thing](path)
    with (
        pytest.raises(ClaimbenchError, match=r"a\.lock: (expected a lock|the lock cannot be opened)"),
        turns.alone(path, "nothing"),
    ):
        pass


def test_two_that_shard_into_one_fresh_folder_both_end_well_and_leave_one_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHARDING, TINY.model_dump_json()]
    both = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], said
    assert manifest.verify(tmp_path / "checkpoints/x").weight_files
    assert fetch.read(tmp_path / "fetched/x").source == TINY.source


def test_who_waited_for_a_checkpoint_leaves_the_files_that_are_in_use(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("checkpoints/x")
    folder.parent.mkdir()
    command = [sys.executable, "-c", SHARDING, TINY.model_dump_json()]
    with turns.alone(fetch.lock_of(folder), "tiny to be written"):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        line = process.stderr.readline()
        shard_without_waiting(folder)
        before = {path.name: path.stat().st_ino for path in folder.glob("[!.]*")}
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert line.startswith(f"claimbench: waiting for tiny to be written, which process {os.getpid()} of ")
    assert {path.name: path.stat().st_ino for path in folder.glob("[!.]*")} == before


def shard_without_waiting(folder: Path) -> None:
    made = folder.with_name("made")
    shard(TINY, Path("fetched/x"), made, 100_000)
    made.rename(folder)
