"""What a result depends on: executed code, libraries, or the lock of an environment of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from claimbench import keys
from claimbench.backends import null_model
from claimbench.cell import Cell, Checkpoint, Workload


@pytest.fixture
def cell() -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama?seed=0", architecture="tiny-llama"),
        backend="null_model",
        workload=Workload(prompt="Hello", new_tokens=4),
        device="cpu",
    )


def test_the_measuring_closure_holds_the_clock_and_not_the_report() -> None:
    closure = keys.import_closure(*keys.EXECUTED, "claimbench.backends.null_model")
    assert {"claimbench.clock", "claimbench.result", "claimbench.backends.null_model"} <= set(closure)
    assert not {"claimbench.report", "claimbench.judge", "claimbench.backends.transformers"} & set(closure)


def test_another_lock_is_another_key(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(null_model, "ENVIRONMENT", "family")
    lock = tmp_path / "envs/family.lock"
    lock.parent.mkdir()
    lock.write_text("package==1.0\n", encoding="utf-8")
    first = keys.key_of(cell, "machine")
    lock.write_text("package==2.0\n", encoding="utf-8")
    second = keys.key_of(cell, "machine")
    assert set(first.libraries) == {"envs/family.lock"}
    assert first.id != second.id


def test_the_machine_and_the_series_are_part_of_the_key(cell: Cell) -> None:
    ids = {keys.key_of(cell, machine, series).id for machine in ("one", "other") for series in (0, 1)}
    assert len(ids) == 4


def test_c_sources_are_part_of_what_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "PACKAGE", tmp_path / "claimbench")
    folder = tmp_path / "claimbench/native"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("", encoding="utf-8")
    hashes = set()
    for text in ("int one;", "int two;"):
        (folder / "step.c").write_text(text, encoding="utf-8")
        for cached in (keys._file_of, keys._read, keys.import_closure, keys.code_hash):
            cached.cache_clear()
        hashes.add(keys.code_hash("claimbench.native"))
    for cached in (keys._file_of, keys._read, keys.import_closure, keys.code_hash):
        cached.cache_clear()
    assert len(hashes) == 2
