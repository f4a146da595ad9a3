"""The whole step in Triton, interpreted: the tokens of the engine's own, in families of every trait, and its proof."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine.conftest import FAMILIES, LoadEngine, Use, rows_of
from tests.contract.engine.test_families import MODELS
from tests.contract.engine.test_family_techniques import load
from tests.contract.models import save

from claimbench import optimizations
from claimbench.engine.kernels.launches import counting
from claimbench.errors import Unavailable, WrongOutput
from claimbench.schema.cell import Cell

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("interpreted")]

STEP: tuple[Use, ...] = ("cache_static", "triton_step")
KINDS = {
    "llama": 5,
    "qwen3": 6,
    "gemma2": 7,
    "olmo2": 8,
    "cohere": 5,
    "phi": 5,
    "gpt2": 5,
    "bloom": 5,
    "falcon, groups": 5,
    "stablelm": 5,
    "opt": 5,
    "mistral": 5,
}
"""Kernels a layer of one part of the keys: norms of queries and keys are one more, and so is each behind a half."""
RAGGED: dict[str, Any] = {"batch": 3, "shortest": 4}


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_says_the_same(kind: str, tmp_path: Path) -> None:
    name, changed = MODELS.get(kind, (kind, {}))
    save(name, tmp_path, **changed)
    plain = load(tmp_path, [], new_tokens=5, **RAGGED)
    rows = rows_of(plain)
    session = load(tmp_path, list(STEP), new_tokens=5, **RAGGED)
    assert rows_of(session) == rows
    assert rows_of(session) == rows, "the second generation differs from the first"
    found = session.prove()["optimizations"]["triton_step"]
    layers = session.decoder.spec.arch.layers
    assert set(found["kernels_per_step"]) == {KINDS[kind] * layers + 2}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_other_techniques_keep_their_parts_of_a_generation(architecture: str, load_engine: LoadEngine) -> None:
    others = ["simple_mask", "fused_layer_norm", "last_token_head", "vectorised_processing", "details_on_demand"]
    workload: dict[str, Any] = {"architecture": architecture, "new_tokens": 3}
    rows = rows_of(load_engine(**workload))
    session = load_engine(*STEP, *others, **workload)
    assert rows_of(session) == rows
    assert session.memory()["step_weights"] == load_engine(**workload).memory()["step_weights"]


@pytest.mark.parametrize("form", ["weight_int8", "weight_int4", "weight_fp8"])
def test_codes_are_as_close_to_the_weights_as_their_format_is(form: str, load_engine: LoadEngine) -> None:
    """In divergence and in surprise, the kernels add nothing to what rounding the weights takes."""
    codes: Use = (form, {"compiled": False})
    workload: dict[str, Any] = {"new_tokens": 4}
    plain, coded, ours = load_engine(**workload), load_engine(codes, **workload), load_engine(*STEP, codes, **workload)
    tokens = rows_of(plain)[0]
    exact, theirs, own = (session.log_probs(tokens) for session in (plain, coded, ours))
    divergences = [float((exact.exp() * (exact - each)).sum(-1).mean()) for each in (theirs, own)]
    surprises = [-float(each.gather(1, each.new_tensor([tokens]).long().T).mean()) for each in (theirs, own)]
    assert 0 < divergences[0] < 0.5
    assert divergences[1] == pytest.approx(divergences[0], rel=1e-2, abs=1e-5)
    assert surprises[1] == pytest.approx(surprises[0], rel=1e-3)
    rows_of(ours)
    assert {form, "triton_step"} <= set(ours.prove()["optimizations"])


def test_half_types_stay_close_to_the_plain_way(load_engine: LoadEngine) -> None:
    workload: dict[str, Any] = {"dtype": "float16", "new_tokens": 4}
    plain, session = load_engine(**workload), load_engine(*STEP, **workload)
    tokens = rows_of(plain)[0]
    assert float((session.log_probs(tokens).exp() - plain.log_probs(tokens).exp()).abs().max()) < 0.1


def test_a_step_whose_kernels_did_not_run_is_no_proof(load_engine: LoadEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the modules ran instead, nor, on a GPU, where its record has no kernels or no graph."""
    from claimbench.engine.evidence import watch
    from claimbench.proof import Compiled

    module: Any = optimizations.find("triton_step")
    session = load_engine(*STEP, new_tokens=3)
    rows_of(session)
    seen = watch(session.decoder, session.generate, 2, Compiled())
    module.prove(seen, module.Settings())
    matrices, layers = 4 * seen.layers + 1, seen.layers

    def on_gpu(gemv: int, graphs: int) -> Any:
        ran = {"decode_gemv": gemv, "decode_attention": layers}
        steps = [
            replace(step, operators=step.operators | ran, launched={"cudaGraphLaunch": graphs}) for step in seen.steps
        ]
        return replace(seen, device="cuda", steps=tuple(steps))

    module.prove(on_gpu(matrices, 1), module.Settings())
    for gemv, graphs in ((0, 1), (matrices - 1, 1), (matrices, 0)):
        with pytest.raises(WrongOutput, match="triton_step did not run"):
            module.prove(on_gpu(gemv, graphs), module.Settings())
    monkeypatch.setattr(module, "apply", lambda *_: None)
    other = load_engine(*STEP, new_tokens=3)
    rows_of(other)
    with pytest.raises(WrongOutput, match="triton_step did not run"):
        other.prove()


def test_launches_and_bytes_are_counted_from_what_a_step_is_given(load_engine: LoadEngine) -> None:
    session = load_engine(*STEP, new_tokens=3)
    rows_of(session)
    model, keys = session.decoder.setup.model, session.decoder.cache.length
    with counting(keys) as count:
        session.log_probs([5])
    arch, layers = model.spec.arch, len(model.layers)
    assert len(count.launches) == 5 * layers + 2
    looked_up = arch.hidden * 4 + 2 * layers * arch.head_dim * 4
    assert count.weight_bytes == session.memory()["step_weights"] + looked_up
    assert count.cache_bytes == 2 * layers * arch.kv_heads * keys * arch.head_dim * 4


def test_without_a_gpu_it_is_unavailable(load_engine: LoadEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(Unavailable, match=r"triton_step: the kernels are Triton's for a GPU, and there is none"):
        load_engine(*STEP)


def test_what_is_interpreted_is_never_measured(load_engine: LoadEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    module: Any = optimizations.find("triton_step")
    cell: Cell = load_engine("cache_static").cell.model_copy(update={"device": "cuda"})
    assert "TRITON_INTERPRET is set" in module.unavailable(cell, module.Settings())
    monkeypatch.delenv("TRITON_INTERPRET")
    assert module.unavailable(cell, module.Settings()) is None
    many = cell.model_copy(update={"workload": cell.workload.model_copy(update={"batch": 5})})
    assert module.unavailable(many, module.Settings()) == "the kernels take up to 4 rows, and the batch has 5"


@pytest.mark.parametrize(("kind", "reason"), [("mixtral", "mixture of experts"), ("gpt_oss", "mixture of experts")])
def test_a_family_without_the_traits_is_refused_by_name(kind: str, reason: str, tmp_path: Path) -> None:
    save(kind, tmp_path)
    with pytest.raises(Unavailable, match=f"triton_step: .*{reason}"):
        load(tmp_path, list(STEP))
