"""Accelerate deals layers out over devices and disk: the same tokens wherever weights lie, and a proof."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.contract.conftest import make_cell, rows_of

from claimbench import optimizations
from claimbench.backends import accelerate
from claimbench.errors import OutOfMemory, Unavailable, WrongOutput
from claimbench.schema.cell import Cell, OptimizationUse

pytestmark = pytest.mark.model
INT8 = OptimizationUse(name="bitsandbytes_int8", settings={"threshold": 6.0})
ON_DISK = {"offload": "disk", "device_share": 0.7}


def cell_with(*uses: OptimizationUse, device: str = "cpu", **options: Any) -> Cell:
    asked = accelerate.Options.model_validate(options).model_dump(mode="json")
    changed = {"backend": "accelerate", "options": asked, "optimizations": uses, "device": device}
    return make_cell().model_copy(update=changed)


Open = Callable[..., Any]


@pytest.fixture
def opened(tiny: Path) -> Iterator[Open]:
    sessions = []

    def open_session(*uses: OptimizationUse, **options: Any) -> Any:
        session = accelerate.load(cell_with(*uses, **options), tiny, None)
        sessions.append(session)
        return session

    yield open_session
    for session in sessions:
        session.close()


@pytest.mark.parametrize("options", [{}, ON_DISK, {"offload": "disk", "device_map": {"": "disk"}}])
def test_the_tokens_are_the_reference_s_wherever_the_weights_lie(
    opened: Open, plain_rows: list[list[int]], options: dict[str, Any]
) -> None:
    session = opened(**options)
    assert rows_of(session) == plain_rows
    assert session.prove()["placement"]["bytes"]


@pytest.mark.parametrize("name", sorted(accelerate.SEAMS - {"weights"}))
def test_a_technique_on_each_of_its_seams_runs_with_offloaded_weights(
    opened: Open, plain_rows: list[list[int]], name: str
) -> None:
    technique = {
        "attention": "sdpa",
        "cache": "static_cache",
        "grad": "no_grad",
        "history": "growing",
        "loop": "forward_loop",
    }[name]
    needed = (
        OptimizationUse(name=technique, settings=optimizations.settings_of(technique, {}).model_dump(mode="json")),
    )
    session = opened(*needed, **ON_DISK)
    assert rows_of(session) == plain_rows
    assert technique in session.prove()["optimizations"]


def test_offloaded_weights_are_on_the_disk_between_two_steps(opened: Open, tiny: Path) -> None:
    session, plain = opened(**ON_DISK), opened()
    placement, memory = session.prove()["placement"], session.memory()
    assert set(placement["device_map"].values()) == {"cpu", "disk"}
    assert placement["files"] == ["model.safetensors"]
    assert placement["away"] > 0
    away = [item for item in accelerate.held_weights(session.model) if item.is_away]
    assert {item.file for item in away} == {tiny / "model.safetensors"}
    assert memory["weights_on_disk"] == placement["bytes"]["disk"] > memory["weights"] / 2
    whole = plain.memory()
    assert (memory["weights"], memory["step_weights"]) == (whole["weights"], whole["step_weights"])
    assert "weights_on_disk" not in whole


def test_a_weight_that_stayed_on_the_device_is_found(opened: Open) -> None:
    session = opened(**ON_DISK)
    session.model.model.norm = opened().model.model.norm  # without the hook that would take it away again
    with pytest.raises(WrongOutput, match=r"model\.norm\.weight on disk, saw cpu"):
        session.prove()


def test_a_file_that_is_gone_is_found(opened: Open) -> None:
    held = accelerate.held_weights(opened(**ON_DISK).model)
    gone = [item._replace(file=Path("/nowhere/model.safetensors")) if item.file else item for item in held]
    with pytest.raises(WrongOutput, match="a file behind every offloaded weight"):
        accelerate.check_placement(gone, {item.name: item.place for item in held})


def test_the_weights_are_copied_to_the_disk_that_is_named_and_removed_afterwards(
    opened: Open, tmp_path: Path, plain_rows: list[list[int]]
) -> None:
    session = opened(**ON_DISK, offload_folder=str(tmp_path))
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    files = {item.file for item in accelerate.held_weights(session.model) if item.file}
    assert files == {folder / "model.safetensors"}
    assert rows_of(session) == plain_rows
    session.close()
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_cannot_load_leaves_no_copy(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="all modules fit"):
        opened(offload="disk", offload_folder=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_eight_bit_weights_go_through_the_same_seam(opened: Open) -> None:
    session = opened(INT8)
    proven = session.prove()
    assert proven["optimizations"]["bitsandbytes_int8"]["layers"] == 14
    assert proven["placement"]["device_map"] == {"": "cpu"}
    assert session.memory()["weights"] < opened().memory()["weights"]


def test_weights_that_have_no_room_are_out_of_memory_and_never_offloaded_unasked(opened: Open) -> None:
    with pytest.raises(OutOfMemory, match="had no room"):
        opened(max_memory={"cpu": 100_000})


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (cell_with(devices=2), "needs as many GPUs: a CPU is one device"),
        (cell_with(offload="cpu"), "in the CPU's memory already"),
        (cell_with(INT8, offload="disk"), "quantized weights cannot be offloaded"),
    ],
)
def test_what_this_machine_cannot_do_is_said_before_anything_is_loaded(cell: Cell, reason: str) -> None:
    assert reason in (accelerate.unavailable(cell) or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_disk_without_room_is_unavailable_with_the_numbers(opened: Open, tmp_path: Path) -> None:
    import subprocess

    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        with pytest.raises(Unavailable, match=r"has 6.55e-05 GB free"):
            opened(**ON_DISK, offload_folder=str(tmp_path))
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("parent", ["/proc", "/nowhere"])
def test_a_folder_that_cannot_be_written_to_is_unavailable(opened: Open, parent: str) -> None:
    with pytest.raises(Unavailable, match=f"offload folder {parent}"):
        opened(**ON_DISK, offload_folder=parent)
