"""Numbers as a reader sees them."""

from __future__ import annotations

import pytest

from claimbench.formatting import count, interval, number, percent, quantity, significant, slug, with_ranges
from claimbench.reporting.report_data import head
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Interval(26.031, 25.912, 26.148), "26.03 [25.91, 26.15]"),
        (Interval(26.031, 20.4, 31.2), "26 [20, 31]"),
        (Interval(0.99876, 0.9886, 1.0077), "0.999 [0.989, 1.008]"),
        (Interval(1234.5, 1210.0, 1260.0), "1,234 [1,210, 1,260]"),
        (Interval(0.0042, 0.0041, 0.0043), "0.00420 [0.00410, 0.00430]"),
        (Interval(26.031), "26.0"),
        (Interval(5.0, 5.0, 5.0), "5.00"),
        (Interval(0.0, -1.0, 1.0), "0.0 [-1.0, 1.0]"),
    ],
)
def test_a_number_has_the_digits_that_its_interval_supports(estimate: Interval, text: str) -> None:
    assert interval(estimate) == text


@pytest.mark.parametrize(
    ("sentences", "said"),
    [
        (["took 51% of it", "took 9% of it", "took 46% of it"], ["took 9% to 51% of it"]),
        (["took 5% of it", "took 5% of it"], ["took 5% of it"]),
        (["2 of 3 ended", "1 of 3 ended", "else"], ["1 to 2 of 3 ended", "else"]),
        (["1.5 {x} and 10", "1.25 {x} and 9"], ["1.25 to 1.5 {x} and 9 to 10"]),
        (["a 1", "b 2"], ["a 1", "b 2"]),
        ([], []),
    ],
)
def test_sentences_that_differ_in_numbers_alone_are_one(sentences: list[str], said: list[str]) -> None:
    assert list(with_ranges(sentences)) == said


def test_a_sign_follows_every_number() -> None:
    assert interval(Interval(1.5, 1.4, 1.6), "x") == "1.50x [1.40x, 1.60x]"


def test_a_number_that_is_not_finite_says_so() -> None:
    assert number(float("inf")) == quantity(float("nan"), "ms") == "not finite"


@pytest.mark.parametrize(
    ("value", "unit", "said", "tabled"),
    [
        (12.0, "ms", "12 ms", "12.0"),
        (12345.0, "tok/s", "12,345 tok/s", "12,300"),
        (999.7, "ms", "1,000 ms", "1,000"),
        (0.00001234, "nats", "0.0000123 nats", "0.0000123"),
        (80e9, "B", "80 GB", "80,000,000,000"),
        (5.0, "", "5.00", "5.00"),
        (-0.0, "s", "0 s", "0.00"),
    ],
)
def test_a_sentence_says_a_number_and_its_unit_and_a_table_the_digits_that_are_known(
    value: float, unit: str, said: str, tabled: str
) -> None:
    assert quantity(value, unit) == said
    assert number(value) == tabled


@pytest.mark.parametrize(
    ("share", "text"), [(0.684, "68 %"), (0.042, "4.2 %"), (0.02, "2 %"), (0.0031, "0.31 %"), (0, "0 %")]
)
def test_a_share_is_per_cent(share: float, text: str) -> None:
    assert percent(share) == text


def test_significant_digits() -> None:
    assert significant(12345.678, 4) == 12350.0
    assert significant(0.00123456, 4) == 0.001235
    assert significant(0.0, 4) == 0.0


def test_small_words() -> None:
    assert count(1, "cell") == "1 cell"
    assert count(3, "cell") == "3 cells"
    assert slug("Batch 8, prompt tokens 64") == "batch-8-prompt-tokens-64"


def test_bytes_are_headed_by_the_unit_that_they_are_shown_in() -> None:
    sizes = [metric for metric in METRICS if metric.endswith("_bytes")]
    assert sizes
    assert [metric for metric in sizes if not head(metric).endswith(", GB")] == []
