"""The plain engine is the model that Transformers runs, in every family, alone and in padded batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine.conftest import FAMILIES, LoadEngine, engine_cell, rows_of, save_family

from claimbench import backends

pytestmark = pytest.mark.model

WORKLOADS: dict[str, dict[str, Any]] = {"one": {}, "batch": {"batch": 3}, "ragged": {"batch": 3, "shortest": 4}}


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_it_says_what_transformers_says(architecture: str, workload: dict[str, Any], load_engine: LoadEngine) -> None:
    ours = load_engine(architecture=architecture, **workload)
    theirs = load_engine(architecture=architecture, backend="transformers", **workload)
    rows = rows_of(theirs)
    assert rows_of(ours) == rows
    assert rows_of(ours) == rows, "the second generation differs from the first"
    assert float((ours.log_probs(rows[0]) - theirs.log_probs(rows[0])).abs().max()) < 1e-4


def test_it_knows_the_error_function_form_of_gelu(tmp_path: Path) -> None:
    """StarCoder's config asks for it; SantaCoder's and BLOOM's for the tanh form."""
    folder = save_family(tmp_path, "tiny-bigcode", activation_function="gelu")
    cells = [engine_cell(architecture="tiny-bigcode", backend=name) for name in ("engine", "transformers")]
    ours, theirs = (backends.find(cell.backend).load(cell, folder, None) for cell in cells)
    rows = rows_of(theirs)
    assert rows_of(ours) == rows
    assert float((ours.log_probs(rows[0]) - theirs.log_probs(rows[0])).abs().max()) < 1e-5


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_step_reads_the_weights_that_the_cost_model_counts(architecture: str, load_engine: LoadEngine) -> None:
    session = load_engine(architecture=architecture)
    assert session.memory()["step_weights"] == 4 * session.decoder.spec.arch.step_weights


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_runs_in_16_bits(dtype: str, load_engine: LoadEngine) -> None:
    session = load_engine(dtype=dtype, batch=2)
    assert [len(row) for row in rows_of(session)] == [10, 10]
    assert set(session.prove()["weights"]) == {f"Parameter {dtype}", "Tensor float32"}


def test_the_plain_cache_grows_by_a_token_a_step(load_engine: LoadEngine) -> None:
    session = load_engine(batch=2)
    rows_of(session)
    held = session.prove()["cache_bytes"]
    arch = session.decoder.spec.arch
    column = 2 * arch.layers * 2 * arch.kv_heads * arch.head_dim * 4
    assert held == [(session.prompt_tokens + step) * column for step in range(1, len(held) + 1)]
