"""Bounds and forecasts of models whose layers are not alike: mixtures, windows, states, towers, quantized ones."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit import by_hand

from claimbench.analysis import roofline
from claimbench.checkpoints import counting, quantized
from claimbench.cost_model import cost
from claimbench.cost_model.hardware import Hardware
from claimbench.cost_model.parallelism import device_bytes, largest_batch, ms_per_token, pass_seconds
from claimbench.cost_model.weight_bytes import Precision, expected_weight_bytes, read_weight_bytes, stored_precision
from claimbench.planning import forecast
from claimbench.schema.card import Card, Experts, KeptLayers, StoredFormat
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.cell import Cell, Checkpoint, Workload
from claimbench.schema.load import InferenceLoad, Layout

MIXED = Card(
    model_type="mixed",
    layers=3,
    hidden=8,
    vocabulary=100,
    weights=11_000,
    looked_up=800,
    towers=200,
    in_layers=9_000,
    matrices=8_900,
    largest=4_000,
    widest=16,
    experts=Experts(weights=8_000, count=8, active=2),
    kept=(
        KeptLayers(layers=1, token_values=16, query_values=32),
        KeptLayers(layers=1, token_values=16, query_values=32, window=11),
        KeptLayers(layers=1, fixed_values=50),
    ),
)
ALWAYS = 11_000 - 800 - 200 - 8_000
BYTES_BOUND = Hardware(read_bytes_per_s=1.0, memory_bytes=1, flops_per_s=1e30, link_bytes_per_s=1e30)
GROUPS = {"first": {"weights": {"num_bits": 8}}, "second": {"weights": {"num_bits": 4}}}
LAYOUTS: tuple[Layout, ...] = ("pipeline", "tensor_parallel", "zero")


def load(layout: Layout = "pipeline", card: Card = MIXED, **changed: Any) -> InferenceLoad:
    values: dict[str, Any] = {"card": card, "layout": layout, "devices": 1, "value_bytes": 2, "batch": 1}
    return InferenceLoad(**values | {"prompt_tokens": 6, "new_tokens": 30} | changed)


def cell(**workload: Any) -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="mixed", source="file://mixed", card=MIXED),
        backend="transformers",
        workload=Workload(**{"prompt": "a b c", "prompt_tokens": 6, "new_tokens": 30, **workload}),
        device="cpu",
    )


def test_a_ceiling_counts_the_experts_of_one_token_whatever_the_batch() -> None:
    assert MIXED.step_weights == ALWAYS + 8_000 * 2 / 8
    one, many = (pass_seconds(load(batch=batch), 1, 0, BYTES_BOUND) for batch in (1, 64))
    assert many - one == pytest.approx(63 * 2 * MIXED.kept_values(1))


def test_a_forecast_expects_more_experts_the_more_tokens_there_are() -> None:
    expected = [MIXED.expected_weights(tokens) for tokens in (1, 2, 64)]
    assert expected[0] == MIXED.step_weights
    assert expected[1] == ALWAYS + 8_000 * (1 - (6 / 8) ** 2)
    assert expected[2] == pytest.approx(ALWAYS + 8_000, rel=1e-6)
    dense = cost.architecture("smollm2-135m")
    assert expected_weight_bytes(dense, 64, Precision(2)) == read_weight_bytes(dense, Precision(2))


def test_a_forecast_of_a_mixture_s_prompt_reads_nearly_all_experts() -> None:
    """Where memory is what limits: a prompt of 64 tokens and 30 steps, at a byte a second."""
    slow = Ceilings(read_bytes_per_s=1.0, matmul_flops_per_s={"float32": 1e30})
    found = forecast.generation_seconds(cell(prompt_tokens=64, new_tokens=1), slow)
    assert found == pytest.approx(forecast.BELOW_CEILING * 4 * (MIXED.expected_weights(64) + MIXED.kept_values(0)))
    assert found > forecast.BELOW_CEILING * 4 * (ALWAYS + 7_999)


def test_a_step_s_ceiling_is_below_the_mean_of_its_steps_where_a_window_fills() -> None:
    slow = Ceilings(read_bytes_per_s=1.0, matmul_flops_per_s={"float32": 1e30})
    limit = roofline.step_ms(cell(), slow, 6, {})
    assert limit is not None
    cached = [4 * MIXED.kept_values(length) for length in range(6, 6 + 29)]
    assert 4 * MIXED.step_weights < limit / 1e3 < 4 * MIXED.step_weights + sum(cached) / 29


@pytest.mark.parametrize(("held", "share"), [(1.0, 1.0), (0.5, 0.5), (2.0, 1.0), (0.0, 0.0)])
def test_a_cache_that_holds_less_counts_with_what_it_holds(held: float, share: float) -> None:
    slow = Ceilings(read_bytes_per_s=1.0, matmul_flops_per_s={"float32": 1e30})
    whole = cost.kv_bytes(MIXED, 1, 36, 4)
    limit = roofline.step_ms(cell(), slow, 6, {"step_weights": 1000, "kv_cache": int(whole * held)})
    assert limit is not None
    ends = 4 * (MIXED.kept_values(6) + MIXED.kept_values(6 + 28)) / 2
    assert limit / 1e3 == pytest.approx(1000 + share * ends)


def test_time_per_token_is_the_sum_of_its_steps_where_a_window_fills() -> None:
    seconds = pass_seconds(load(), 6, 0, BYTES_BOUND)
    seconds += sum(2 * (MIXED.step_weights + MIXED.kept_values(length + 1)) for length in range(6, 35))
    assert ms_per_token(load(), BYTES_BOUND) == pytest.approx(seconds / 30 * 1e3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_no_deal_of_unlike_layers_can_hold_less_than_the_bound(layout: Layout, devices: int) -> None:
    held = device_bytes(load(layout, devices=devices))
    assert held.weights <= 2 * MIXED.weights / devices
    assert held.weights == pytest.approx(2 * MIXED.weights / devices, rel=0.01)
    rows = device_bytes(load(layout, devices=devices, batch=2)).kv - held.kv
    alone = 2 * MIXED.kept_values(36)
    assert rows <= (alone if layout == "zero" else alone / devices)
    assert rows >= 0.7 * (alone if layout == "zero" else alone / devices)  # whole values alone are cut


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_largest_batch_of_a_mixture_is_the_last_that_fits(layout: Layout) -> None:
    asked = load(layout, devices=2)
    most = largest_batch(asked, 60_000)
    assert most > 1
    assert device_bytes(asked.model_copy(update={"batch": most})).total <= 60_000
    assert device_bytes(asked.model_copy(update={"batch": most + 1})).total > 60_000


def test_devices_share_a_mixture_s_step_and_wait_for_one_reduce_a_layer_at_least() -> None:
    one, two = (pass_seconds(load("tensor_parallel", devices=n), 1, 9, BYTES_BOUND) for n in (1, 2))
    assert one / 2 * 0.99 < two <= one / 2
    slow_link = BYTES_BOUND._replace(read_bytes_per_s=1e30, link_bytes_per_s=1.0)
    stream = 8 * 2
    assert pass_seconds(load("tensor_parallel", devices=2), 1, 9, slow_link) == pytest.approx(3 * stream)


def test_zero_gathers_neither_towers_nor_idle_experts() -> None:
    slow_link = BYTES_BOUND._replace(read_bytes_per_s=1e30, link_bytes_per_s=1.0)
    received = pass_seconds(load("zero", devices=2), 1, 9, slow_link)
    assert received == pytest.approx(2 * (MIXED.step_weights + 800) / 2)


def test_a_card_of_layers_that_are_alike_has_the_bounds_of_its_formula() -> None:
    formula = cost.architecture("smollm2-135m")
    uniform = MIXED.model_copy(update={"shape": formula._asdict()})
    for layout in LAYOUTS:
        named = load(layout, devices=3).model_copy(update={"card": None, "architecture": "smollm2-135m"})
        assert device_bytes(load(layout, devices=3, card=uniform)) == device_bytes(named)
        assert ms_per_token(load(layout, devices=3, card=uniform), BYTES_BOUND) == ms_per_token(named, BYTES_BOUND)


@pytest.mark.parametrize(
    ("said", "bits", "experts_alone"),
    [
        ({"quant_method": "mxfp4"}, 4.25, True),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8 + 32 / 128**2, False),
        ({"quant_method": "fp8"}, 8, False),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4, False),
        ({"quant_method": "gptq", "bits": 3}, 3, False),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4, False),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8, False),
        ({"quant_method": "compressed-tensors", "config_groups": GROUPS}, 4, False),
        ({"quant_method": "of tomorrow"}, quantized.LEAST_BITS, False),
        ({"quant_method": ["no", "name"], "bits": "four", "config_groups": [1]}, quantized.LEAST_BITS, False),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, 8, False),
    ],
)
def test_bits_of_a_quantized_checkpoint(said: dict[str, Any], bits: float, experts_alone: bool) -> None:
    wanted = StoredFormat(bits=bits, experts_alone=experts_alone)
    assert quantized.stored_format({"quantization_config": said}) == wanted
    assert quantized.stored_format({"text_config": {"quantization_config": said}}) == wanted
    assert quantized.stored_format({"model_type": "llama"}) is None


def test_a_quantized_checkpoint_is_held_to_fewer_bytes_in_every_bound() -> None:
    """Of a server nothing is known but this: with the bytes of bfloat16 its steps would beat their ceiling."""
    small = MIXED.model_copy(update={"stored": StoredFormat(bits=4)})
    experts = MIXED.model_copy(update={"stored": StoredFormat(bits=4, experts_alone=True)})
    read = [read_weight_bytes(card, stored_precision(card, 2)) for card in (small, experts, MIXED)]
    assert read[0] == MIXED.read_matrices / 2 + 2 * (MIXED.step_weights - MIXED.read_matrices)
    assert read[1] == 2_000 / 2 + 2 * (MIXED.step_weights - 2_000)
    assert read[2] == 2 * MIXED.step_weights
    assert device_bytes(load(card=small)).weights == 8_900 / 2 + 2 * (11_000 - 8_900)
    assert cost.step_bytes(small, 1, 0, 2) - cost.kv_bytes(small, 1, 0, 2) == read[0]


def test_the_frontier_of_a_published_mixture_is_known_before_it_is_fetched() -> None:
    """gpt-oss-20b at 4,096 tokens a row on one H100, added up by hand: weights in mxfp4, half the layers windowed."""
    paper = by_hand.gpt_oss()
    of_row = 2 * paper.kept_values(4096)
    weights = sum(role.parameters * by_hand.result(role.bits) / 8 for role in paper.roles)
    card = counting.count(by_hand.config_of("gpt-oss-20b"))
    asked = load(card=card, prompt_tokens=4000, new_tokens=96)
    most = largest_batch(asked, 80 * 2**30)
    logits_and_stream = 4 * card.vocabulary + 2 * (2 * card.hidden + card.widest)
    assert most == int((80 * 2**30 - weights) // (of_row + logits_and_stream))
