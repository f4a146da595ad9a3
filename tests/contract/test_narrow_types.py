"""A cell of a narrower type, through whole blocks: how far it is from the run in the usual type is measured."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from claimbench import backends
from claimbench.checkpoints.shard import shard
from claimbench.measuring.measure import measure
from claimbench.planning.expand import reference_of
from claimbench.planning.result_key import key_of
from claimbench.schema.cell import Cell, Checkpoint, Dtype, Workload
from claimbench.schema.cell import Protocol as MeasureProtocol
from claimbench.schema.result import Result

pytestmark = pytest.mark.model
TINY = Checkpoint(name="tiny", source="random://tiny-llama?seed=0&dtype=float32", architecture="tiny-llama")


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Nothing is timed here, so it waits for no measurement."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CLAIMBENCH_LOCKS", str(tmp_path))
    shard(TINY, tmp_path / "fetched", tmp_path / "model", 200_000)

    def run(backend: str, dtype: Dtype, usual: Dtype) -> Result:
        cell = Cell(
            checkpoint=TINY,
            backend=backend,
            options=backends.find(backend).Options().model_dump(mode="json"),
            dtype=dtype,
            workload=Workload(prompt="hello hello hello", new_tokens=8),
            device="cpu",
            protocol=MeasureProtocol(samples=1, warmup_max=1, timeout_s=120),
        )
        output = tmp_path / f"{backend}-{dtype}-{usual}.json"
        key = key_of(cell, "test-machine")
        return measure(cell, 0, key, output, checkpoint=tmp_path / "model", reference=reference_of(cell, usual))

    return run


@pytest.mark.parametrize("backend", ["transformers", "engine"])
def test_what_is_rounded_is_compared_with_what_is_not(backend: str, measured: Any) -> None:
    rounded = measured(backend, "bfloat16", usual="float32")
    assert rounded.outcome == "ok", rounded.reason
    assert rounded.fidelity.positions == 8
    assert 0 < rounded.fidelity.kl_mean_nats < 0.1
    assert not [flag for flag in rounded.flags if "reference" in flag]


def test_what_keeps_the_usual_type_promises_its_tokens_and_is_not(measured: Any) -> None:
    assert measured("transformers", "bfloat16", usual="bfloat16").fidelity is None
    assert measured("transformers", "float32", usual="bfloat16").fidelity is None


def test_a_system_without_probabilities_is_compared_by_its_tokens_alone(measured: Any) -> None:
    served = measured("null_model", "bfloat16", usual="float32")
    assert (served.outcome, served.fidelity, served.flags) == ("ok", None, ())
