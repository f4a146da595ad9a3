"""docs/ceilings.md: what five published models cost, added up by hand, beside what the product counts from a config."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from tests.unit import by_hand
from tests.unit.by_hand import BANDWIDTHS, LENGTHS, MODELS, Paper

from claimbench.checkpoints import counting
from claimbench.cost_model import cost
from claimbench.cost_model.hardware import HARDWARE, Hardware
from claimbench.cost_model.parallelism import pass_seconds
from claimbench.cost_model.weight_bytes import Precision, held_weight_bytes, read_weight_bytes
from claimbench.schema.card import Card
from claimbench.schema.load import InferenceLoad

PUBLISHED: dict[str, tuple[float, float]] = {
    # parameters in all, and active: model cards of the makers, and README_WEIGHTS.md of DeepSeek-V3
    "llama-3.1-8b": (8.03e9, 8.03e9),
    "gemma-3-27b": (27.4e9, 27.0e9),
    "qwen3-30b-a3b": (30.5e9, 3.3e9),
    "gpt-oss-20b": (20.9e9, 3.6e9),
    "deepseek-v3": (671e9, 37e9),
}
H100 = HARDWARE["NVIDIA H100 80GB HBM3"]


@cache
def counted(name: str) -> Card:
    return counting.count(by_hand.config_of(name))


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[str, Paper, Card]:
    return request.param, MODELS[request.param](), counted(request.param)


def test_the_page_is_what_the_sums_say() -> None:
    assert by_hand.PAGE.read_text(encoding="utf-8") == by_hand.page()


def test_paper_can_be_added_up() -> None:
    assert by_hand.result("2 x (3 + 4) x 5 + 6 - 1") == 75
    assert by_hand.result("4 + 8 / 32") == 4.25


def test_parameters_are_those_that_the_makers_publish(model: tuple[str, Paper, Card]) -> None:
    name, paper, _ = model
    whole, active = PUBLISHED[name]
    counted = paper.read if name == "gpt-oss-20b" else paper.active  # its makers leave the embedding out
    assert paper.weights == pytest.approx(whole, rel=0.003)
    assert counted == pytest.approx(active, rel=0.02)


def test_the_card_counts_what_paper_does(model: tuple[str, Paper, Card]) -> None:
    _, paper, card = model
    towers = sum(role.parameters for role in paper.roles if role.name.startswith("tower"))
    routed = sum(role.parameters for role in paper.roles if role.name in ("routed experts", "their biases"))
    assert (card.weights, card.looked_up, card.towers) == (paper.weights, paper.looked_up, towers)
    assert (card.experts.weights if card.experts else 0) == routed
    assert card.step_weights == paper.read


@pytest.mark.parametrize("length", LENGTHS)
def test_bytes_of_a_step_are_those_of_the_cost_model(model: tuple[str, Paper, Card], length: int) -> None:
    _, paper, card = model
    assert cost.kv_bytes(card, 1, length, 2) == 2 * paper.kept_values(length)
    plain = card.model_copy(update={"stored": None})
    assert cost.step_bytes(plain, 1, length, 2) == pytest.approx(paper.step_bytes(length), rel=1e-12)
    routers = sum(role.parameters for role in paper.roles if role.name == "routers") if paper.stored == "fp8" else 0
    wider = routers * (16 - by_hand.result("8 + 32 / (128 x 128)")) / 8  # which the makers keep in 16 bits
    assert cost.step_bytes(card, 1, length, 2) == pytest.approx(paper.step_bytes(length, True) - wider, rel=1e-12)


@pytest.mark.parametrize("length", LENGTHS[1:])
def test_the_speed_is_that_of_a_pass_on_such_a_machine(model: tuple[str, Paper, Card], length: int) -> None:
    _, paper, card = model
    for bandwidth in BANDWIDTHS.values():
        machine = Hardware(bandwidth, H100.memory_bytes, 1e30, 1e30)
        load = load_of(card.model_copy(update={"stored": None}))
        assert 1 / pass_seconds(load, 1, length - 1, machine) == pytest.approx(bandwidth / paper.step_bytes(length))
    assert H100.read_bytes_per_s in BANDWIDTHS.values()


def load_of(card: Card, **changed: Any) -> InferenceLoad:
    values: dict[str, Any] = {"card": card, "layout": "pipeline", "devices": 1, "value_bytes": 2, "batch": 1}
    return InferenceLoad(**values | {"prompt_tokens": 64, "new_tokens": 64} | changed)


def test_a_checkpoint_s_own_format_is_read_from_its_config() -> None:
    oss, deepseek, llama = map(counted, ("gpt-oss-20b", "deepseek-v3", "llama-3.1-8b"))
    assert oss.stored is not None
    assert (oss.stored.bits, oss.stored.experts_alone) == (4.25, True)
    assert deepseek.stored is not None
    assert deepseek.stored.bits == 8 + 32 / 128**2
    assert llama.stored is None
    # 12.8 GiB of the checkpoint, as its model card says
    assert held_weight_bytes(oss, Precision(2, 4.25, experts_alone=True)) / 2**30 == pytest.approx(12.8, rel=0.01)
    assert read_weight_bytes(oss, Precision(2, 4.25, experts_alone=True)) > read_weight_bytes(oss, Precision(2, 4.25))
