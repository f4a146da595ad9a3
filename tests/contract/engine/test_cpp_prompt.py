"""The prompt in native calls: the same tokens and log-probabilities as through the modules, padding or not."""

from __future__ import annotations

from typing import Any

import pytest
from tests.contract.engine.conftest import FAMILIES, LoadEngine, Use, rows_of

from claimbench import optimizations
from claimbench.engine.native import engine_step, instruction_sets
from claimbench.errors import Unavailable, WrongOutput

pytestmark = pytest.mark.model

WHOLE: list[Use] = ["cpp_block", "cache_static", "cpp_prompt"]
RAGGED: dict[str, Any] = {"batch": 3, "shortest": 4, "prompt": "ab" * 20}


@pytest.mark.parametrize("at_once", [3, 16, 128])
@pytest.mark.parametrize("workload", [{"prompt": "ab" * 20}, RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_prompt_says_the_same_in_however_many_passes(
    architecture: str,
    workload: dict[str, Any],
    at_once: int,
    load_engine: LoadEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three lines at once of three rows are a token of each: at first of padding alone."""
    monkeypatch.setattr(engine_step, "LINES_AT_ONCE", at_once)
    plain = load_engine(architecture=architecture, **workload)
    rows, details = rows_of(plain), plain.decoder.details
    session = load_engine(*WHOLE, architecture=architecture, **workload)
    assert rows_of(session) == rows
    assert session.decoder.details.prompt.isfinite().all(), "a line of padding sees nothing: no division by zero"
    padding = session.decoder.batch.padding
    for row, after in enumerate(padding.tolist()):  # what padding is given is nobody's business
        ours, theirs = session.decoder.details.prompt[row, after:], details.prompt[row, after:]
        assert float((ours - theirs).abs().max()) < 1e-4
    assert float((session.log_probs(rows[0]) - plain.log_probs(rows[0])).abs().max()) < 1e-4
    calls = session.prove()["optimizations"]["cpp_prompt"]["native_calls"]
    positions = session.decoder.batch.prompt.shape[1]
    assert calls == -(-positions // max(1, at_once // session.decoder.batch.prompt.shape[0]))


@pytest.mark.parametrize("use", ["weight_int8", "weight_int4", "bfloat16"])
@pytest.mark.parametrize("workload", [{"prompt": "ab" * 20}, RAGGED], ids=["one", "ragged"])
def test_coded_and_narrow_matrices_read_a_prompt(use: str, workload: dict[str, Any], load_engine: LoadEngine) -> None:
    asked = {"dtype": "bfloat16"} if use == "bfloat16" else {}
    more: list[Use] = [] if use == "bfloat16" else [(use, {"compiled": False})]
    ours = load_engine(*WHOLE, *more, **asked, **workload)
    theirs = load_engine("cpp_block", "cache_static", *more, **asked, **workload)
    said = rows_of(theirs)[0]
    rows_of(ours)
    assert float((ours.log_probs(said) - theirs.log_probs(said)).abs().max()) < 0.1
    assert "cpp_prompt" in ours.prove()["optimizations"]


def test_a_prompt_that_went_through_the_modules_proves_nothing(load_engine: LoadEngine) -> None:
    from claimbench.engine.evidence import watch
    from claimbench.proof import Compiled

    session = load_engine("cpp_block", "cache_static")
    seen = watch(session.decoder, session.generate, 4, Compiled())
    module: Any = optimizations.find("cpp_prompt")
    with pytest.raises(WrongOutput, match="cpp_prompt did not run"):
        module.prove(seen, module.Settings())


@pytest.mark.parametrize("name", instruction_sets.NAMES)
def test_instructions_are_those_that_were_asked_for(name: str, load_engine: LoadEngine) -> None:
    reason = instruction_sets.lacks(name)
    if reason:
        with pytest.raises(Unavailable, match=name):
            load_engine(("cpp_block", {"instructions": name}), "cache_static")
        return
    session = load_engine(("cpp_block", {"instructions": name}), "cache_static", "cpp_prompt")
    assert rows_of(session) == rows_of(load_engine())
    assert session.prove()["optimizations"]["cpp_block"]["instructions"] == name


def test_other_instructions_than_those_asked_for_are_no_proof(
    load_engine: LoadEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = instruction_sets.here()
    if len(names) < 2:
        pytest.skip("this CPU has one set of instructions alone")
    monkeypatch.setattr(engine_step, "flags_of", lambda _: instruction_sets.SETS[names[0]].flags)
    with pytest.raises(WrongOutput, match="cpp_block did not run"):
        load_engine(("cpp_block", {"instructions": names[-1]}), "cache_static").prove()
