"""Compiled steps: one graph for every length and every layer, and nothing inside it is hidden from the proofs."""

from __future__ import annotations

from typing import Any

import pytest
from tests.contract.engine.conftest import LoadEngine, Use, engine_cell, rows_of

from claimbench import optimizations
from claimbench.errors import Unavailable, WrongOutput
from claimbench.system import compilers

pytestmark = pytest.mark.model

COMPILED = ("compiled_block", "compiled_step")


def use(name: str, code: str = "traced") -> Use:
    return name, {"code": code}


@pytest.mark.skipif(compilers.no_compiler("cpu") is not None, reason=str(compilers.no_compiler("cpu")))
@pytest.mark.parametrize("name", COMPILED)
def test_fused_code_is_made_once_for_all_generations(name: str, load_engine: LoadEngine) -> None:
    session = load_engine(use(name, "fused"), "cache_static")
    rows = rows_of(load_engine())
    assert rows_of(session) == rows
    assert rows_of(session) == rows
    found = session.prove()
    assert (found["graphs"], found["recompiles"], found["graph_breaks"]) == (1, 0, 0)


@pytest.mark.parametrize("name", COMPILED)
def test_one_graph_serves_every_length_and_layer_of_a_ragged_batch(name: str, load_engine: LoadEngine) -> None:
    workload: dict[str, Any] = {"architecture": "tiny-bloom", "batch": 3, "shortest": 4, "new_tokens": 20}
    session = load_engine(use(name), "cache_static", **workload)
    assert rows_of(session) == rows_of(load_engine(**workload))
    found = session.prove()
    assert (found["graphs"], found["recompiles"]) == (1, 0)
    layers = session.decoder.spec.arch.layers
    regions = found["optimizations"][name]["compiled_regions"]
    assert set(regions) == {layers if name == "compiled_block" else 1}


@pytest.mark.parametrize("name", COMPILED)
def test_judging_drafts_takes_one_more_graph_for_each_width_at_most(name: str, load_engine: LoadEngine) -> None:
    session = load_engine(
        use(name), "cache_static", ("lookup_decoding", {"tokens": 4}), prompt="abababab", new_tokens=30
    )
    assert rows_of(session) == rows_of(load_engine(prompt="abababab", new_tokens=30))
    assert session.prove()["graphs"] <= 3  # one token, the first width of several, and any width


@pytest.mark.parametrize("name", COMPILED)
def test_what_compiled_code_consists_of_is_seen(name: str, load_engine: LoadEngine) -> None:
    """The plain norm runs inside the graph: counted by calls in the open, and not called when timed."""
    from claimbench.engine.evidence import watch

    session = load_engine(use(name), "cache_static")
    rows_of(session)
    seen = watch(session.decoder, session.generate, 2, session.compilations.so_far())
    norms = 2 * seen.layers + 1
    outside = 1 if name == "compiled_block" else 0  # the last norm, after the layers
    for step in seen.steps:
        assert step.called("PlainNorm.forward") == norms
        assert step.timed_calls.get("claimbench.engine.model.parts:PlainNorm.forward", 0) == outside
        assert step.operators.get("aten::rsqrt", 0) == norms


def test_a_step_that_is_not_compiled_is_no_proof(load_engine: LoadEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    session = load_engine(use("compiled_step"), "cache_static")
    rows_of(session)
    with pytest.raises(WrongOutput, match="compiled_step did not run"):
        session.prove()


@pytest.mark.parametrize("name", COMPILED)
def test_without_a_compiler_fused_code_is_unavailable(
    name: str, load_engine: LoadEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Unavailable, match=f"{name}: no C\\+\\+ compiler 'no-such-compiler' on PATH"):
        load_engine(name, "cache_static")
    module: Any = optimizations.find(name)
    assert module.unavailable(engine_cell(use(name)), module.Settings(code="traced")) is None


@pytest.mark.parametrize("name", COMPILED)
def test_whatever_compiled_code_writes_to_is_told_to_stay_where_it_is(
    name: str, load_engine: LoadEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Inductor makes no CUDA graph of it, and says so in a debug log alone."""
    from claimbench.engine.steps import static

    written: list[bool] = []

    def watch(graph: Any, _: Any) -> Any:
        for node in graph.graph.nodes:
            if node.op == "call_method" and node.target == "index_copy_":
                tensor = node.args[0]
                assert tensor.op == "placeholder", "it writes into a view of an input"
                written.append("_dynamo_static_input_type" in tensor.meta.get("tensor_dict", {}))
        return graph.forward

    monkeypatch.setattr(static, "how_to_compile", lambda *_: {"backend": watch})
    session = load_engine(use(name), "cache_static")
    assert rows_of(session) == rows_of(load_engine())
    layers = session.decoder.spec.arch.layers
    assert written == [True] * (2 if name == "compiled_block" else 2 * layers)
