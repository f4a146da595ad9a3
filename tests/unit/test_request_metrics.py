"""What the records of a load say follows from their nanoseconds alone."""

from __future__ import annotations

import pytest

from claimbench.schema.metrics import METRICS
from claimbench.serving import request_metrics
from claimbench.serving.load import Load, Objective, Record, arrivals_ns

MS = 1_000_000


def record(first_ms: int = 100, step_ms: int = 10, tokens: int = 5, due_ms: int = 0, **more: object) -> Record:
    """A request that was sent when it was due: its first token `first_ms` later, each further one after `step_ms`."""
    at = tuple((due_ms + first_ms + number * step_ms) * MS for number in range(tokens))
    told = {
        "scheduled_ns": due_ms * MS,
        "sent_ns": due_ms * MS,
        "chunk_ns": at,
        "chunk_tokens": (1,) * tokens,
        "ended_ns": at[-1],
        "completion_tokens": tokens,
    }
    return Record.model_validate({**told, **more})


def test_times_of_one_request_follow_from_its_arrivals() -> None:
    one = record()
    assert request_metrics.ttft_ms(one) == 100
    assert request_metrics.gaps_ms(one) == [10, 10, 10, 10]
    assert request_metrics.tpot_ms(one) == 10
    assert request_metrics.end_to_end_ms(one) == 140


def test_tokens_of_one_event_arrive_together() -> None:
    one = record(tokens=3, chunk_tokens=(1, 2, 1))
    assert request_metrics.gaps_ms(one) == [10, 0, 10]
    assert request_metrics.tpot_ms(one) == pytest.approx(20 / 3)


def test_latency_counts_from_when_a_request_was_due_and_not_from_when_it_was_sent() -> None:
    late = record(sent_ns=60 * MS)
    assert request_metrics.ttft_ms(late) == 100
    assert request_metrics.lateness_ms([late]) == [60]


def test_a_single_token_has_no_rate_and_no_gap() -> None:
    one = record(tokens=1)
    assert request_metrics.tpot_ms(one) is None
    assert request_metrics.gaps_ms(one) == []


def test_rates_count_whole_answers_over_the_whole_time() -> None:
    broken = record(due_ms=0, failure="cut", reason="broke off")
    records = [record(), record(due_ms=860), broken]
    assert request_metrics.duration_s(records) == 1.0
    assert request_metrics.requests_per_s(records) == 2
    assert request_metrics.tokens_per_s(records) == 10


@pytest.mark.parametrize(
    ("objective", "good"),
    [
        ({}, 2),
        ({"ttft_ms": 100.0}, 1),
        ({"ttft_ms": 99.0}, 0),
        ({"tpot_ms": 10.0}, 2),
        ({"tpot_ms": 9.0}, 0),
        ({"end_to_end_ms": 140.0}, 1),
        ({"ttft_ms": 300.0, "tpot_ms": 9.0}, 0),
    ],
)
def test_goodput_counts_what_keeps_every_demand(objective: dict[str, float], good: int) -> None:
    records = [record(), record(first_ms=200, due_ms=660), record(failure="busy")]
    assert request_metrics.duration_s(records) == 0.9
    assert request_metrics.goodput_per_s(records, Objective.model_validate(objective)) == pytest.approx(good / 0.9)


def test_arrivals_are_poisson_seeded_and_at_the_rate() -> None:
    load = Load(kind="open", requests=4000, rate_per_s=50.0, seed=3)
    due = arrivals_ns(load)
    assert due == arrivals_ns(load)
    assert due != arrivals_ns(load.model_copy(update={"seed": 4}))
    gaps = [(after - before) / 1e9 for before, after in zip([0, *due], due, strict=False)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 50, rel=0.06)
    assert spread == pytest.approx(mean, rel=0.08), "of exponential gaps, mean and deviation are one number"


def test_the_metrics_of_a_block_are_those_that_the_table_knows() -> None:
    load = Load(kind="open", requests=2, objective=Objective(ttft_ms=150.0))
    records = [record(), record(first_ms=200, due_ms=660)]
    told = {"settings": load.model_dump(mode="json"), "records": [one.model_dump(mode="json") for one in records]}
    numbers = request_metrics.of_load(told)
    assert set(numbers) == {name for name in METRICS if name.startswith("load_")} - {"load_s", "load_gb_s"}
    assert numbers["load_ttft_ms"] == 150
    assert numbers["load_goodput_per_s"] == pytest.approx(1 / 0.9)
    assert numbers["load_failed_share"] == 0
    assert request_metrics.of_load(None) == {}


def test_a_sweep_is_told_by_the_clients_that_got_most() -> None:
    levels = {"1": [record()], "2": [record(), record()], "4": [record(step_ms=100) for _ in range(4)]}
    told = {clients: [one.model_dump(mode="json") for one in records] for clients, records in levels.items()}
    numbers = request_metrics.of_load({"settings": {"kind": "sweep"}, "levels": told})
    assert numbers["load_clients"] == 2
    assert numbers["load_tok_s"] == pytest.approx(10 / 0.14)
    assert numbers["load_itl_ms"] == 10


def test_a_load_of_which_nothing_came_back_has_rates_of_zero_and_no_latencies() -> None:
    lost = Record(scheduled_ns=0, sent_ns=0, ended_ns=MS, failure="gone", reason="no connection")
    numbers = request_metrics.of_load({"settings": {}, "records": [lost.model_dump(mode="json")]})
    assert numbers["load_failed_share"] == 1
    assert numbers["load_tok_s"] == 0
    assert numbers["load_ttft_ms"] is None
