"""A cell of several processes ends in one recorded outcome that names the rank; no process is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.faults.test_blocks import _command, cell_with, run, started_under

from claimbench.backends import null_model
from claimbench.errors import ResultError
from claimbench.measuring import rank_protocol
from claimbench.schema import result
from claimbench.schema.cell import Cell
from claimbench.system import launchers


def ranks_with(count: int = 2, protocol: dict[str, Any] | None = None, **options: Any) -> Cell:
    return cell_with(protocol, devices=count, oversubscribe=True, **options)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(monkeypatch, tmp_path, tmp_path_factory):
    """Whatever was started inherits this variable, under whichever parent it ends up."""
    monkeypatch.setenv("CLAIMBENCH_TEST", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("locks")))  # these tests time nothing and wait for nobody
    monkeypatch.setattr(tempfile, "tempdir", os.environ["TMPDIR"])
    yield
    assert started_under(tmp_path) == []


def test_every_rank_is_recorded_and_memory_is_their_sum(tmp_path):
    record = run(ranks_with(3), tmp_path / "0.json")
    assert record.outcome == "ok", (record.reason, record.detail)
    assert [each["rank"] for each in record.ranks] == [0, 1, 2]
    assert len({each["pid"] for each in record.ranks}) == 3
    for name in ("rss_before_load", "rss_after_load", "rss_peak"):
        assert record.memory[name] == sum(each["memory"][name] for each in record.ranks) > 0
    assert len(record.proof["ranks"]) == 2
    assert record.proof["ranks"][0]["calls"] == record.proof["calls"] == 3, "a rank missed a generation"


def test_what_the_other_ranks_compute_is_not_taken_for_neighbours():
    """The doubt is about others: the CPU time of a rank is the cell's own, and its leader asks for it."""
    here, there = ["here", 3.0], ["there", 5.0]
    ours, theirs = Pipe()
    lead = rank_protocol.LeaderSession(ours, 3)
    here[0] = socket.gethostname()
    rank_protocol.send(theirs, {"answers": [here, there]})
    assert lead.cpu_seconds() == 3.0
    assert rank_protocol.receive(theirs) == {"call": "cpu_seconds", "arguments": []}


def test_one_process_has_no_ranks(tmp_path):
    assert run(cell_with(devices=1), tmp_path / "0.json").ranks == ()


def test_cores_are_shared_out_between_ranks(tmp_path):
    record = run(ranks_with(2, {"threads": 6}), tmp_path / "0.json")
    assert [each["threads"] for each in record.ranks] == [3, 3]


@pytest.mark.parametrize(("rank", "step"), [(0, 0), (0, 2), (1, 0), (1, 2)])
def test_a_rank_that_is_killed_is_named_with_signal_and_phase_long_before_the_deadline(tmp_path, rank, step):
    begun = time.monotonic()
    cell = ranks_with(2, {"timeout_s": 600}, fails="kill", fails_rank=rank, fails_step=step)
    record = run(cell, tmp_path / "0.json")
    assert (record.outcome, record.reason) == ("error", f"rank {rank} was killed by SIGKILL, during: first call")
    assert time.monotonic() - begun < 300


@pytest.mark.parametrize(
    ("failure", "outcome", "reason"),
    [
        ("oom", "oom", "rank 1: asked to run out of memory"),
        ("allocate", "oom", "rank 1: MemoryError"),
        ("nan", "wrong", "rank 1: the logits hold NaN"),
        ("unavailable", "unavailable", "rank 1: asked to be unavailable"),
        ("error", "error", "rank 1: RuntimeError: asked to fail"),
    ],
)
def test_what_one_rank_raises_is_the_outcome(tmp_path, failure, outcome, reason):
    record = run(ranks_with(fails=failure, fails_rank=1), tmp_path / "0.json")
    assert record.outcome == outcome
    assert record.reason is not None
    assert record.reason.startswith(reason)


def test_the_detail_is_of_the_rank_that_failed(tmp_path):
    record = run(ranks_with(fails="error", fails_rank=1), tmp_path / "0.json")
    assert record.detail is not None
    assert record.detail.startswith("Traceback")
    assert "asked to fail" in record.detail


def test_a_hung_rank_ends_at_the_deadline(tmp_path):
    record = run(ranks_with(2, {"timeout_s": 6}, fails="hang", fails_rank=1), tmp_path / "0.json")
    assert (record.outcome, record.reason) == ("timeout", "over 6 s, during: first call")


def test_a_rank_that_emits_other_tokens_is_wrong(tmp_path):
    record = run(ranks_with(strays_rank=1), tmp_path / "0.json")
    assert record.outcome == "wrong"
    assert record.reason == "rank 0: rank 1 emitted other tokens than rank 0 in the same generation"


def test_a_memory_limit_is_that_of_each_rank(tmp_path):
    record = run(ranks_with(2, {"memory_limit": 2_000_000_000}, fails="eat", fails_rank=1), tmp_path / "0.json")
    assert record.outcome == "oom"
    assert (record.reason or "").startswith("rank 1: MemoryError")


def test_a_launcher_that_is_not_installed_is_unavailable(tmp_path):
    record = run(ranks_with(launcher="missing"), tmp_path / "0.json")
    assert record.outcome == "unavailable"
    assert record.reason == "the launcher no-such-launcher does not start (No such file or directory): is it installed?"


def test_more_ranks_than_cores_is_unavailable_before_anything_starts():
    reason = null_model.unavailable(cell_with(devices=100_000))
    assert reason is not None
    assert "100000 ranks need 100000 cores" in reason
    assert null_model.unavailable(ranks_with(100_000)) is None


def test_torchrun_starts_the_ranks_as_well_as_our_own_launcher_does(tmp_path):
    """It makes a folder of logs for each start and leaves it, where a block's own scratch ends with the block."""
    record = run(ranks_with(2, launcher="torchrun"), tmp_path / "0.json")
    assert [path.name for path in Path(os.environ["TMPDIR"]).iterdir() if path.suffix != ".lock"] == []
    assert record.outcome == "ok", (record.reason, record.detail)
    assert [each["rank"] for each in record.ranks] == [0, 1]


def test_a_rank_killed_under_torchrun_is_named_and_not_what_torchrun_does_about_it(tmp_path):
    cell = ranks_with(2, launcher="torchrun", fails="kill", fails_rank=1, fails_step=2)
    record = run(cell, tmp_path / "0.json")
    assert (record.outcome, record.reason) == ("error", "rank 1 was killed by SIGKILL, during: first call")


@pytest.fixture
def two_nodes(tmp_path_factory, monkeypatch):
    """A job of two nodes, both this machine: an `srun` that starts the command once for each."""
    folder = tmp_path_factory.mktemp("bin")
    script = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
"$@" & first=$!
"$@" & second=$!
wait $first && wait $second
"""
    (folder / "srun").write_text(script, encoding="ascii")
    (folder / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("CLAIMBENCH_ADDRESS", "127.0.0.1")


@pytest.mark.usefixtures("two_nodes")
def test_ranks_on_two_nodes_meet_and_are_measured_as_one(tmp_path):
    record = run(ranks_with(2, nodes=2, launcher="torchrun"), tmp_path / "0.json")
    assert record.outcome == "ok", (record.reason, record.detail)
    assert [each["rank"] for each in record.ranks] == [0, 1]
    assert len({each["pid"] for each in record.ranks}) == 2


@pytest.mark.usefixtures("two_nodes")
def test_a_rank_killed_on_one_of_two_nodes_ends_both(tmp_path):
    cell = ranks_with(2, nodes=2, launcher="torchrun", fails="kill", fails_rank=1, fails_step=2)
    record = run(cell, tmp_path / "0.json")
    assert (record.outcome, record.reason) == ("error", "rank 1 was killed by SIGKILL, during: first call")


def test_more_nodes_than_the_job_has_is_unavailable(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    reason = null_model.unavailable(ranks_with(4, nodes=2))
    assert reason is not None
    assert reason.startswith("2 nodes need a SLURM job of 2, and this process has 1: sbatch --exclusive --nodes=2 ")
    assert null_model.unavailable(ranks_with(3, nodes=2)) == "3 devices do not divide over 2 nodes"


def test_a_rendezvous_port_in_use_is_one_clear_message(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run_ = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
        command = [*run_, "--master-addr", "127.0.0.1", "--master-port", str(port), "-m", launchers.PROGRAM]
        failure = run_alone(ranks_with(), command)
    assert failure["outcome"] == "error"
    assert "port is in use" in failure["reason"]


def run_alone(cell: Cell, command: list[str]) -> dict[str, Any]:
    """The last thing that a coordinator says, run in this process."""
    from claimbench.measuring.block_request import BlockRequest
    from claimbench.measuring.coordinator import run_ranks
    from claimbench.measuring.rank_protocol import RankRequest

    said: list[dict[str, Any]] = []
    before = signal.getsignal(signal.SIGTERM)
    try:
        run_ranks(
            RankRequest(block=BlockRequest(cell=cell)),
            command,
            lambda event, **content: said.append({"event": event, **content}),
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    return said[-1]


def test_a_launcher_that_ends_at_once_is_quoted():
    failure = run_alone(ranks_with(), [sys.executable, "-c", "raise SystemExit('Error: no hosts')"])
    assert failure["reason"] == "the launcher ended with status 1, 0 ranks having started: Error: no hosts"


def started(process: subprocess.Popen[bytes], count: int) -> list[psutil.Process]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        children = psutil.Process(process.pid).children(recursive=True)
        found = [child for child in children if "claimbench.measuring.rank_process" in " ".join(child.cmdline())]
        if len(found) >= count:
            return children
        time.sleep(0.05)
    raise AssertionError(f"{count} processes of ranks did not start")


@pytest.mark.parametrize("launcher", ["processes", "torchrun"])
def test_a_killed_supervisor_leaves_no_rank(tmp_path, launcher):
    cell = ranks_with(2, fails="hang", launcher=launcher)
    process = subprocess.Popen(_command(tmp_path, cell), stderr=subprocess.DEVNULL)
    children = started(process, 4)  # a keeper and a rank, twice
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert list(tmp_path.iterdir()) == []


def test_a_killed_keeper_ends_its_rank_and_the_block(tmp_path):
    process = subprocess.Popen(_command(tmp_path, ranks_with(2, fails="hang")), stderr=subprocess.DEVNULL)
    children = started(process, 4)
    keepers = [
        child
        for child in children
        if child.children() and "claimbench.measuring.rank_process" in " ".join(child.cmdline())
    ]
    time.sleep(1.0)  # let it reach the first call
    os.kill(keepers[0].pid, signal.SIGKILL)
    assert process.wait(timeout=30) == 0
    record = result.read(tmp_path / "0.json")
    assert record.outcome == "error"
    assert (record.reason or "").startswith("rank ")


def test_an_edited_seal_is_still_refused(tmp_path: Path):
    """The seal is of the file's content, so a later version that adds a field can read what this one wrote."""
    run(cell_with(), tmp_path / "0.json")
    text = (tmp_path / "0.json").read_text(encoding="utf-8")
    (tmp_path / "0.json").write_text(text.replace('"ranks":[]', '"ranks":[{}]'), encoding="utf-8")
    with pytest.raises(ResultError, match="seal"):
        result.read(tmp_path / "0.json")
