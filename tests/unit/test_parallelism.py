"""What a model takes on several devices, checked by hand on BLOOM-176B: 70 layers of 14336, 112 heads, 250880 words."""

from __future__ import annotations

from typing import Any

import pytest

from claimbench.cost_model.hardware import HARDWARE, Hardware
from claimbench.cost_model.parallelism import (
    _fullest_stage,
    all_reduce_seconds,
    device_bytes,
    largest_batch,
    ms_per_token,
    pass_seconds,
)
from claimbench.schema.load import InferenceLoad, Layout

A100 = HARDWARE["NVIDIA A100-SXM4-80GB"]
MATRICES = 12 * 14336**2  # of a layer: 4 for attention, 8 for the feed-forward
LAYER = MATRICES + 13 * 14336  # biases 3 + 1 + 4 + 1 times the width, and two norms of 2
EMBEDDING = 250880 * 14336
WEIGHTS = 70 * LAYER + EMBEDDING + 4 * 14336
KV_TOKEN = 2 * 70 * 14336 * 2  # bytes of one token of one row, 16 bit


def load(layout: Layout = "tensor_parallel", **changed: Any) -> InferenceLoad:
    values: dict[str, Any] = {"architecture": "bloom-176b", "layout": layout, "devices": 8, "value_bytes": 2}
    return InferenceLoad(**{**values, "batch": 1, "prompt_tokens": 6, "new_tokens": 100, **changed})


def test_on_one_device_every_layout_holds_the_whole_model() -> None:
    for layout in ("pipeline", "tensor_parallel", "zero"):
        held = device_bytes(load(layout, devices=1))
        assert (held.weights, held.gathered, held.kv) == (2 * WEIGHTS, 0, 106 * KV_TOKEN)


def test_tensor_parallel_devices_hold_an_eighth_of_matrices_and_of_the_cache() -> None:
    held = device_bytes(load(batch=128))
    assert held.weights == pytest.approx(2 * WEIGHTS / 8, rel=1e-3)  # norms and added biases are whole on each
    assert held.weights > 2 * WEIGHTS / 8
    assert held.kv == 128 * 106 * KV_TOKEN / 8


def test_a_pipeline_s_fullest_device_holds_whole_layers_with_their_cache() -> None:
    """70 layers on 8 devices: 9 on seven of them leave 7 beside the embedding, which weighs less than two layers."""
    held = device_bytes(load("pipeline", batch=32))
    assert held.weights == 2 * 9 * LAYER
    assert held.kv == 32 * 106 * KV_TOKEN * 9 / 70
    assert 2 * EMBEDDING < 2 * 2 * LAYER


@pytest.mark.parametrize(
    ("layers", "devices", "ends", "deal"),
    [(4, 1, 1.0, (4, 1)), (4, 2, 0.0, (2, 1)), (4, 2, 2.0, (3, 0)), (4, 2, 9.0, (0, 1)), (2, 3, 0.5, (1, 0))],
)
def test_layers_are_dealt_so_that_the_fullest_device_holds_least(
    layers: int, devices: int, ends: float, deal: tuple[int, int]
) -> None:
    assert _fullest_stage(layers, devices, ends, 1.0) == deal


def test_zero_holds_a_part_of_the_weights_a_gathered_matrix_and_the_whole_cache() -> None:
    held = device_bytes(load("zero", batch=8))
    assert held.weights == pytest.approx(2 * WEIGHTS / 8)
    assert held.gathered == 2 * EMBEDDING * 7 / 8  # the largest matrix, beside this device's part of it
    assert held.kv == 8 * 106 * KV_TOKEN


def test_eight_bit_layers_halve_the_layers_and_leave_the_embedding() -> None:
    held = device_bytes(load("pipeline", devices=1, layer_bits=8))
    assert held.weights == 2 * WEIGHTS - 70 * MATRICES


def test_the_largest_batch_is_the_last_that_fits() -> None:
    for layout in ("pipeline", "tensor_parallel", "zero"):
        batch = largest_batch(load(layout), A100.memory_bytes)
        assert device_bytes(load(layout, batch=batch)).total <= A100.memory_bytes
        assert device_bytes(load(layout, batch=batch + 1)).total > A100.memory_bytes
    assert largest_batch(load("pipeline", devices=4), A100.memory_bytes) == 0  # 88 GB of weights on each


def test_a_pipeline_s_step_reads_all_weights_at_one_device_s_bandwidth() -> None:
    """352.5 GB at 2039 GB/s are 172.9 ms; the rest is keys and values, and seven hops of a stream of 28.7 kB."""
    step = pass_seconds(load("pipeline"), 1, 50, A100)
    by_hand = (2 * WEIGHTS + 51 * KV_TOKEN) / 2039e9 + 7 * 14336 * 2 / 300e9
    assert step == pytest.approx(by_hand)
    assert step == pytest.approx(0.173, rel=1e-3)


def test_a_tensor_parallel_step_reads_at_all_devices_bandwidth_and_waits_for_two_reduces_a_layer() -> None:
    step = pass_seconds(load(batch=128), 1, 50, A100)
    reading = (2 * WEIGHTS + 128 * 51 * KV_TOKEN) / 8 / 2039e9
    reducing = 140 * 2 * (7 / 8) * 128 * 14336 * 2 / 300e9
    assert step == pytest.approx(reading + reducing, rel=1e-3)
    assert all_reduce_seconds(1.0, 1, A100) == 0


def test_a_step_with_many_rows_is_limited_by_operations() -> None:
    slow = Hardware(read_bytes_per_s=1e15, memory_bytes=1, flops_per_s=1e12, link_bytes_per_s=1e15)
    step = pass_seconds(load("pipeline", batch=100), 1, 0, slow)
    flops = 2 * 100 * (70 * MATRICES + EMBEDDING + 70 * 2 * 14336)
    assert step == pytest.approx(flops / 1e12)
    assert pass_seconds(load("pipeline", batch=100, layer_bits=8), 1, 0, slow) == pytest.approx(step / 2)


def test_zero_receives_seven_eighths_of_all_weights_at_every_step() -> None:
    """308 GB at 300 GB/s are 1.03 s, whatever the batch."""
    for batch in (1, 8):
        assert pass_seconds(load("zero", batch=batch), 1, 50, A100) == pytest.approx(1.028, rel=1e-3)


def test_wall_time_is_shared_by_the_tokens_of_all_rows() -> None:
    one, eight = ms_per_token(load(), A100), ms_per_token(load(batch=8), A100)
    assert one == pytest.approx(21.65, rel=1e-3)
    assert eight == pytest.approx(one / 8, rel=0.02)


PUBLISHED: list[tuple[Layout, int, float | None, int]] = [
    ("pipeline", 8, None, 32),
    ("pipeline", 8, 8, 32),
    ("tensor_parallel", 8, None, 128),
    ("tensor_parallel", 8, 8, 256),
    ("zero", 8, None, 8),
    ("pipeline", 4, 8, 16),
    ("pipeline", 4, 8, 40),  # the document's text, against its own table
    ("tensor_parallel", 4, 8, 64),
    ("tensor_parallel", 4, 8, 128),  # the same
]


@pytest.mark.parametrize(("layout", "devices", "layer_bits", "batch"), PUBLISHED)
def test_no_batch_that_the_document_ran_is_one_that_cannot_fit(
    layout: Layout, devices: int, layer_bits: float | None, batch: int
) -> None:
    """The model is a bound, so it must never forbid what ran. It does not tell the two figures on 4 GPUs apart."""
    asked = load(layout, devices=devices, layer_bits=layer_bits)
    assert largest_batch(asked, A100.memory_bytes) >= batch
