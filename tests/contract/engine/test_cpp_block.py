"""The native step beside what changes its matrices and what asks it for several tokens a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine.conftest import FAMILIES, LoadEngine, Use, rows_of

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
    from claimbench.proof import Compiled
    from claimbench.witness import watch

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
    kinds = {type(module).__name__ for module in ours.decoder.model.modules()}
    assert "NativeLinear" in kinds
    assert not kinds & {"GroupLinear", "PlainLinear"}


@pytest.mark.parametrize("use", LESS_CODES.values(), ids=LESS_CODES)
def test_a_step_that_packs_plain_weights_proves_no_codes(
    use: Use, load_engine: LoadEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from claimbench.native import engine_step

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

    from claimbench.native import engine_step

    monkeypatch.setattr(engine_step, "OF_TYPE", {torch.float32: "int8"})
    with pytest.raises(WrongOutput, match="cpp_block did not run"):
        load_engine(*IN_C).prove()


DRAFTERS: dict[str, Use] = {
    "draft_decoding": ("draft_decoding", {"draft": "tiny-draft", "tokens": 3}),
    "lookup_decoding": ("lookup_decoding", {"tokens": 4}),
    "self_speculation": ("self_speculation", {"tokens": 3}),
}


@pytest.mark.parametrize("workload", [{}, RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize("use", DRAFTERS.values(), ids=DRAFTERS)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_drafts_are_judged_in_one_native_call(
    architecture: str, use: Use, workload: dict[str, Any], load_engine: LoadEngine, families: dict[str, Path]
) -> None:
    workload = {"architecture": architecture, "prompt": "ab" * 8, "new_tokens": 20, **workload}
    draft = families[architecture] if use[0] == "draft_decoding" else None
    session = load_engine(*IN_C, use, draft=draft, **workload)
    assert rows_of(session) == rows_of(load_engine(**workload))
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
