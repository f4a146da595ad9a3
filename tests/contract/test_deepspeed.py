"""DeepSpeed's backends: what cannot run is told before, and what runs emits the reference's tokens.

The tests marked `deepspeed` run whole blocks in DeepSpeed's own environment: `make test-deepspeed` builds it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.contract.environments import python_of

from claimbench import backends
from claimbench.checkpoints.shard import shard
from claimbench.cost_model import cost
from claimbench.errors import Unavailable
from claimbench.hf import deepspeed
from claimbench.measuring.measure import measure
from claimbench.planning.result_key import key_of
from claimbench.schema.cell import Cell, Checkpoint, Protocol, Workload
from claimbench.schema.result import Result

RUN = pytest.mark.deepspeed


def cell(backend: str, architecture: str = "tiny-llama", keep_layers: int | None = None, **changed: Any) -> Cell:
    source = f"random://{architecture}?seed=0"
    named = {
        "checkpoint": Checkpoint(name="tiny", source=source, architecture=architecture, keep_layers=keep_layers),
        "backend": backend,
        "options": {"devices": 2, "oversubscribe": True, **changed.pop("options", {})},
        "workload": Workload(prompt="Once upon a time", new_tokens=8, batch=changed.pop("batch", 2)),
        "device": "cpu",
        "protocol": Protocol(samples=1, warmup_max=1, timeout_s=300),
    }
    return Cell.model_validate({**named, **changed})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for architecture in ("tiny-llama", "tiny-bloom"):
        folder = tmp_path_factory.mktemp(architecture)
        checkpoint = cell("transformers", architecture).checkpoint
        shard(checkpoint, folder / "fetched", folder / "sharded", 2_000_000)
        made[architecture] = folder / "sharded"
    return made


def reference_tokens(asked: Cell, folder: Path) -> tuple[int, ...]:
    plain = asked.model_copy(update={"backend": "transformers", "options": {}})
    session = backends.find("transformers").load(plain, folder, None)
    columns = [columns.tolist() for columns in session.generate()]
    session.close()
    return tuple(column[0][0] for column in columns)


def block(asked: Cell, folder: Path, output: Path) -> Result:
    python = python_of("deepspeed")
    if asked.options.get("offload") == "nvme":
        state = json.loads((python.parents[1] / "ops.json").read_text(encoding="utf-8"))["async_io"]
        if state != "compiled":
            pytest.skip(f"DeepSpeed's async_io is not compiled: {state}")
    key = key_of(asked, "test-machine")
    return measure(asked, 0, key, output / "0.json", checkpoint=folder, python=str(python))


def ok(record: Result) -> Result:
    assert record.outcome == "ok", (record.reason, record.detail)
    return record


INFERENCE, ZERO = "deepspeed_inference", "deepspeed_zero"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (cell(INFERENCE, options={"devices": 1}), "one device has nothing to cut"),
        (cell(INFERENCE, options={"devices": 4}), "2 cannot be shared by 4 ranks: set devices to 2 at most"),
        (cell(INFERENCE, "tiny-bigcode"), "1 cannot be shared by 2 ranks"),
        (cell(INFERENCE, "bloom-176b", options={"devices": 99, "oversubscribe": False}), "99 ranks need 99 cores"),
        (cell(ZERO, options={"devices": 99, "oversubscribe": False}), "99 ranks need 99 cores"),
        (cell(ZERO, options={"offload": "cpu"}), "moves nothing"),
        (
            cell(ZERO, options={"offload": "nvme", "nvme_path": "/proc/no"}),
            "cannot write to the offload folder /proc/no",
        ),
    ],
)
def test_what_cannot_run_is_known_before_anything_starts(asked: Cell, reason: str) -> None:
    told = backends.find(asked.backend).unavailable(asked)
    assert told is not None
    assert reason in told


def test_a_disk_that_is_too_small_for_the_model_is_told_in_numbers(tmp_path: Path) -> None:
    asked = cell(ZERO, "bloom-176b", options={"offload": "nvme", "nvme_path": str(tmp_path)}, dtype="float32")
    told = backends.find(ZERO).unavailable(asked)
    assert told is not None
    assert "705 GB" in told


def test_a_stream_is_one_or_each_ranks_own() -> None:
    options = backends.find(ZERO).Options
    assert options(devices=4, streams=4).streams == 4
    with pytest.raises(ValueError, match="one for each of 4 devices, got 2"):
        options(devices=4, streams=2)


def build_program(environment: str) -> Any:
    found = importlib.util.spec_from_file_location("build", Path(f"envs/{environment}.build.py").absolute())
    assert found is not None
    assert found.loader is not None
    build = importlib.util.module_from_spec(found)
    found.loader.exec_module(build)
    return build


@pytest.mark.parametrize("environment", ["deepspeed", "deepspeed_injection"])
def test_what_is_compiled_is_what_is_locked_and_what_that_environment_runs(environment: str) -> None:
    build = build_program(environment)
    assert re.fullmatch(r"deepspeed==[\d.]+ (; .* )?\\\n    --hash=sha256:[0-9a-f]{64}\n", build.locked())
    assert ("InferenceBuilder" in build.WANTED[build.ENVIRONMENT]["cuda"]) == (environment == "deepspeed_injection")


def test_a_missing_compiler_is_named_when_the_environment_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    build = build_program("deepspeed")
    monkeypatch.setenv("PATH", "/nowhere")
    assert build.tools_missing() == "no g++ and no ninja to compile with: install a C++ compiler and ninja"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"async_io": "libaio is missing"}, "async_io is not compiled: libaio is missing"),
        ({}, "async_io is not compiled: the environment was built without"),
        ({"async_io": "compiled"}, None),
    ],
)
def test_a_part_that_was_not_compiled_says_why(
    said: dict[str, str], reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ops.json").write_text(json.dumps(said), encoding="utf-8")
    monkeypatch.setattr(deepspeed.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(deepspeed.metadata, "version", lambda *_: "0.19.8")
    if reason is None:
        deepspeed.require("async_io")
        return
    with pytest.raises(Unavailable, match=reason):
        deepspeed.require("async_io")


@pytest.mark.model
def test_an_environment_without_deepspeed_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    asked = cell(INFERENCE)
    record = measure(asked, 0, key_of(asked, "here"), tmp_path / "0.json", checkpoint=folders["tiny-llama"])
    assert record.outcome == "unavailable"
    assert "DeepSpeed is not installed" in (record.reason or "")


@RUN
@pytest.mark.parametrize("architecture", ["tiny-llama", "tiny-bloom"])
def test_a_cut_model_emits_the_reference_tokens(architecture: str, folders: dict[str, Path], tmp_path: Path) -> None:
    asked = cell(INFERENCE, architecture)
    before = set(Path("/dev/shm").iterdir())
    record = ok(block(asked, folders[architecture], tmp_path))
    assert record.tokens == reference_tokens(asked, folders[architecture])
    left = set(Path("/dev/shm").iterdir()) - before
    assert not [path for path in left if "deepspeed" in path.name], "memory that no process holds"
    layers = cost.architecture(architecture).layers
    for proof in (record.proof, *record.proof["ranks"]):
        assert proof["share_of_layers"] == pytest.approx(0.5, abs=0.01)
        assert proof["all_reduces_per_pass"] == 2 * layers + 1, "one after each half of a block, one of the logits"
    whole = cost.architecture(architecture).weights * 4
    embedding = cost.architecture(architecture).embedding_weights * 4
    for rank in record.ranks:
        assert 0.4 * whole < rank["memory"]["weights"] < 0.6 * whole + embedding


@RUN
@pytest.mark.parametrize("architecture", ["tiny-llama", "tiny-bloom"])
def test_a_checkpoint_cut_ahead_gives_the_same_tokens(
    architecture: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    options = {"checkpoint": "pre-sharded"}
    asked = cell(INFERENCE, architecture, options=options)
    asked = asked.model_copy(update={"checkpoint": asked.checkpoint.model_copy(update={"tensor_parallel": 2})})
    shard(asked.checkpoint, tmp_path / "fetched", tmp_path / "cut", 2_000_000)
    record = ok(block(asked, tmp_path / "cut", tmp_path))
    assert record.tokens == reference_tokens(asked, folders[architecture])
    assert record.proof["share_of_layers"] == pytest.approx(0.5, abs=0.01)


SAY_LOG_PROBS = """
import json, sys
from pathlib import Path
from claimbench import backends
from claimbench.schema.cell import Cell
from claimbench.system import launchers
asked = Cell.model_validate_json(sys.argv[1])
session = backends.find(asked.backend).load(asked, Path(sys.argv[2]), None)
log_probs = session.log_probs([7, 70, 170, 270])
if launchers.rank() == 0:
    Path(sys.argv[3]).write_text(json.dumps(log_probs.tolist()))
session.close()
"""


@RUN
@pytest.mark.parametrize("backend", [INFERENCE, ZERO])
@pytest.mark.parametrize("architecture", ["tiny-llama", "tiny-bloom"])
def test_every_odd_is_the_references(backend: str, architecture: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Heads that meet another head's positions would hardly change the likeliest token of a random model."""
    python = python_of("deepspeed")
    (tmp_path / "say.py").write_text(SAY_LOG_PROBS, encoding="utf-8")
    asked, said = cell(backend, architecture), tmp_path / "log_probs.json"
    run = [str(python), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [asked.model_dump_json(), str(folders[architecture]), str(said)]
    own = os.environ | {"TMPDIR": str(tmp_path)}  # torchrun leaves a folder of logs behind
    subprocess.run([*run, str(tmp_path / "say.py"), *arguments], check=True, capture_output=True, timeout=200, env=own)
    plain = asked.model_copy(update={"backend": "transformers", "options": {}})
    session = backends.find("transformers").load(plain, folders[architecture], None)
    expected = session.log_probs([7, 70, 170, 270])  # [4, vocabulary]
    session.close()
    arrived = expected.new_tensor(json.loads(said.read_text(encoding="utf-8")))
    assert arrived.shape == expected.shape
    assert float((arrived - expected).abs().max()) < 1e-5


@RUN
def test_a_checkpoint_that_is_not_cut_is_not_taken_for_one(folders: dict[str, Path], tmp_path: Path) -> None:
    record = block(cell(INFERENCE, options={"checkpoint": "pre-sharded"}), folders["tiny-llama"], tmp_path)
    assert record.outcome == "error"
    assert "expected a checkpoint cut for 2 ranks, found a whole one" in (record.reason or "")


@RUN
def test_three_ranks_share_nine_heads(tmp_path: Path) -> None:
    """SmolLM2 has 9 heads, and 3 of keys and values: one layer of it."""
    asked = cell(INFERENCE, "smollm2-135m", options={"devices": 3}, keep_layers=1)
    shard(asked.checkpoint, tmp_path / "fetched", tmp_path / "sharded", 200_000_000)
    record = ok(block(asked, tmp_path / "sharded", tmp_path))
    assert record.tokens == reference_tokens(asked, tmp_path / "sharded")
    assert [rank["rank"] for rank in record.ranks] == [0, 1, 2]
    assert record.proof["share_of_layers"] == pytest.approx(1 / 3, abs=0.01)


@RUN
@pytest.mark.parametrize("streams", [1, 2])
def test_partitioned_weights_give_the_reference_tokens(streams: int, folders: dict[str, Path], tmp_path: Path) -> None:
    asked = cell(ZERO, options={"streams": streams})
    record = ok(block(asked, folders["tiny-llama"], tmp_path))
    assert record.tokens == reference_tokens(asked, folders["tiny-llama"])
    for proof in (record.proof, *record.proof["ranks"]):
        assert proof["share_of_weights"] == pytest.approx(0.5, abs=0.01)
        assert proof["gathers_per_pass"] >= 2


@RUN
def test_weights_in_files_give_the_reference_tokens_and_leave_no_file(folders: dict[str, Path], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = {"offload": "nvme", "nvme_path": str(disk), "smallest_swap": 4096}
    asked = cell(ZERO, options=options)
    record = ok(block(asked, folders["tiny-llama"], tmp_path))
    assert record.tokens == reference_tokens(asked, folders["tiny-llama"])
    assert record.proof["offload_files"] > 10
    assert list(disk.iterdir()) == []


@RUN
def test_weights_too_small_to_be_swapped_are_not_called_offloaded(folders: dict[str, Path], tmp_path: Path) -> None:
    asked = cell(ZERO, options={"offload": "nvme", "nvme_path": str(tmp_path)})
    record = block(asked, folders["tiny-llama"], tmp_path)
    assert record.outcome == "wrong", (record.reason, record.detail)
    assert "files with weights" in (record.reason or "")


@RUN
def test_a_killed_rank_is_one_outcome_and_its_files_go_with_the_next_block(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = {"offload": "nvme", "nvme_path": str(disk), "smallest_swap": 4096}
    asked = cell(ZERO, options=options)
    asked = asked.model_copy(update={"workload": asked.workload.model_copy(update={"new_tokens": 400})})
    killer = threading.Thread(target=_kill_a_rank_once_it_swaps, args=(disk,))
    killer.start()
    record = block(asked, folders["tiny-llama"], tmp_path)
    killer.join()
    assert record.outcome == "error"
    assert "was killed by SIGKILL" in (record.reason or ""), record.detail
    assert list(disk.iterdir()) != []
    assert backends.find(ZERO).unavailable(asked) is None
    assert list(disk.iterdir()) == []


def _kill_a_rank_once_it_swaps(disk: Path) -> None:
    """The process that holds the first file with weights; one that is mid-way, whatever it is doing then."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        swapped = list(disk.rglob("*.swp"))
        if swapped:
            inode = (next(iter(disk.glob("claimbench-scratch-*"))) / "owner").stat().st_ino
            for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
                fields = line.split()
                if fields[5].endswith(f":{inode}"):
                    os.kill(int(fields[4]), signal.SIGKILL)
                    return
        time.sleep(0.05)
