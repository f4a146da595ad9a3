"""The page cache is brought into the state that a cell asks for, and what it holds is looked up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from claimbench.analysis import derive
from claimbench.errors import Unavailable
from claimbench.measuring import ceiling
from claimbench.system import page_cache

SIZE = 5 * 4096 + 17


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """On a disk; a temporary folder in memory cannot be dropped."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(SIZE))
    try:
        page_cache.prepare([path], "cold")
    except Unavailable as reason:
        pytest.skip(str(reason))
    return path


def test_cold_files_are_on_the_disk_alone_and_warm_ones_in_memory(file: Path) -> None:
    assert page_cache.cached([file]) == (SIZE, 0)
    assert page_cache.prepare([file], "warm") == (SIZE, SIZE)
    assert page_cache.prepare([file], "as_it_is") == (SIZE, SIZE)
    assert page_cache.prepare([file], "cold") == (SIZE, 0)


def test_reading_a_part_is_seen_as_a_part(file: Path) -> None:
    with file.open("rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        opened.read(100)
    assert page_cache.cached([file]).cached_bytes == 4096


def test_what_is_still_to_be_written_is_written_first(file: Path) -> None:
    file.write_bytes(bytes(SIZE))
    assert page_cache.prepare([file], "cold").cached_bytes == 0
    assert file.read_bytes() == bytes(SIZE)


def test_a_file_that_cannot_be_dropped_is_unavailable_and_not_called_cold() -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("no file system in memory here")
    path = memory / f"claimbench-test-{os.getpid()}"
    path.write_bytes(bytes(SIZE))
    try:
        with pytest.raises(Unavailable, match=r"100% of the checkpoint stays in memory"):
            page_cache.prepare([path], "cold")
        assert ceiling.file_read_rates(memory, 1 << 20)["cold"] is None
    finally:
        path.unlink()


def test_no_file_is_neither_cold_nor_warm() -> None:
    assert page_cache.prepare([], "cold").share == 0.0


def test_the_read_rate_of_a_file_is_measured_and_the_file_removed(file: Path) -> None:
    rates = ceiling.file_read_rates(file.parent, 1 << 22)
    assert set(rates) == {"cold", "warm"}
    assert all(rate and rate > 1e6 for rate in rates.values())
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_loading_is_told_in_bytes_per_second_and_by_what_lay_in_memory(made, lab) -> None:
    plan = lab.plan("experiments: {one: {question: How fast, cells: {plain: {}}}}")
    (planned,) = plan.cells.values()
    told = {"checkpoint": {"bytes": 4_000_000_000, "cached_bytes": 1_000_000_000}}
    numbers = derive.of_block(made(planned, 0, load_ns=2_000_000_000, telemetry=told))
    assert (numbers["load_gb_s"], numbers["checkpoint_cached_share"]) == (2.0, 0.25)
    without = derive.of_block(made(planned, 0))
    assert without["load_gb_s"] is None
    assert without["checkpoint_cached_share"] is None
