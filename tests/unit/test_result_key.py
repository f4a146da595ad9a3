"""What a result depends on: executed code, libraries, or the lock of an environment of its own."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

import pytest

from claimbench import optimizations
from claimbench.backends import null_model
from claimbench.planning import code_hash, result_key
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Workload


@pytest.fixture
def cell() -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama?seed=0", architecture="tiny-llama"),
        backend="null_model",
        workload=Workload(prompt="Hello", new_tokens=4),
        device="cpu",
    )


def test_the_measuring_closure_holds_the_clock_and_not_the_report() -> None:
    closure = code_hash.import_closure(*result_key.EXECUTED, "claimbench.backends.null_model")
    assert {"claimbench.measuring.clock", "claimbench.schema.result", "claimbench.backends.null_model"} <= set(closure)
    assert not {"claimbench.reporting.report", "claimbench.judging.judge", "claimbench.backends.transformers"} & set(
        closure
    )


def test_another_lock_is_another_key(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(null_model, "ENVIRONMENT", "family")
    monkeypatch.setattr(result_key, "locks_folder", lambda: Path("envs"))
    lock = tmp_path / "envs/family.lock"
    lock.parent.mkdir()
    lock.write_text("package==1.0\n", encoding="utf-8")
    first = result_key.key_of(cell, "machine")
    lock.write_text("package==2.0\n", encoding="utf-8")
    second = result_key.key_of(cell, "machine")
    assert set(first.libraries) == {"envs/family.lock"}
    lock.write_text("# torch: here\npackage==2.0\n", encoding="utf-8")
    assert set(result_key.key_of(cell, "machine").libraries) == {
        "envs/family.lock",
        "envs/cpu.lock",
        "envs/cuda.lock",
    }
    assert first.id != second.id


def test_what_the_environment_names_is_part_of_the_key_and_is_not_told(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(null_model, "VARIABLES", ("CLAIMBENCH_SOME_URL",), raising=False)
    found = []
    for address in (None, "http://one:8080", "http://other:8080"):
        if address:
            monkeypatch.setenv("CLAIMBENCH_SOME_URL", address)
        result_key._outside.cache_clear()
        found.append(result_key.key_of(cell, "machine"))
    result_key._outside.cache_clear()
    assert len({key.id for key in found}) == 3
    assert "8080" not in "".join(key.model_dump_json() for key in found)


def test_a_program_that_is_installed_later_is_another_key(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = set()
    for version in (None, "1.0", "1.1"):
        monkeypatch.setattr(null_model, "programs", lambda version=version: {"program": version}, raising=False)
        result_key._outside.cache_clear()
        ids.add(result_key.key_of(cell, "machine").id)
    result_key._outside.cache_clear()
    assert len(ids) == 3


def test_what_the_machine_lacks_is_part_of_the_key_and_its_numbers_are_not(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = []
    for reason in (None, "not installed: x", "5 GB are free: free some", "7 GB are free: free some"):
        monkeypatch.setattr(null_model, "unavailable", lambda _, reason=reason: reason)
        ids.append(result_key.key_of(cell, "machine").id)
    assert len(set(ids)) == 3
    assert ids[2] == ids[3]


def test_a_plan_for_another_machine_does_not_ask_what_this_one_lacks(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAIMBENCH_MACHINE", "node.json")
    monkeypatch.setattr(null_model, "unavailable", lambda _: "2 ranks need 2 GPUs, and here are 0")
    assert result_key.key_of(cell, "machine").lacking is None


def test_the_machine_and_the_series_are_part_of_the_key(cell: Cell) -> None:
    ids = {result_key.key_of(cell, machine, series).id for machine in ("one", "other") for series in (0, 1)}
    assert len(ids) == 4


def test_c_sources_are_part_of_what_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_hash, "PACKAGE", tmp_path / "claimbench")
    folder = tmp_path / "claimbench/engine/native"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("", encoding="utf-8")
    hashes = set()
    for text in ("int one;", "int two;"):
        (folder / "step.c").write_text(text, encoding="utf-8")
        code_hash.forget()
        hashes.add(code_hash.code_hash("claimbench.engine.native"))
    code_hash.forget()
    assert len(hashes) == 2


def test_libraries_of_the_backend_and_of_each_optimization_are_in_the_key_by_their_versions(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(null_model, "LIBRARIES", ("numpy",))
    uses = tuple(OptimizationUse(name=name) for name in ("bitsandbytes_int8", "torchao_int8"))
    used = cell.model_copy(update={"optimizations": uses})
    installed = {name: metadata.version(name) for name in ("numpy", "bitsandbytes", "torchao")}
    found = result_key.key_of(used, "machine").libraries
    assert {name: found[name] for name in installed} == installed
    assert result_key.key_of(cell, "machine").libraries == {"numpy": installed["numpy"]}


def test_what_an_environment_compiles_is_part_of_the_key(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(null_model, "ENVIRONMENT", "family")
    monkeypatch.setattr(result_key, "locks_folder", lambda: tmp_path)
    without = result_key.key_of(cell, "machine")
    assert without.libraries == {"envs/family.lock": None}
    found = []
    for program in ("one", "two"):
        (tmp_path / "family.build.py").write_text(program, encoding="utf-8")
        found.append(result_key.key_of(cell, "machine"))
    assert set(found[0].libraries) == {"envs/family.lock", "envs/family.build.py"}
    assert len({key.id for key in (without, *found)}) == 3


def test_the_code_of_a_key_is_that_which_every_cell_executes_and_its_own(cell: Cell) -> None:
    own = "claimbench.backends.null_model"
    assert result_key.key_of(cell, "machine").code == code_hash.code_hash(*result_key.EXECUTED, own)
    used = cell.model_copy(update={"optimizations": (OptimizationUse(name="sdpa"),)})
    expected = code_hash.code_hash(*result_key.EXECUTED, own, optimizations.module_of("sdpa"))
    assert result_key.key_of(used, "machine").code == expected
    assert expected not in (code_hash.code_hash(own), result_key.key_of(cell, "machine").code)
    assert result_key.key_of(cell, "machine").series == 0


def test_a_lock_is_known_by_the_first_sixteen_digits_of_its_sha256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_key, "locks_folder", lambda: tmp_path)
    (tmp_path / "family.lock").write_bytes(b"package==1.0")
    expected = hashlib.sha256(b"package==1.0").hexdigest()[:16]
    assert result_key.locked("family") == {"envs/family.lock": expected}
