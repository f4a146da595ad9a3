"""A search for the largest batch that fits, on real processes: out of memory as an exception and by a memory limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.faults.test_blocks import cell_with

from claimbench.checkpoints.shard import shard
from claimbench.cost_model.parallelism import largest_batch
from claimbench.measuring import frontier
from claimbench.measuring.measure import measure
from claimbench.planning.cell_cost import load_of
from claimbench.planning.result_key import key_of
from claimbench.schema import result
from claimbench.schema.cell import Cell, Checkpoint, Protocol, Workload
from claimbench.schema.frontier import read as read_frontier


def swept(folder: Path, cell: Cell, batches: tuple[int, ...], **more: Any) -> list[Path]:
    """Results of a sweep, each behind the next smaller one."""
    paths: list[Path] = []
    for batch in batches:
        path = folder / f"swept-{batch}.json"
        smaller = paths[-1] if paths else None
        at = cell.model_copy(update={"workload": cell.workload.model_copy(update={"batch": batch})})
        measure(at, 0, key_of(cell, "test-machine"), path, smaller=smaller, **more)
        paths.append(path)
    return paths


def test_the_gap_is_halved_in_fresh_processes_and_every_trial_is_recorded(tmp_path: Path) -> None:
    cell, output = cell_with(fits_batch=5), tmp_path / "search" / "frontier.json"
    paths = swept(tmp_path, cell, (2, 8, 16), checkpoint=None)
    found = frontier.find(cell, key_of(cell, "test-machine"), paths, output, checkpoint=None)
    assert (found.fits, found.fails) == (5, 6)
    assert [(one.batch, one.outcome) for one in found.trials] == [
        *((2, "ok"), (8, "oom"), (16, "implied-oom")),
        *((5, "ok"), (6, "oom")),
    ]
    assert read_frontier(output) == found
    assert sorted(path.name for path in output.parent.iterdir()) == ["5.json", "6.json", "frontier.json"]


def test_a_search_that_was_interrupted_tries_nothing_twice(tmp_path: Path) -> None:
    cell, output = cell_with(fits_batch=5), tmp_path / "search" / "frontier.json"
    paths, key = swept(tmp_path, cell, (2, 8), checkpoint=None), key_of(cell_with(), "test-machine")
    first = frontier.find(cell, key, paths, output, checkpoint=None)
    stamps = {path: path.stat().st_mtime_ns for path in output.parent.glob("[0-9]*.json")}
    output.unlink()
    assert frontier.find(cell, key, paths, output, checkpoint=None) == first
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.model
def test_a_real_model_beyond_its_memory_limit_is_out_of_memory_and_the_forecast_forbade_it(tmp_path: Path) -> None:
    limit, tiny = 6_000_000_000, Checkpoint(name="tiny", source="random://tiny-bloom?seed=0", architecture="tiny-bloom")
    shard(tiny, tmp_path / "fetched", tmp_path / "tiny", 10**9)
    cell = Cell(
        checkpoint=tiny,
        backend="transformers",
        workload=Workload(prompt="Hello", prompt_tokens=64, new_tokens=2),
        device="cpu",
        protocol=Protocol(samples=1, warmup_max=1, timeout_s=300, memory_limit=limit, threads=1),
    )
    paths = swept(tmp_path, cell, (2, 100_000, 200_000), checkpoint=tmp_path / "tiny")
    small, large, larger = map(result.read, paths)
    assert small.outcome == "ok"
    assert larger.outcome == "implied-oom"
    assert (large.outcome, "memory" in (large.reason or "")) == ("oom", True)
    load = load_of(cell)
    assert load is not None
    assert 2 < largest_batch(load, limit) < 100_000
