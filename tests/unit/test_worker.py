"""What a block's worker does in which order: when it is warm, what its peak is of, what its neighbours took."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from claimbench.backends import null_model
from claimbench.measuring import worker
from claimbench.measuring.block_request import BlockRequest
from claimbench.schema.cell import Cell, Checkpoint, Protocol, Workload
from claimbench.schema.result import Sample
from claimbench.system import machine


def cell(**protocol: Any) -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama"),
        backend="null_model",
        workload=Workload(prompt="Hello", new_tokens=2),
        device="cpu",
        protocol=Protocol(**protocol),
    )


@pytest.fixture
def said() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.mark.parametrize(
    ("walls", "least", "most", "generations"),
    [
        ((100, 99), 1, 9, 2),
        ((300, 200, 100, 99), 1, 9, 4),
        ((300, 200, 96, 95, 94), 1, 9, 4),
        ((200, 190, 190), 2, 9, 3),  # exactly 5 % faster is not steady yet
        ((200, 191), 2, 9, 2),
        ((100, 120), 1, 9, 2),  # slower is
        ((100, 100, 100), 3, 9, 3),
        ((400, 300, 200, 100), 1, 3, 3),
        ((400,), 1, 1, 1),
    ],
)
def test_a_block_is_warm_once_a_generation_is_no_longer_clearly_faster_than_the_one_before(
    walls: tuple[int, ...],
    least: int,
    most: int,
    generations: int,
    said: list[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = iter(walls)

    def generate(*_: object) -> tuple[Sample, list[list[int]]]:
        wall = next(left)
        return Sample(wall_ns=wall, step_ns=(wall,), step_tokens=(1,), tokens_sha256="0"), []

    monkeypatch.setattr(worker, "_generate", generate)
    warmed = cell(warmup_min=least, warmup_max=most)
    worker.warm_up(warmed, SimpleNamespace(), lambda event, **content: said.append((event, content)))  # type: ignore[arg-type]
    took = [content["sample"]["wall_ns"] for event, content in said if event == "warmup"]
    assert took == list(walls[:generations])
    phases = [content["name"] for event, content in said if event == "phase"]
    assert phases == ["first call", *["warm-up"] * (generations - 1)]


def test_a_peak_is_reset_between_the_load_and_the_first_generation(
    said: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    load, generate = null_model.load, worker._generate

    def loading(*given: Any) -> Any:
        done.append("load")
        return load(*given)

    def generating(*given: Any) -> Any:
        done.append("generate")
        return generate(*given)

    monkeypatch.setattr(null_model, "load", loading)
    monkeypatch.setattr(worker, "_generate", generating)
    monkeypatch.setattr(worker.memory, "reset_peak", lambda: done.append("reset"))
    monkeypatch.setattr(worker.memory, "peaks", lambda _: done.append("peaks") or {"rss_peak": 1})
    request = BlockRequest(cell=cell(warmup_min=1, warmup_max=1, samples=2), checkpoint=Path("nothing"))
    worker.run_block(request, lambda event, **content: said.append((event, content)))
    assert done == ["load", "reset", "generate", "generate", "generate", "peaks"]
    assert said[-1] == ("done", {})
    assert dict(said)["memory"]["memory"]["rss_peak"] == 1


def test_what_others_took_while_it_was_timed_is_said(
    said: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four cores in ten seconds: three seconds of its own, five in all, and one that the hypervisor took."""
    ticks: Iterator[machine.CpuTicks] = iter(
        [
            {"busy": 100.0, "own": 10.0, "steal": 7.0, "unread": {}},
            {"busy": 105.0, "own": 13.0, "steal": 8.0, "unread": {}},
        ]
    )
    seconds = iter([50.0, 60.0])
    monkeypatch.setattr(worker.machine, "cpu_ticks", lambda: next(ticks))
    monkeypatch.setattr(worker.machine, "affinity_cores", lambda: 4)
    monkeypatch.setattr(worker.machine, "cores_worth", lambda: 4.0)
    monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    session = null_model.load(cell(), Path("nothing"), None)
    worker._timed_samples(cell(samples=1), session, lambda event, **content: said.append((event, content)), None)
    assert dict(said)["conditions"] == {"conditions": {"foreign_cpu": 0.05, "steal": 0.025}, "unread": {}}
