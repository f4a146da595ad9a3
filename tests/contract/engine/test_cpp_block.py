"""The native step beside what changes its matrices and what asks it for several tokens a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine.conftest import FAMILIES, LoadEngine, RowsOf, Use, rows_of

from claimbench import optimizations
from claimbench.errors import WrongOutput

pytestmark = pytest.mark.model

IN_C: list[Use] = ["cpp_block", "cache_static"]
LESS_CODES: dict[str, Use] = {
    "weight_int8": ("weight_int8", {"compiled": False}),
    "weight_int4": ("weight_int4", {"compiled": False}),
    "weight_int4, head too": ("weight_int4", {"compiled": False, "head_bits": 4}),
}
RAGGED: dict[str, Any] = {"batch": 3, "shortest": 4}


def seen_of(session: Any) -> Any:
    from claimbench.engine.evidence import watch
    from claimbench.proof import Compiled

    return watch(session.decoder, session.generate, 4, Compiled())


@pytest.mark.parametrize("use", LESS_CODES.values(), ids=LESS_CODES)
@pytest.mark.parametrize("workload", [{}, RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_codes_are_those_of_the_modules_and_held_once(
    architecture: str, workload: dict[str, Any], use: Use, load_engine: LoadEngine
) -> None:
    ours = load_engine(*IN_C, use, architecture=architecture, **workload)
    theirs = load_engine(use, architecture=architecture, **workload)
    said = rows_of(theirs)[0]
    assert float((ours.log_probs(said) - theirs.log_probs(said)).abs().max()) < 0.02
    assert "NativeLinear" in modules_of(ours)
    assert not modules_of(ours) & {"GroupLinear", "PlainLinear"}


@pytest.mark.parametrize("use", LESS_CODES.values(), ids=LESS_CODES)
def test_a_step_that_packs_plain_weights_proves_no_codes(
    use: Use, load_engine: LoadEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from claimbench.engine.native import engine_step

    monkeypatch.setattr(engine_step, "OF_BITS", {4: "float32", 8: "float32"})
    session = load_engine(*IN_C, use)
    seen = seen_of(session)
    for technique in session.cell.optimizations:
        module: Any = optimizations.find(technique.name)
        if technique.name == "cache_static":
            continue
        with pytest.raises(WrongOutput, match=f"{technique.name} did not run"):
            module.prove(seen, module.Settings(**technique.settings))


def test_a_step_that_packs_codes_unasked_is_not_proven(
    load_engine: LoadEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from claimbench.engine.native import engine_step

    monkeypatch.setattr(engine_step, "OF_TYPE", {torch.float32: "int8"})
    with pytest.raises(WrongOutput, match="cpp_block did not run"):
        load_engine(*IN_C).prove()


def modules_of(session: Any) -> set[str]:
    return {type(module).__name__ for module in session.decoder.setup.model.modules()}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("workload", [{}, RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_prompt_says_the_same_whether_matrices_are_shared_or_not(
    architecture: str, workload: dict[str, Any], shared: bool, load_engine: LoadEngine
) -> None:
    workload = {"architecture": architecture, **workload}
    session = load_engine(("cpp_block", {"shared": shared}), "cache_static", **workload)
    assert ("NativeLinear" in modules_of(session), "PlainLinear" in modules_of(session)) == (shared, not shared)
    plain = load_engine(**workload)
    rows = rows_of(plain)
    assert rows_of(session) == rows
    assert float((session.log_probs(rows[0]) - plain.log_probs(rows[0])).abs().max()) < 1e-4
    assert session.prove()["optimizations"]["cpp_block"]["shared"] == shared


@pytest.mark.parametrize("other", ["fast_linear", "reused_buffers"])
def test_modules_keep_their_matrices_where_another_technique_needs_them(other: str, load_engine: LoadEngine) -> None:
    from claimbench.errors import Unavailable

    session = load_engine(*IN_C, other)
    rows_of(session)
    assert "NativeLinear" not in modules_of(session)
    assert set(session.prove()["optimizations"]) == {"cpp_block", "cache_static", other}
    with pytest.raises(Unavailable, match=f"{other} needs matrices of the modules' own"):
        load_engine(("cpp_block", {"shared": True}), "cache_static", other)


def test_a_prompt_in_bfloat16_is_left_to_pytorch(load_engine: LoadEngine) -> None:
    session = load_engine(*IN_C, dtype="bfloat16")
    rows_of(session)
    assert "NativeLinear" not in modules_of(session)
    assert session.prove()["optimizations"]["cpp_block"]["matrices"] == {"bfloat16": 9}
    shared = load_engine(("cpp_block", {"shared": True}), "cache_static", dtype="bfloat16")
    rows = rows_of(shared)
    assert float((session.log_probs(rows[0]) - shared.log_probs(rows[0])).abs().max()) < 0.1


DRAFTERS: dict[str, Use] = {
    "draft_decoding": ("draft_decoding", {"draft": "tiny-draft", "tokens": 3}),
    "lookup_decoding": ("lookup_decoding", {"tokens": 4}),
    "self_speculation": ("self_speculation", {"tokens": 3}),
}


@pytest.mark.parametrize("workload", [{}, RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize("use", DRAFTERS.values(), ids=DRAFTERS)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_drafts_are_judged_in_one_native_call(
    architecture: str,
    use: Use,
    workload: dict[str, Any],
    load_engine: LoadEngine,
    told: RowsOf,
    families: dict[str, Path],
) -> None:
    workload = {"architecture": architecture, "prompt": "ab" * 8, "new_tokens": 20, **workload}
    draft = families[architecture] if use[0] == "draft_decoding" else None
    session = load_engine(*IN_C, use, draft=draft, **workload)
    assert rows_of(session) == told(**workload)
    proof = session.prove()["optimizations"]
    assert {use[0], "cpp_block"} <= set(proof)
    seen = seen_of(session)
    judging = [step for step in seen.steps if step.widest_lookup > 2]
    assert judging, "no pass judged several drafts"
    drafted = {"draft_decoding": 3, "lookup_decoding": 0, "self_speculation": 3}[use[0]]
    for step in judging:
        # drafts cost a call each; judging them is one more, whatever their number
        assert step.called("NativeDecoder.step") <= drafted + 1


def test_the_first_layers_draft_with_the_step_s_own_matrices(load_engine: LoadEngine) -> None:
    session, plain = load_engine(*IN_C, ("self_speculation", {"tokens": 3})), load_engine(*IN_C)
    rows_of(session)
    assert session.memory()["weights"] == plain.memory()["weights"]
