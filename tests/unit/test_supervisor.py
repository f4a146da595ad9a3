"""What a worker said until it ended, and how it ended, as fields of a result."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from claimbench.measuring import supervisor
from claimbench.measuring.block_request import BlockRequest
from claimbench.schema.cell import Cell, Checkpoint, Protocol, Workload
from claimbench.schema.outcome import Outcome
from claimbench.system import machine

LOADING = {"event": "phase", "name": "load"}
DONE = {"event": "done"}


def sample(wall_ns: int, sha256: str = "a") -> dict[str, Any]:
    return {"wall_ns": wall_ns, "step_ns": [wall_ns], "step_tokens": [1], "tokens_sha256": sha256}


def ending(*messages: Any, status: int = 0, timed_out: bool = False, oom_kills: int = 0) -> dict[str, Any]:
    return dict(supervisor._ending(status, list(messages), timed_out, 2.5, oom_kills))


def test_a_worker_that_said_that_it_is_done_is_taken_at_its_word() -> None:
    generations = [{"event": "warmup", "sample": sample(1)}, {"event": "sample", "sample": sample(2)}]
    assert ending(LOADING, *generations, DONE) == {"outcome": Outcome.OK}
    assert ending(DONE, status=1, timed_out=True) == {"outcome": Outcome.OK}, "it is too late to fail"
    said = {"event": "sample", "sample": sample(2, "other")}
    wrong = {"outcome": Outcome.WRONG, "reason": "generations of one block, warm-up included, differ in their tokens"}
    assert ending(*generations, said, DONE) == ending(generations[0], said, DONE) == wrong


def test_a_worker_that_refuses_says_why_and_whether_another_try_may_help() -> None:
    refused = {"event": "refused", "outcome": Outcome.UNAVAILABLE, "reason": "no GPU"}
    expected = {"outcome": Outcome.UNAVAILABLE, "reason": "no GPU", "passing": False}
    assert ending(refused, timed_out=True, oom_kills=1) == expected
    assert ending(refused | {"passing": True})["passing"] is True


def test_a_rank_that_the_kernel_killed_for_memory_is_out_of_memory() -> None:
    killed = {"event": "refused", "outcome": Outcome.ERROR, "reason": "rank 1 was killed", "signal": "SIGKILL"}
    for_memory = {"outcome": Outcome.OOM, "reason": "rank 1 was killed (by the kernel, for memory)"}
    assert ending(killed, oom_kills=1) == for_memory
    assert ending(killed, oom_kills=0)["outcome"] == Outcome.ERROR
    assert ending(killed | {"signal": "SIGTERM"}, oom_kills=1)["outcome"] == Outcome.ERROR


@pytest.mark.parametrize(
    ("messages", "how", "outcome", "reason"),
    [
        ([LOADING], {"timed_out": True, "status": -9}, Outcome.TIMEOUT, "over 2.5 s, during: load"),
        ([], {"timed_out": True}, Outcome.TIMEOUT, "over 2.5 s, during: start"),
        ([LOADING], {"status": -9, "oom_kills": 1}, Outcome.OOM, "killed by the kernel for memory, during: load"),
        ([LOADING], {"status": -9}, Outcome.ERROR, "the worker was killed by SIGKILL, during: load"),
        ([LOADING], {"status": -11, "oom_kills": 1}, Outcome.ERROR, "the worker was killed by SIGSEGV, during: load"),
        (
            [LOADING, {"event": "phase", "name": "timing"}, {"event": "flag", "flag": "f"}],
            {"status": 3},
            Outcome.ERROR,
            "the worker was ended with status 3, during: timing",
        ),
        ([], {"status": 0}, Outcome.ERROR, "the worker was ended with status 0, during: start"),
    ],
)
def test_a_worker_that_says_no_more_ended_somehow(
    messages: list[Any], how: dict[str, Any], outcome: Outcome, reason: str
) -> None:
    found = ending(*messages, **how)
    assert (found["outcome"], found["reason"]) == (outcome, reason)
    assert found.get("passing", False) == (outcome == Outcome.ERROR), "only what may have been chance is tried again"


def test_what_a_worker_said_is_a_field_each() -> None:
    said = [
        {"event": "flag", "flag": "first"},
        {"event": "conditions", "conditions": {"steal": 0.1}, "unread": {"own": "why"}},
        {"event": "checkpoint", "sha256": "c", "card": {"model_type": "llama"}},
        {"event": "loaded", "load_ns": 7, "prompt_ids": [5, 6, 7]},
        {"event": "warmup", "sample": sample(30)},
        {"event": "warmup", "sample": sample(20)},
        {"event": "sample", "sample": sample(10)},
        {"event": "memory", "memory": {"rss_peak": 3}, "ranks": [{"rank": 0}]},
        {"event": "proof", "proof": {"seen": 1}},
        {"event": "fidelity", "fidelity": {"agreed": 4}},
        {"event": "energy", "energy_mj": 9},
        {"event": "tokens", "tokens": [1, 2]},
        {"event": "flag", "flag": "second"},
        DONE,
    ]
    assert supervisor.facts_in(said) == {  # type: ignore[arg-type]
        "flags": ["first", "second"],
        "conditions": {"steal": 0.1},
        "telemetry": {"unread": {"own": "why"}},
        "checkpoint_sha256": "c",
        "card": {"model_type": "llama"},
        "load_ns": 7,
        "prompt_tokens": 3,
        "prompt_ids": [5, 6, 7],
        "warmup": [sample(30), sample(20)],
        "samples": [sample(10)],
        "first_call_ns": 30,
        "memory": {"rss_peak": 3},
        "ranks": [{"rank": 0}],
        "proof": {"seen": 1},
        "fidelity": {"agreed": 4},
        "energy_mj": 9,
        "tokens": [1, 2],
    }
    assert supervisor.facts_in([]) == {"warmup": [], "samples": [], "flags": []}
    assert supervisor.facts_in([{"event": "memory", "memory": {}}])["ranks"] == []


def test_lines_that_are_no_message_are_read_and_left() -> None:
    lines = ["not json\n", "3\n", "[]\n", "{}\n", json.dumps(LOADING) + "\n", '{"event": "cut', "\n", json.dumps(DONE)]
    found: list[Any] = []
    supervisor._collect_messages(io.StringIO("".join(lines)), found)
    assert found == [LOADING, DONE]


def cell(threads: int | None) -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama"),
        backend="null_model",
        workload=Workload(prompt="Hello", new_tokens=4),
        device="cpu",
        protocol=Protocol(threads=threads),
    )


def test_a_worker_has_the_threads_of_its_protocol_no_hub_and_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(supervisor, "cache_folder", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(supervisor.getpass, "getuser", lambda: "a:b/c")
    (own := tmp_path / "own").mkdir()
    found = supervisor.environment_of(cell(3), own)
    assert found["SOMETHING_ELSE"] == "kept"
    assert {found[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} == {"3"}
    assert (found["OMP_WAIT_POLICY"], found["HF_HUB_OFFLINE"], found["TMPDIR"]) == ("PASSIVE", "1", str(own))
    assert (found["PYTORCH_NVML_BASED_CUDA_CHECK"], found["PYTHONUNBUFFERED"]) == ("1", "1")
    assert (found["TOKENIZERS_PARALLELISM"], found["TRANSFORMERS_VERBOSITY"]) == ("false", "error")
    assert found["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache" / "inductor")
    headers = own / "torchinductor_a_b_c"
    assert headers.readlink() == tmp_path / "cache" / "inductor-headers"
    assert headers.is_dir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    (another := tmp_path / "another").mkdir()
    found = supervisor.environment_of(cell(None), another)
    assert found["OMP_NUM_THREADS"] == str(machine.usable_cores())
    assert found["TORCHINDUCTOR_CACHE_DIR"] == "mine"


def test_a_user_without_a_name_is_known_by_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(supervisor, "cache_folder", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(supervisor.getpass, "getuser", nobody)
    monkeypatch.setattr(supervisor.os, "getuid", lambda: 4321)
    supervisor._keep_compiled_headers(tmp_path)
    assert (tmp_path / "torchinductor_uid_4321").is_dir()


def test_kills_for_memory_are_those_of_the_group_and_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "vmstat"
    monkeypatch.setattr(supervisor.control_groups, "oom_kills", lambda: 2)
    monkeypatch.setattr(supervisor, "Path", lambda path: told if path == "/proc/vmstat" else Path(path))
    assert supervisor.kernel_oom_kills() == 2, "where there is no such file"
    told.write_bytes(b"nr_free 7\n\xff\noom_kill 5\noom_kill_else 9\n")
    assert supervisor.kernel_oom_kills() == 7
    told.write_bytes(b"oom_kill many\n")
    assert supervisor.kernel_oom_kills() == 2


def supervised(program: str, timeout_s: float = 20.0) -> dict[str, Any]:
    """What is made of a worker that runs `program`."""
    request = BlockRequest(cell=cell(1).model_copy(update={"protocol": Protocol(timeout_s=timeout_s)}))
    return dict(supervisor._supervise_in(request, [sys.executable, "-c", program], dict(os.environ)))


def test_a_worker_is_asked_on_its_input_and_its_last_words_are_kept_where_it_failed() -> None:
    flag = "{'event': 'flag', 'flag': json.load(sys.stdin)['cell']['backend']}"
    asks = f"import json, sys; print(json.dumps({flag}))"
    noisy = "; sys.stderr.write('x' * 5000 + 'the end')"
    found = supervised(f"{asks}{noisy}; print(json.dumps({{'event': 'done'}}))")
    assert (found["outcome"], found["flags"], "detail" in found) == (Outcome.OK, ["null_model"], False)
    found = supervised(f"{asks}{noisy}; sys.exit(3)")
    assert found["reason"] == "the worker was ended with status 3, during: start"
    assert found["detail"] == "x" * (4000 - len("the end")) + "the end"
    refused = "{'event': 'refused', 'outcome': 'error', 'reason': 'rank 1 failed', 'detail': 'said by the rank'}"
    found = supervised(f"import sys; sys.stderr.write('noise'); print(__import__('json').dumps({refused}))")
    assert (found["reason"], found["detail"]) == ("rank 1 failed", "said by the rank")
    assert supervised("")["detail"] is None


def test_a_worker_whose_time_is_up_is_ended() -> None:
    begun = time.monotonic()
    found = supervised("import time; time.sleep(60)", timeout_s=0.5)
    assert (found["outcome"], found["reason"]) == (Outcome.TIMEOUT, "over 0.5 s, during: start")
    assert time.monotonic() - begun < 30


def test_bytes_that_are_no_text_are_kept_as_marks_and_messages_after_them_count() -> None:
    noise = "import sys; [out.buffer.write(b'\\xff\\xc3\\xa9\\n') for out in (sys.stdout, sys.stderr)]"
    found = supervised(f'{noise}; sys.stdout.flush(); print(\'{{"event": "flag", "flag": "later"}}\')')
    assert (found["flags"], found["detail"]) == (["later"], "\ufffdé\n")


def test_a_block_is_measured_by_a_worker_whose_folder_is_gone_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor.scratch, "temporary", lambda: tmp_path)
    seen: list[Path] = []
    usual = supervisor.environment_of

    def environment_of(of: Cell, temporary: Path) -> dict[str, str]:
        seen.append(temporary)
        return usual(of, temporary)

    monkeypatch.setattr(supervisor, "environment_of", environment_of)
    found = supervisor.supervise(BlockRequest(cell=cell(1)), sys.executable)
    assert (found["outcome"], len(found["samples"])) == (Outcome.OK, cell(1).protocol.samples)
    assert found["prompt_tokens"] == len(found["prompt_ids"])
    (folder,) = seen
    assert folder.is_relative_to(tmp_path)
    assert not folder.exists()
