"""Comparisons of rows of the table: what is paired with what, and what falls out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest

from claimbench.analysis import comparing, stats
from claimbench.analysis.comparing import Comparison
from claimbench.analysis.paired import RESTLESS, STEADY, PairedRound
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Workload
from claimbench.schema.interval import Interval

METRIC = "decode_tok_s"
START = "load_s"
Row = tuple[str | None, int | None, int, float | None]
"""Round, pass, block and value."""


def rows(*values: Row, weight: float = 1.0, metric: str = METRIC) -> pd.DataFrame:
    frame = pd.DataFrame(list(values), columns=["round", "pass", "block", metric])
    return frame.assign(weight=weight)


def sat(name: str, *values: float, block: int = 0) -> list[Row]:
    return [(name, number, block, value) for number, value in enumerate(values)]


def test_what_was_generated_in_one_pass_is_one_number_and_passes_that_one_side_lacks_fall_out() -> None:
    of = rows(("a", 0, 0, 2.0), ("a", 0, 0, 6.0), ("a", 1, 0, 3.0), ("a", 2, 0, None), ("b", 0, 0, 5.0))
    to = rows(("a", 0, 0, 1.0), ("a", 1, 0, 1.0), ("a", 2, 0, 1.0), ("c", 0, 0, 1.0))
    found = comparing.paired_rounds([of, to], [1.0, -1.0], METRIC)
    assert found == [PairedRound((pytest.approx(math.log(4)), pytest.approx(math.log(3))))]
    assert comparing.paired_rounds([], [], METRIC) == []


def test_rounds_keep_their_order_and_their_weight_and_a_void_one_is_left_out() -> None:
    sides = [
        pd.concat([rows(*sat(name, value), weight=weight) for name, value, weight in given])
        for given in (
            [("c", 8.0, 0.5), ("a", 2.0, 1.0), ("b", 9.0, 0.0)],
            [("a", 1.0, 1.0), ("b", 1.0, 0.0), ("c", 1.0, 0.5)],
        )
    ]
    found = comparing.paired_rounds(sides, [1.0, -1.0], METRIC)
    assert [round.weight for round in found] == [1.0, 0.5]
    assert [math.exp(round.logs[0]) for round in found] == pytest.approx([2.0, 8.0])


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_ratio_of_what_is_not_positive_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="positive values"):
        comparing.ratio([rows(*sat("a", 1.0)), rows(*sat("a", value))], METRIC)


def two_rounds(*levels: float) -> list[pd.DataFrame]:
    """Cells at these levels, every other one of which is slow in one pass of each round."""
    slow = [(level, 0.98 * level if number % 2 else level) for number, level in enumerate(levels)]
    return [rows(*sat("a", usual, other), *sat("b", other, usual)) for usual, other in slow]


def test_a_ratio_has_an_interval_at_each_look_and_of_two_ratios_the_ratio() -> None:
    found = comparing.ratio(two_rounds(6.0, 2.0), METRIC)
    assert found.prior == STEADY
    assert [look.rounds for look in found.looks] == [2]
    assert found.last is not None
    assert found.last.estimate == pytest.approx(3.0 / math.sqrt(0.98))
    assert found.last.ends is not None
    low, high = found.last.ends
    assert 2.5 < low < 3.0 < 3.1 < high < 3.6
    assert low * high == pytest.approx(9.0 / 0.98), "equally wide on the scale of logarithms"
    gain = comparing.ratio(two_rounds(6.0, 2.0, 4.0, 8.0), METRIC, RESTLESS)
    assert (gain.prior, gain.last) == (RESTLESS, Interval(pytest.approx(6.0), None, None, 2))


def test_without_rounds_blocks_are_compared_by_their_number() -> None:
    blocks = [[5.0, 5.2], [6.0], [5.5]], [[1.0], [1.1], [1.2]], [[2.0], [2.1], [2.0]], [[4.0], [3.9], [4.4]]
    sides = [
        rows(*[(None, None, number, value) for number, block in enumerate(each) for value in block], ("a", 0, 9, 1.0))
        for each in blocks
    ]
    alone = [side[side["round"].isna()] for side in sides]
    expected = stats.ratio_interval(*blocks[:2], seed=3)
    assert comparing.ratio(alone[:2], METRIC, seed=3) == Comparison((expected,))
    expected = stats.gain_interval(*blocks, seed=3)
    assert comparing.ratio(alone, METRIC, seed=3) == Comparison((expected,))
    assert comparing.ratio([alone[0], alone[1][:0]], METRIC) == Comparison(())


def test_how_a_process_starts_is_of_blocks_whatever_rounds_say() -> None:
    sides = [
        rows((None, None, 0, value), (None, None, 1, value), *sat("a", 50.0, block=2), metric=START)
        for value in (4.0, 2.0)
    ]
    found = comparing.ratio(sides, START)
    assert found.rounds == ()
    assert found.last == Interval(pytest.approx(2.0), pytest.approx(2.0), pytest.approx(2.0), 2)
    assert comparing.contrast(sides, [1.0, -1.0], START, STEADY).looks == ()


def test_a_twin_is_the_later_block_of_each_round() -> None:
    both = rows(*sat("a", 1.0, 1.0, block=0), *sat("a", 2.0, 2.0, block=1), *sat("b", 1.0, block=3))
    found = comparing.twins(both, METRIC)
    assert found.rounds == (PairedRound((pytest.approx(math.log(0.5)),) * 2),)
    assert comparing.twins(rows(*sat("a", 1.0), *sat("b", 2.0, block=1)), METRIC) == Comparison(())


def test_a_contrast_stays_on_the_scale_of_logarithms() -> None:
    found = comparing.contrast(two_rounds(8.0, 2.0), [1.0, 0.5], METRIC, STEADY)
    assert found.last is not None
    assert found.last.estimate == pytest.approx(math.log(8) + math.log(2) / 2, abs=0.01)
    assert found.rounds_needed(0.0, math.inf) == 3
    assert found.passes_needed(0.0, math.inf) == comparing.paired.passes_to_settle(found.rounds, STEADY, 0.0, math.inf)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(1.0, 0.0), (math.e, 1.0), (0.0, -math.inf), (-2.0, -math.inf), (math.inf, math.inf), (-math.inf, -math.inf)],
)
def test_limits_of_a_ratio_are_on_the_scale_of_its_rounds(given: float, expected: float) -> None:
    assert comparing._at(math.log, given) == expected
    assert comparing._at(comparing._same, given) == given


def looked(*rounds: int, ends: bool = True) -> tuple[Interval, ...]:
    return tuple(Interval(1.0, *((0.9, 1.1) if ends else (None, None)), each) for each in rounds)


def test_a_last_round_that_is_no_planned_look_is_as_if_not_there() -> None:
    def planned(looks: Sequence[Interval]) -> list[int]:
        return [each.rounds for each in Comparison(tuple(looks)).at_planned_looks().looks]

    assert planned(looked(2, 3, 4, 5)) == [2, 3, 4]
    assert planned(looked(2, 3, 4)) == [2, 3, 4]
    assert planned(looked(5)) == [5], "the only one there is"
    assert planned(looked(1, ends=False)) == [1]


def test_a_count_that_is_always_the_same_needs_one_round() -> None:
    count = Interval(0.5, None, None, 1)
    same = Comparison((count,), (PairedRound((math.log(0.5),) * 3),))
    assert same.of_counts().looks == (Interval(0.5, 0.5, 0.5, 2),)
    four = Comparison((count._replace(rounds=4),), (PairedRound((0.25,)),))
    assert four.of_counts().looks[0].rounds == 4
    varied = Comparison((count,), (PairedRound((0.1, 0.2)),))
    assert varied.of_counts() is varied
    assert Comparison(()).of_counts() == Comparison(())


@pytest.mark.parametrize(
    ("uses", "restless"),
    [
        ([], False),
        ([{"name": "sdpa"}, {"name": "static_cache"}], False),
        ([{"name": "sdpa"}, {"name": "compile_model"}], True),
        ([{"name": "bitsandbytes_int8"}], True),
        ([{"name": "fused_layer_norm", "settings": {"how": "compile"}}], True),
        ([{"name": "fused_layer_norm", "settings": {"how": "native"}}], False),
    ],
)
def test_what_is_compiled_or_quantised_is_restless_and_one_such_cell_is_enough(
    uses: list[dict[str, Any]], restless: bool
) -> None:
    cell = Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama"),
        backend="transformers",
        workload=Workload(prompt="Hello", new_tokens=4),
        device="cpu",
    )
    used = cell.model_copy(update={"optimizations": tuple(OptimizationUse(**use) for use in uses)})
    assert comparing.is_restless(used) == restless
    assert comparing.prior_of([cell, used]) == (RESTLESS if restless else STEADY)
    assert comparing.prior_of([cell]) == comparing.prior_of([]) == STEADY
