"""Systems that cut a model over several processes say what one process says, from a share of the weights each."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from claimbench import backends
from claimbench.cell import Cell, Checkpoint, OptimizationUse, Workload
from claimbench.cell import Protocol as MeasureProtocol
from claimbench.keys import key_of
from claimbench.measure import measure
from claimbench.model import cost
from claimbench.optimizations import settings_of
from claimbench.result import Result
from claimbench.shard import shard

pytestmark = pytest.mark.ranks

BIGCODE = (
    "prefill_flash", "vectorised_processing", "cache_preallocated", "key_padding", "details_on_demand",
    "last_token_head", "fused_softmax", "fast_linear", "fused_layer_norm", "simple_mask",
)  # fmt: skip


def checkpoint_of(architecture: str, ranks: int | None = None) -> Checkpoint:
    source = f"random://{architecture}?seed=0&dtype=float32"
    return Checkpoint(name="tiny", source=source, architecture=architecture, tensor_parallel=ranks)


@pytest.fixture(autouse=True)
def own_device_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests time nothing, so they wait for no measurement."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


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


def plain_tokens(architecture: str, folders: Any) -> list[int]:
    """What one process of Transformers says."""
    import torch

    checkpoint = checkpoint_of(architecture)
    session = backends.find("transformers").load(cell_of("transformers", checkpoint, {}), folders(checkpoint), None)
    tokens: list[int] = torch.cat(list(session.generate()), dim=1)[0].tolist()
    session.close()
    return tokens


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
