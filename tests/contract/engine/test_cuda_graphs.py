"""Which graph a step replays, and what it reads: with a capture that runs the function eagerly in place of a GPU's."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine.conftest import FAMILIES, LoadEngine, Use, engine_cell, rows_of

from claimbench import backends, optimizations
from claimbench.errors import Unavailable, WrongOutput
from claimbench.system import compilers

pytestmark = pytest.mark.model


class Recorder:
    """Captures by keeping the function: a replay runs it and writes to the same place."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.captures += 1
        logits = run().clone()

        def replay() -> None:
            self.replays += 1
            logits.copy_(run())

        return replay, logits


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    from claimbench.engine.steps import cuda_graphs

    recorder = Recorder()
    for name in ("cuda_graphs", "compiled_graphs"):
        monkeypatch.setattr(optimizations.find(name), "unavailable", lambda *_: None)
    monkeypatch.setattr(cuda_graphs, "capture_on_gpu", lambda _: recorder)
    return recorder


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (255, 256)])
def test_batches_are_padded_to_a_power_of_two(rows: int, bucket: int) -> None:
    from claimbench.engine.steps.cuda_graphs import batch_bucket

    assert batch_bucket(rows) == bucket


@pytest.mark.parametrize(("keys", "bucket"), [(1, 128), (128, 128), (129, 256), (300, 300)])
def test_keys_are_padded_to_a_multiple_within_the_slots(keys: int, bucket: int) -> None:
    from claimbench.engine.steps.cuda_graphs import key_bucket

    assert key_bucket(keys, 128, slots=300) == bucket


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("workload", [{}, {"batch": 3}, {"batch": 3, "shortest": 4}], ids=["one", "batch", "ragged"])
def test_replayed_steps_give_the_same_tokens(
    architecture: str, workload: dict[str, Any], load_engine: LoadEngine, recorder: Recorder
) -> None:
    session = load_engine("cuda_graphs", "cache_static", architecture=architecture, **workload)
    rows = rows_of(load_engine(architecture=architecture, **workload))
    assert rows_of(session) == rows
    assert rows_of(session) == rows, "the second generation differs from the first"
    assert (recorder.captures, recorder.replays) == (1, 18)


def test_a_graph_serves_as_many_lengths_as_its_bucket_has(load_engine: LoadEngine, recorder: Recorder) -> None:
    plain, uses = load_engine(batch=2), ("cache_static", ("cuda_graphs", {"key_multiple": 4}))
    session = load_engine(*uses, batch=2)
    assert rows_of(session) == rows_of(plain)
    prompt = session.prompt_tokens
    lengths = {min(-(-(prompt + step) // 4) * 4, prompt + 9) for step in range(1, 10)}
    assert sorted(shape.keys for shape in session.decoder.step.captured) == sorted(lengths)
    assert recorder.captures == len(lengths)
    assert {shape.rows for shape in session.decoder.step.captured} == {2}


def test_the_cache_moves_in_once_for_all_generations(load_engine: LoadEngine, recorder: Recorder) -> None:
    session = load_engine("cuda_graphs", "cache_static", batch=3)
    rows_of(session)
    homes = session.decoder.step.home.places
    [(_, place)] = homes.items()
    assert place[0][0].shape[0] == 4
    before = [tensor.data_ptr() for pair in place for tensor in pair]
    rows_of(session)
    assert [tensor.data_ptr() for tensor in session.decoder.cache.tensors()] == before
    assert len(homes) == 1


WITH: list[list[Use]] = [
    ["simple_mask"],
    ["prefill_flash", "last_token_head", "details_on_demand", "vectorised_processing"],
    [("lookup_decoding", {"tokens": 3})],
    [("self_speculation", {"tokens": 2})],
]


@pytest.mark.parametrize("workload", [{"batch": 2}, {"batch": 3, "shortest": 4}], ids=["even", "ragged"])
@pytest.mark.parametrize("others", WITH, ids=str)
def test_other_techniques_work_inside_of_a_graph(
    others: list[Use], workload: dict[str, Any], load_engine: LoadEngine, recorder: Recorder
) -> None:
    session = load_engine("cuda_graphs", "cache_static", *others, **workload)
    rows = rows_of(load_engine(**workload))
    assert rows_of(session) == rows
    assert rows_of(session) == rows
    assert recorder.replays >= recorder.captures > 0


def test_in_the_open_nothing_is_replayed(load_engine: LoadEngine, recorder: Recorder) -> None:
    from claimbench.engine.steps.static import in_the_open

    session = load_engine("cuda_graphs", "cache_static")
    rows, replays = rows_of(session), recorder.replays
    with in_the_open():
        assert rows_of(session) == rows
    assert recorder.replays == replays


def test_without_a_gpu_there_are_no_graphs(load_engine: LoadEngine) -> None:
    with pytest.raises(Unavailable, match="cuda_graphs: captures CUDA graphs, and a CPU has none"):
        load_engine("cuda_graphs", "cache_static")


def record(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """A capture as a GPU makes it: the operations and their addresses are kept, and no Python runs again.

    Warm-ups come first, outside of what is kept, as they do there.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map

    class Tape(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[tuple[Any, Any, Any, Any]] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            self.kept.append((func, args, kwargs or {}, out))
            return out

        def replay(self) -> None:
            for func, args, kwargs, out in self.kept:
                if any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns):
                    continue  # a view: where it lies is known
                again = func(*args, **kwargs)
                if not func._schema.is_mutable:
                    tree_map(lambda kept, new: kept.copy_(new) if hasattr(kept, "copy_") else None, out, again)

    for _ in range(3):
        run()
    tape = Tape()
    with tape:
        logits = run()
    return tape.replay, logits


def stand_in_for_megatron(scores: Any, mask: Any, scale: float) -> Any:
    return (scores * scale).masked_fill(mask, -10000.0).softmax(-1)


SOFTMAXES: list[list[Use]] = [[], [("fused_softmax", {"how": "megatron"})], [("fused_softmax", {"how": "jit"})]]


@pytest.mark.parametrize("mask", [[], ["simple_mask"]], ids=str)
@pytest.mark.parametrize("softmax", SOFTMAXES, ids=str)
@pytest.mark.parametrize("workload", [{"batch": 2}, {"batch": 3, "shortest": 4}], ids=["even", "ragged"])
def test_what_is_derived_from_a_mask_is_of_the_step_that_a_graph_replays(
    workload: dict[str, Any],
    softmax: list[Use],
    mask: list[Use],
    load_engine: LoadEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every softmax with every mask, where nothing of a step's Python runs when it is replayed."""
    from claimbench.engine.kernels import softmax as kernels
    from claimbench.engine.steps import cuda_graphs

    for name in ("cuda_graphs", "fused_softmax"):
        monkeypatch.setattr(optimizations.find(name), "unavailable", lambda *_: None)
    monkeypatch.setattr(cuda_graphs, "capture_on_gpu", lambda _: record)
    monkeypatch.setattr(kernels, "_megatron_forward", lambda: stand_in_for_megatron)
    session = load_engine(("cuda_graphs", {"key_multiple": 8}), "cache_static", *mask, *softmax, **workload)
    rows = rows_of(load_engine(**workload))
    assert rows_of(session) == rows
    assert rows_of(session) == rows


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("workload", [{}, {"batch": 3, "shortest": 4}], ids=["one", "ragged"])
def test_a_graph_for_each_bucket_of_keys_is_of_compiled_code(
    architecture: str, workload: dict[str, Any], load_engine: LoadEngine, recorder: Recorder
) -> None:
    """Compiled for the first bucket, for all others, and for all slots at most, however many buckets there are."""
    use: Use = ("compiled_graphs", {"key_multiple": 2, "code": "traced"})
    session = load_engine(use, "cache_static", architecture=architecture, new_tokens=16, **workload)
    rows = rows_of(load_engine(architecture=architecture, new_tokens=16, **workload))
    assert rows_of(session) == rows
    assert rows_of(session) == rows, "the second generation differs from the first"
    buckets = sorted(shape.keys for shape in session.decoder.step.captured)
    assert recorder.captures == len(buckets) >= 7
    assert buckets == sorted(set(buckets))
    assert session.compilations.so_far().graphs <= 3


@pytest.mark.skipif(compilers.no_compiler("cpu") is not None, reason=str(compilers.no_compiler("cpu")))
def test_fused_code_writes_keys_where_the_graph_reads_them(load_engine: LoadEngine, recorder: Recorder) -> None:
    use: Use = ("compiled_graphs", {"key_multiple": 4, "mode": "default"})
    session = load_engine(use, "cache_static", batch=2)
    assert rows_of(session) == rows_of(load_engine(batch=2))


def test_a_graph_of_code_that_was_not_compiled_is_no_proof(
    load_engine: LoadEngine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU's record would say is put in: on a CPU no graph is launched."""
    import torch

    from claimbench.engine.evidence import watch

    settings = optimizations.settings_of("compiled_graphs", {"code": "traced"})
    module: Any = optimizations.find("compiled_graphs")

    def seen(launched: int) -> Any:
        session = load_engine(("compiled_graphs", {"code": "traced"}), "cache_static")
        rows_of(session)
        found = watch(session.decoder, session.generate, 2, session.compilations.so_far())
        steps = tuple(replace(one, launched={**one.launched, "cudaGraphLaunch": launched}) for one in found.steps)
        return replace(found, steps=steps)

    assert module.prove(seen(1), settings)["graphs"] == 1
    with pytest.raises(WrongOutput, match="compiled_graphs did not run: expected one CUDA graph"):
        module.prove(seen(0), settings)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with pytest.raises(WrongOutput, match="compiled_graphs did not run: expected a step that was compiled"):
        module.prove(seen(1), settings)


@pytest.mark.parametrize("name", ["engine", "transformers"])
def test_whatever_is_compiled_for_a_gpu_is_tuned_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that turns it on for itself alone would be compared with others that are without."""
    import torch._inductor.config as settings

    monkeypatch.delenv(compilers.COORDINATE_DESCENT, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    backend = backends.find(name)
    for device, tuned in (("cpu", False), ("cuda", True)):
        with settings.patch(coordinate_descent_tuning=False):
            with suppress(Exception):  # there is no such checkpoint, and no such device: it is set before either counts
                backend.load(engine_cell(backend=name, device=device), Path("nowhere"), None)
            assert settings.coordinate_descent_tuning is tuned
            assert (os.environ.get(compilers.COORDINATE_DESCENT) == "1") is tuned
