"""Whatever a server does, its block ends in one recorded outcome with a reason, in time, and no process is left."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from claimbench.analysis.derive import of_block
from claimbench.backends import null_server
from claimbench.errors import Refusal, ServerFailed
from claimbench.measuring.measure import measure
from claimbench.planning.result_key import key_of
from claimbench.schema import result
from claimbench.schema.cell import Cell, Checkpoint, Protocol, Workload
from claimbench.serving import process
from claimbench.serving.process import Launch, Server, record_of
from claimbench.system.processes import free_port


def cell_with(batch: int = 1, timeout_s: float = 60, **options: Any) -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama?seed=0", architecture="tiny-llama"),
        backend="null_server",
        options=options,
        workload=Workload(prompt="Hello", new_tokens=4, batch=batch),
        device="cpu",
        protocol=Protocol(samples=2, warmup_max=1, timeout_s=timeout_s),
    )


def servers() -> set[int]:
    """Processes of servers and their keepers, of anybody on this machine."""
    found = set()
    for one in psutil.process_iter(["cmdline"]):
        if "claimbench.serving." in " ".join(one.info["cmdline"] or []):
            found.add(one.pid)
    return found


def none_left(before: set[int], seconds: float = 10) -> bool:
    """Whether no server of ours is there; others that run tests beside this one may have theirs."""
    end = time.monotonic() + seconds
    while any(_is_ours(pid) for pid in servers() - before):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _is_ours(pid: int) -> bool:
    """Whether the process carries the mark that this test's own processes inherit."""
    try:
        return psutil.Process(pid).environ().get("CLAIMBENCH_TEST_MARK") == os.environ["CLAIMBENCH_TEST_MARK"]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


@pytest.fixture(autouse=True)
def marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLAIMBENCH_TEST_MARK", str(tmp_path))


def run(cell: Cell, output: Path) -> result.Result:
    before = servers()
    record = measure(cell, 0, key_of(cell, "test-machine"), output, checkpoint=None)
    assert result.read(output) == record
    assert none_left(before), "a server outlived its block"
    return record


def test_a_server_that_does_as_it_should_is_measured_and_leaves_no_process(tmp_path):
    record = run(cell_with(batch=3, token=7), tmp_path / "0.json")
    assert record.outcome == "ok"
    assert record.tokens == (7, 7, 7, 7)
    assert record.proof["token_ids"].startswith("told")
    assert record.memory["rss_peak"] > record.memory["rss_after_load"] + 10e6, "the server's memory counts as well"
    assert record.proof["metrics"]["requests"] == 9, "three rows of one warm-up and two samples"


def test_a_load_is_on_record_request_by_request_and_its_metrics_follow(tmp_path):
    load = {"kind": "closed", "requests": 6, "concurrency": 2, "objective": {"end_to_end_ms": 60000.0}}
    record = run(cell_with(prefill_ms=5, step_ms=1, load=load), tmp_path / "0.json")
    assert record.outcome == "ok"
    requests = record.proof["load"]["records"]
    assert [sum(request["chunk_tokens"]) for request in requests] == [4] * 6
    numbers = of_block(record)
    assert numbers["load_failed_share"] == 0
    assert numbers["load_goodput_per_s"] == numbers["load_requests_per_s"]
    assert (numbers["load_ttft_ms"] or 0) >= 5


def test_a_sweep_is_on_record_level_by_level(tmp_path):
    load = {"kind": "sweep", "requests": 2, "concurrency": 4}
    record = run(cell_with(prefill_ms=20, step_ms=20, load=load), tmp_path / "0.json")
    levels = record.proof["load"]["levels"]
    assert {clients: len(requests) for clients, requests in levels.items()} == {"1": 2, "2": 4, "4": 8}
    assert of_block(record)["load_clients"] == 4, "a server that waits serves four as fast as one"


def generate_once(cell: Cell) -> None:
    session = null_server.load(cell, Path(), None)
    try:
        list(session.generate())
    finally:
        session.close()


@pytest.mark.parametrize(
    ("failure", "outcome", "reason"),
    [
        ("dies_at_once", "error", "ended with status 1: asked to die at once"),
        ("dies_midway", "error", "ended with status 3"),
        ("400", "error", "the server answered 400: asked to answer 400"),
        ("429", "error", "the server answered 429: asked to answer 429"),
        ("500", "error", "the server answered 500: asked to answer 500"),
        ("half", "error", "the stream ended after 2 events"),
        ("error_event", "error", "broke off with: asked to break off"),
        ("garbled", "error", "an event is not a JSON object: 'not JSON'"),
        ("not_a_stream", "error", "not a stream of events"),
        ("no_usage", "error", "did not say how many tokens"),
        ("short", "error", "expected 4 new tokens, the server counts 3"),
        ("wrong_model", "wrong", "asked for the model 'null', the server has another"),
        ("never_healthy", "error", "the server failed: not healthy within 1.5 s: /health gave status 503"),
        ("stuck", "error", "the stream stood still for 1 s"),
    ],
)
def test_bad_luck_is_a_refusal_with_its_reason_in_time(failure, outcome, reason):
    before, started = servers(), time.monotonic()
    with pytest.raises(Refusal) as caught:
        generate_once(cell_with(fails=failure, healthy_s=1.5 if failure == "never_healthy" else 30, stall_s=1))
    assert caught.value.outcome == outcome
    assert reason in str(caught.value)
    assert time.monotonic() - started < 40
    assert none_left(before)


def test_a_server_that_dies_is_the_block_s_outcome_with_its_last_lines(tmp_path):
    record = run(cell_with(fails="dies_at_once"), tmp_path / "0.json")
    assert record.outcome == "error"
    assert record.reason == "the server failed: it ended with status 1: asked to die at once"
    assert "The server's last lines:\nasked to die at once" in (record.detail or "")


def test_a_block_that_is_over_its_time_ends_its_server_too(tmp_path):
    record = run(cell_with(fails="stuck", timeout_s=6), tmp_path / "0.json")
    assert record.outcome == "timeout"


def test_a_port_in_use_is_one_clear_reason():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerFailed, match=rf"port {port} of 127.0.0.1 is in use"):
            null_server.load(cell_with(port=port), Path(), None)


def test_an_answer_that_is_given_up_leaves_a_usable_session():
    session = null_server.load(cell_with(step_ms=20), Path(), None)
    steps = session.generate()
    next(steps)
    steps.close()
    assert [block for block in session.generate()] == [[[1]]] * 4
    session.close()
    session.close()


def test_a_server_that_ignores_the_request_to_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    port = free_port()
    settings = f'{{"port": {port}, "fails": "stubborn"}}'
    command = (sys.executable, "-m", "claimbench.serving.null_server", settings)
    server = process.Server(process.Launch(command=command, port=port, healthy_s=30))
    started = server.descendants()
    assert started
    server.stop()
    assert not any(child.is_running() for child in started)


HOLDER = """
import sys, time
from claimbench.serving.process import Launch, Server
from claimbench.system.processes import free_port
port = free_port()
settings = '{"port": %d}' % port
command = (sys.executable, "-c", sys.argv[1], settings)
server = Server(Launch(command=command, port=port, healthy_s=30))
print(*[child.pid for child in server.descendants()], flush=True)
time.sleep(600)
"""
FORKS = """
import subprocess, sys, asyncio
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
from claimbench.serving.null_server import Settings, main
asyncio.run(main(Settings.model_validate_json(sys.argv[1])))
"""


def living(pids: list[int]) -> list[psutil.Process]:
    """Those that are there still; one may end between two looks."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def test_a_killed_client_leaves_no_server_and_nothing_that_the_server_put_into_a_session_of_its_own():
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, FORKS], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    pids = [int(pid) for pid in holder.stdout.readline().split()]
    assert len(pids) == 2, "the server and the process that it started"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    _, alive = psutil.wait_procs(living(pids), timeout=15)
    assert alive == []


def test_secrets_reach_no_line_and_no_record(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_inherited_secret")
    program = "import os, sys; sys.exit('keys ' + os.environ['HF_TOKEN'] + ' ' + os.environ['SOME_API_KEY'])"
    launch = Launch((sys.executable, "-c", program), free_port(), {"SOME_API_KEY": "sk-given", "THREADS": "2"})
    with pytest.raises(ServerFailed, match="keys <secret> <secret>"):
        Server(launch)
    shown = record_of(launch)
    assert shown["environment"] == {"SOME_API_KEY": "<secret>", "THREADS": "2"}
