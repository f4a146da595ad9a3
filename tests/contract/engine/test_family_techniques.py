"""Techniques on families unlike Llama: each gives the same tokens and proves itself, or says what is lacking."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine.conftest import Use, rows_of
from tests.contract.engine.test_families import MODELS
from tests.contract.engine.test_techniques import NAMES, module, shown
from tests.contract.models import save

from claimbench import backends, optimizations
from claimbench.errors import Unavailable
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Workload

pytestmark = [pytest.mark.model, pytest.mark.wide]

KINDS = ("gemma2", "gpt_oss", "falcon, groups")
"""Norms around halves, caps and windows; sinks and experts; parallel layers."""
WITHOUT_DRAFT = [name for name in NAMES if not hasattr(module(name), "CHECKPOINT_SETTING")]
REFUSED = {
    ("gemma2", "prefill_flash"): "soft cap",
    ("gemma2", "flash_everywhere"): "soft cap",
    ("gpt_oss", "prefill_flash"): "sinks",
    ("gpt_oss", "flash_everywhere"): "sinks",
    ("gpt_oss", "compiled_step"): "mixture of experts",
    ("gpt_oss", "compiled_block"): "mixture of experts",
}
ON_A_CPU = {"cuda_graphs", "compiled_graphs", "triton_step"}
GATED = {("gemma2", "fused_gelu"), ("gpt_oss", "fused_gelu")}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    kind, changed = MODELS[request.param]
    where = tmp_path_factory.mktemp(kind)
    save(kind, where, **changed)
    return kind, where


def load(folder: Path, uses: list[Use], **workload: Any) -> Any:
    named = dict((use, {}) if isinstance(use, str) else use for use in uses)
    cell = Cell(
        checkpoint=Checkpoint(name="tiny", source="random://hf://tiny/tiny"),
        backend="engine",
        optimizations=tuple(
            OptimizationUse(name=name, settings=optimizations.settings_of(name, named[name]).model_dump(mode="json"))
            for name in sorted(named)
        ),
        workload=Workload(**{"prompt": "hello hello hello", "new_tokens": 6, **workload}),
        device="cpu",
    )
    return backends.find("engine").load(cell, folder, None)


@cache
def plain_rows(folder: Path, batch: int, shortest: int | None) -> list[list[int]]:
    session = load(folder, [], batch=batch, shortest=shortest)
    rows = rows_of(session)
    session.close()
    return rows


@pytest.mark.parametrize("name", WITHOUT_DRAFT)
def test_a_technique_holds_or_names_what_is_lacking(model: tuple[str, Path], name: str) -> None:
    (kind, folder), (uses, workload) = model, shown(name)
    why = REFUSED.get((kind, name))
    if why or name in ON_A_CPU or (kind, name) in GATED:
        with pytest.raises(Unavailable, match=rf"^{name}: .*{why or ''}"):
            load(folder, uses, **workload)
        return
    session = load(folder, uses, **workload)
    rows = rows_of(session)
    session.prove()
    session.close()
    if module(name).EXACT and "sampling" not in workload:
        assert rows == plain_rows(folder, workload.get("batch", 1), workload.get("shortest"))


IN_C: dict[str, list[Use]] = {
    "several tokens a pass": ["lookup_decoding"],
    "int8": [("weight_int8", {"compiled": False})],
    "int4": [("weight_int4", {"compiled": False})],
}


@pytest.mark.parametrize("others", IN_C.values(), ids=IN_C)
def test_the_step_in_c_holds_with_others(model: tuple[str, Path], others: list[Use]) -> None:
    """Codes are those that the modules have, and drafts change no token."""
    import torch

    in_c, plain = load(model[1], [*others, "cache_static", "cpp_block"]), load(model[1], others)
    rows = rows_of(plain)
    assert rows_of(in_c) == rows
    in_c.prove()
    torch.testing.assert_close(in_c.log_probs(rows[0]), plain.log_probs(rows[0]), rtol=1e-2, atol=1e-2)
    in_c.close()
    plain.close()


def test_a_step_reads_only_the_experts_that_a_token_takes(tmp_path: Path) -> None:
    kind, changed = MODELS["gpt_oss"]
    save(kind, tmp_path, **changed)
    plain, in_c = load(tmp_path, []), load(tmp_path, ["cache_static", "cpp_block"])
    expert = 4 * (3 * 64 * 128 + 2 * 128 + 64)  # bytes of its matrices and biases
    held, read = plain.memory()["weights"], plain.memory()["step_weights"]
    embedding = plain.decoder.setup.model.embedding.nbytes
    assert held - embedding - read == 4 * 2 * expert  # two of four experts, in each of four layers
    assert in_c.memory()["step_weights"] == pytest.approx(read, rel=0.05)
    plain.close()
    in_c.close()
