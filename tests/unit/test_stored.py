"""Bytes in a quantized checkpoint's files: what is held, what a step reads, and what of it is a mixture's experts'."""

from __future__ import annotations

from pathlib import Path

import pytest

from claimbench.checkpoints import safetensors_file, stored
from claimbench.checkpoints.safetensors_file import StreamedTensor
from claimbench.checkpoints.stored import Entry
from claimbench.schema.card import Card, StoredBytes

LAYER = "model.layers.0.mlp"


def zeros(name: str, dtype: str, values: int) -> StreamedTensor:
    size = values * safetensors_file.DTYPE_BYTES[dtype]
    return StreamedTensor(name, dtype, (values,), lambda: iter([bytes(size)]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Matrices in 8 bits beside their scales, and a file that a library does not read."""
    tensors = [zeros(f"{LAYER}.weight", "I8", 12), zeros(f"{LAYER}.scale", "BF16", 3)]
    safetensors_file.write(tmp_path / "model.safetensors", tensors)
    safetensors_file.write(tmp_path / "other.safetensors", [zeros("other", "F32", 5)])
    return tmp_path


def card(**more: object) -> Card:
    sizes = {"layers": 1, "hidden": 2, "vocabulary": 2, "weights": 12, "in_layers": 12, "matrices": 12, "largest": 12}
    return Card.model_validate({"model_type": "llama", "widest": 2, **sizes, **more})


def test_bytes_are_by_type_and_those_of_experts_apart() -> None:
    found = stored.sums(
        [
            Entry(f"{LAYER}.weight", "I8", 100),
            Entry("model.layers.1.mlp.weight", "I8", 50),
            Entry(f"{LAYER}.scales", "F16", 10),
            Entry(f"{LAYER}.experts.3.weight", "I8", 400),
            Entry(f"{LAYER}.experts.4.weight", "I8", 400),
        ]
    )
    assert found == StoredBytes(held={"I8": 950, "F16": 10}, read={"I8": 150, "F16": 10}, experts={"I8": 800})


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (f"{LAYER}.g_idx", 0),
        (f"{LAYER}.qzeros", 0),
        (f"{LAYER}.weight.quant_state.bitsandbytes__nf4", 0),
        ("vision_tower.layers.0.weight", 0),
        ("model.visual.blocks.0.weight", 0),
        ("model.mtp.layers.0.weight", 0),
        (f"{LAYER}.weight.absmax", 4),
        (f"{LAYER}.qzeros.weight", 9),
        (f"{LAYER}.absmax.weight", 9),
    ],
)
def test_side_values_and_other_parts_are_held_and_not_read(name: str, read: int) -> None:
    others = [Entry("a", "F32", 7), Entry(name, "F32", 9), Entry("b", "F32", 2)]
    assert stored.sums(others) == StoredBytes(held={"F32": 18}, read={"F32": 9 + read})


def test_entries_are_of_the_files_that_are_read(folder: Path) -> None:
    assert set(stored.entries(folder)) == {Entry(f"{LAYER}.weight", "I8", 12), Entry(f"{LAYER}.scale", "BF16", 6)}
    (folder / "model.safetensors").unlink()
    (folder / "other.safetensors").unlink()
    assert stored.entries(folder) == []


def test_a_card_has_them_where_it_is_quantized_and_lacks_them(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain, quantized = card(), card(quantized="test")
    assert stored.with_stored_bytes(plain, folder) is plain
    found = stored.with_stored_bytes(quantized, folder)
    assert found == quantized.model_copy(
        update={"stored_bytes": StoredBytes(held={"I8": 12, "BF16": 6}, read={"I8": 12, "BF16": 6})}
    )
    known = card(quantized="test", stored_bytes=StoredBytes(held={"I8": 1}))
    assert stored.with_stored_bytes(known, folder) is known
    assert stored.with_stored_bytes(quantized, tmp_path_factory.mktemp("empty")) is quantized
