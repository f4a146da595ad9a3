"""Verdicts: what each kind of check says of results whose truth is known, and how a claim takes its checks together."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimbench.analysis import table_file
from claimbench.errors import ConfigError
from claimbench.formatting import quantity
from claimbench.judging import recommend
from claimbench.judging.expectations import bounds, place, verdict
from claimbench.judging.judge import combine, judge
from claimbench.schema import verdicts
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.checks import Region
from claimbench.schema.interval import Interval
from claimbench.schema.plan import PlannedCell
from claimbench.schema.result import Result
from claimbench.schema.verdicts import CheckVerdict, ClaimVerdict, Verdicts

Made = Callable[..., Result]

A10G: dict[str, Any] = {"key": "gpu0", "cpu": {"model": "Example CPU"}, "gpus": [{"name": "NVIDIA A10G"}]}
CELLS = """
planned: {backends: [some_server]}
experiments:
  speed:
    question: How fast?
    cells:
      plain: {}
      half: {title: half the speed, options: {step_ms: 20}}
      equal: {options: {step_ms: 10, load_ms: 1}}
      other: {options: {token: 7}}
      oom: {options: {fails: oom}}
      wrong: {options: {fails: nan}}
      slow: {options: {fails: hang}}
      absent: {options: {fails: unavailable}}
      tgi: {backend: some_server}
  batches:
    question: What does a batch cost?
    sweep: {batch: [1, 2, 4, 8]}
    cells:
      flat: {options: {step_ms: 10, fits_batch: 4}}
      linear: {options: {step_ms: 0.001, row_ms: 5}}
      one: {options: {step_ms: 10, fits_batch: 1}}
"""


def claims(*checks: str) -> str:
    kind = "computed" if all("kind: computed" in check for check in checks) else "any"
    return CELLS + f"claims: [{{id: X1, kind: {kind}, statement: A sentence, checks: [{', '.join(checks)}]}}]\n"


def judged(lab: Any, *checks: str, **planned: Any) -> ClaimVerdict:
    plan = lab.plan(claims(*checks), **planned)
    return judge(plan, lab.table(plan)).claims[0]


def ratio(of: str, to: str = "plain", expect: str = "below", metric: str = "decode_tok_s") -> str:
    return f"{{kind: ratio, metric: {metric}, of: speed/{of}, to: speed/{to}, expect: {expect}}}"


@pytest.mark.parametrize(
    ("of", "expect", "expected"),
    [
        ("half", "below", "supported"),
        ("half", "above", "refuted"),
        ("half", "same", "refuted"),
        ("half", "{about: 0.5, within: 0.1}", "supported"),
        ("half", "{about: 0.9, within: 0.1}", "refuted"),
        ("equal", "same", "supported"),
        ("equal", "above", "refuted"),
        ("half", "{at_least: 0.5}", "undecided"),
    ],
)
def test_a_ratio_is_judged_by_where_its_interval_lies(lab: Any, of: str, expect: str, expected: str) -> None:
    claim = judged(lab, ratio(of, expect=expect))
    check = claim.checks[0]
    assert claim.verdict == check.verdict == expected
    assert check.estimate == pytest.approx(0.5 if of == "half" else 1.0, rel=0.02)
    assert check.low is not None
    assert check.high is not None
    assert check.low <= check.estimate <= check.high
    assert check.blocks == 3
    assert len(check.results) == 6


def test_a_sentence_names_both_cells_the_ratio_and_its_interval(lab: Any) -> None:
    sentence = judged(lab, ratio("half")).checks[0].sentence
    assert sentence.startswith("Decode tokens per second of 'half the speed' is 0.5")
    assert "times that of 'plain' (0." in sentence
    assert sentence.endswith("): inside the range asked for.")


def test_one_block_is_undecided_with_the_reason(lab: Any) -> None:
    claim = judged(lab, ratio("half"), blocks=1)
    assert claim.verdict == "undecided"
    assert "at least 2" in str(claim.reason)
    assert claim.checks[0].estimate == pytest.approx(0.5, rel=0.02)
    assert claim.checks[0].low is None


def test_an_interval_wider_than_the_tolerance_is_undecided(lab: Any, made: Made) -> None:
    plan = lab.plan(claims(ratio("equal", expect="same")))
    table = lab.table(plan, lambda planned, block: made(planned, block, spread=0.2))
    assert judge(plan, table).claims[0].verdict == "undecided"
    assert judge(plan, table, tolerance=0.99).claims[0].verdict != "refuted"


def test_the_same_cell_on_both_sides_supports_nothing(lab: Any) -> None:
    both = CELLS.replace("      plain: {}", "      plain: {}\n      twin: {}")
    for check in (ratio("twin", expect="same"), "{kind: identity, of: speed/twin, to: speed/plain}"):
        plan = lab.plan(both + f"claims: [{{id: X1, kind: any, statement: A sentence, checks: [{check}]}}]")
        claim = judge(plan, lab.table(plan)).claims[0]
        assert claim.verdict == "undecided"
        assert "same cell" in str(claim.reason)


def test_a_ratio_with_zero_is_undecided(lab: Any) -> None:
    claim = judged(lab, ratio("half", metric="kv_cache_bytes"))
    assert claim.verdict == "undecided"
    assert "zero" in str(claim.reason)


def test_a_metric_that_was_not_measured_is_undecided(lab: Any) -> None:
    claim = judged(lab, ratio("half", metric="energy_j_per_token"))
    assert claim.verdict == "undecided"
    assert "no round" in str(claim.reason)


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        ("oom", "ended oom: asked for oom"),
        ("slow", "ended timeout"),
        ("absent", "ended unavailable: asked for unavailable"),
        ("wrong", "its outputs were wrong: asked for nan"),
        ("tgi", "no backend 'some_server' yet"),
    ],
)
def test_a_cell_without_numbers_makes_a_check_not_runnable_and_never_refuted(lab: Any, of: str, reason: str) -> None:
    claim = judged(lab, ratio(of), ratio("plain", to=of))
    assert claim.verdict == "not runnable here"
    assert reason in str(claim.reason)
    assert {check.verdict for check in claim.checks} == {"not runnable here"}


def test_doubts_about_blocks_are_said_and_do_not_stop_the_judging(lab: Any, made: Made) -> None:
    plan = lab.plan(claims(ratio("half")))
    table = lab.table(plan, lambda planned, block: made(planned, block, flags=("a noisy neighbour",) if block else ()))
    claim = judge(plan, table).claims[0]
    assert claim.verdict == "supported"
    assert "a noisy neighbour" in str(claim.reason)


def test_a_block_that_failed_is_left_out_of_the_rounds_and_doubted(lab: Any, made: Made) -> None:
    plan = lab.plan(claims(ratio("half")))
    half = plan.row("study", "speed/half").cell

    def invent(planned: PlannedCell, block: int) -> Result:
        if planned.cell.id == half and block == 1:
            return made(planned, block, outcome="timeout", reason="over 900 s", samples=())
        return made(planned, block)

    claim = judge(plan, lab.table(plan, invent)).claims[0]
    assert claim.checks[0].blocks == 2
    assert "1 of 3 blocks ended timeout" in str(claim.checks[0].reason)


def test_one_wrong_block_makes_the_cell_wrong(lab: Any, made: Made) -> None:
    plan = lab.plan(claims(ratio("half")))
    half = plan.row("study", "speed/half").cell

    def invent(planned: PlannedCell, block: int) -> Result:
        if planned.cell.id == half and block == 2:
            return made(planned, block, outcome="wrong", reason="tokens differ", samples=())
        return made(planned, block)

    claim = judge(plan, lab.table(plan, invent)).claims[0]
    assert claim.verdict == "not runnable here"
    assert "outputs were wrong: tokens differ" in str(claim.reason)


def test_a_gain_compares_two_ratios(lab: Any) -> None:
    sides = "of: speed/half, to: speed/plain, than_of: speed/equal, than_to: speed/plain"
    claim = judged(lab, f"{{kind: gain, metric: step_ms, {sides}, expect: above}}")
    assert claim.verdict == "supported"
    assert claim.checks[0].estimate == pytest.approx(2.0, rel=0.03)


def test_identity_needs_every_generation_to_give_the_same_tokens(lab: Any) -> None:
    same = judged(lab, "{kind: identity, of: speed/half, to: speed/plain}")
    assert same.verdict == "supported"
    assert same.checks[0].estimate == 1
    other = judged(lab, "{kind: identity, of: speed/other, to: speed/plain}")
    assert other.verdict == "refuted"
    assert other.checks[0].estimate == 0
    assert "new token 0" in other.checks[0].sentence


def test_identity_in_half_precision_cannot_be_refuted(lab: Any) -> None:
    study = claims("{kind: identity, of: speed/other, to: speed/plain}").replace(
        "question: How fast?", "question: How fast?\n    hold: {dtype: bfloat16}"
    )
    plan = lab.plan(study)
    claim = judge(plan, lab.table(plan)).claims[0]
    assert claim.verdict == "undecided"
    assert "rounding" in str(claim.reason)


def shape(of: str, expect: str, metric: str = "step_ms", extra: str = "") -> str:
    return f"{{kind: shape, metric: {metric}, of: batches/{of}, over: batch, expect: {expect}{extra}}}"


def test_a_shape_is_the_exponent_of_the_points_that_ran(lab: Any) -> None:
    flat = judged(lab, shape("flat", "{at_least: -0.1, at_most: 0.1}"))
    assert flat.verdict == "supported"
    assert "Left out: batches/flat@batch=8 ended oom" in str(flat.checks[0].reason)
    assert flat.checks[0].sentence.startswith("Time of the median decode step of flat goes as batch^0.00 (")
    linear = judged(lab, shape("linear", "{about: 1, within: 0.1}"))
    assert linear.verdict == "supported"
    assert linear.checks[0].estimate == pytest.approx(1, abs=0.02)
    assert judged(lab, shape("linear", "{at_most: 0.5}")).verdict == "refuted"
    falls = judged(lab, shape("flat", "{about: -1, within: 0.1}", "ms_per_token"))
    assert falls.verdict == "supported"


def test_the_shape_of_a_ratio_uses_both_curves(lab: Any) -> None:
    claim = judged(lab, shape("linear", "{about: 1, within: 0.1}", extra=", to: batches/flat"))
    assert claim.verdict == "supported"


def test_a_curve_of_one_point_is_not_runnable(lab: Any) -> None:
    claim = judged(lab, shape("one", "{at_most: 0.1}"))
    assert claim.verdict == "not runnable here"
    assert "at least two points" in str(claim.reason)


def value(metric: str, expect: str) -> str:
    return f"{{kind: value, metric: {metric}, of: speed/plain, expect: {expect}}}"


def test_a_value_of_bytes_has_an_interval(lab: Any) -> None:
    assert judged(lab, value("weights_bytes", "{about: 1000, within: 0.01}")).verdict == "supported"
    assert judged(lab, value("weights_bytes", "{at_least: 1001}")).verdict == "refuted"


def test_a_count_is_its_largest_block(lab: Any, made: Made) -> None:
    plan = lab.plan(claims(value("recompiles", "{at_most: 0}")))
    table = lab.table(plan, lambda planned, block: made(planned, block, proof={"recompiles": int(block == 2)}))
    claim = judge(plan, table).claims[0]
    assert claim.verdict == "refuted"
    assert claim.checks[0].estimate == 1


@pytest.mark.parametrize(
    ("of", "expect", "expected"),
    [
        ("oom", "expect: oom", "supported"),
        ("plain", "expect: oom", "refuted"),
        ("plain", "expect: ok", "supported"),
        ("wrong", "expect: ok", "refuted"),
        ("wrong", "expect: wrong, reason_contains: NAN", "supported"),
        ("absent", "expect: unavailable, reason_contains: asked", "supported"),
        ("absent", "expect: unavailable, reason_contains: batch", "not runnable here"),
        ("absent", "expect: ok", "not runnable here"),
        ("tgi", "expect: ok", "not runnable here"),
    ],
)
def test_an_outcome_is_judged_as_what_it_is(lab: Any, of: str, expect: str, expected: str) -> None:
    assert judged(lab, f"{{kind: outcome, of: speed/{of}, {expect}}}").verdict == expected


def computed(expect: str, quantity: str = "weight_bytes", more: str = "") -> str:
    return f"{{kind: computed, quantity: {quantity}, architecture: mistral-7b, expect: {expect}{more}}}"


def test_bytes_follow_from_the_architecture(lab: Any) -> None:
    weights = judged(lab, computed("{about: 14480000000.0, within: 0.001}"))
    assert weights.verdict == "agrees on paper"
    assert weights.checks[0].estimate == 2 * 7_241_732_096
    assert judged(lab, computed("{about: 13740000000.0, within: 0.01}")).verdict == "differs on paper"
    cache = judged(lab, computed("{about: 131072, within: 0.001}", "kv_bytes", ", batch: 1, length: 1"))
    assert cache.verdict == "agrees on paper"
    read = judged(lab, computed("{about: 23.7, within: 0.02}", "weight_read_ms", ", bandwidth: 600000000000.0"))
    assert read.verdict == "agrees on paper"


def absolute(published: float, hardware: str = "A10G", devices: int = 1) -> str:
    where = f"hardware: '{hardware}', devices: {devices}, published: {published}"
    return f"{{kind: absolute, metric: decode_tok_s, of: speed/plain, {where}}}"


def test_a_figure_of_other_hardware_is_never_judged(lab: Any) -> None:
    claim = judged(lab, absolute(26.0, "A100.*80GB"))
    assert claim.verdict == "not runnable here"
    assert "1 x A100 80GB" in str(claim.reason)
    assert "Example CPU" in str(claim.reason)
    assert "2,039 GB/s" in claim.checks[0].sentence


def test_a_figure_is_judged_on_its_own_hardware(lab: Any) -> None:
    here = {"machine": A10G, "device": "cuda"}
    assert judged(lab, absolute(100.0), **here).verdict == "supported"
    assert judged(lab, absolute(50.0), **here).verdict == "refuted"
    alone = judged(lab, absolute(50.0, devices=4), **here)
    assert alone.verdict == "not runnable here"
    assert "4 x A10G" in str(alone.reason)


def test_a_size_of_the_document_s_hardware_is_judged_there_alone(lab: Any) -> None:
    check = ratio("half")[:-1] + ", there: {hardware: A10G, expect: {at_most: 0.3}}}"
    assert judged(lab, check).verdict == "supported"
    there = judged(lab, check, machine=A10G, device="cuda")
    assert there.verdict == "refuted"
    assert there.checks[0].expect == "below 0.98; on A10G at most 0.30"


def test_a_figure_of_another_model_is_not_judged_even_on_its_hardware(lab: Any) -> None:
    study = claims(absolute(50.0)).replace("question: How fast?", "question: How fast?\n    hold: {checkpoint: large}")
    plan = lab.plan(study, machine=A10G, device="cuda", more={"swap": {"large": "small"}})
    claim = judge(plan, lab.table(plan)).claims[0]
    assert claim.verdict == "not runnable here"
    assert "model: small (smollm2-135m) in place of large (mistral-7b)" in str(claim.reason)


@pytest.mark.parametrize(
    ("of", "published", "expected"),
    [("flat", 4, "supported"), ("flat", 8, "refuted"), ("flat", 2, "refuted"), ("linear", 8, "undecided")],
)
def test_a_frontier_needs_the_batch_that_fits_and_the_one_that_does_not(
    lab: Any, of: str, published: int, expected: str
) -> None:
    check = f"{{kind: frontier, of: batches/{of}, hardware: A10G, published: {published}}}"
    assert judged(lab, check, machine=A10G, device="cuda").verdict == expected
    assert judged(lab, check).verdict == "not runnable here"


def test_a_curve_over_names_is_an_error(lab: Any) -> None:
    study = claims(shape("flat", "{at_most: 1}").replace("over: batch", "over: dtype"))
    plan = lab.plan(study.replace("batch: [1, 2, 4, 8]", "dtype: [float32, bfloat16]"))
    with pytest.raises(ConfigError, match="needs numbers"):
        judge(plan, lab.table(plan))


def checked(result: str, kind: str = "ratio", reason: str | None = None) -> CheckVerdict:
    return CheckVerdict(
        kind=kind,
        metric=None,
        of=None,
        to=None,
        sentence="A sentence.",
        verdict=result,  # type: ignore[arg-type]
        expect="above 1.02",
        reason=reason,
    )


YES, NO, MAYBE = checked("supported"), checked("refuted"), checked("undecided", reason="too few blocks")
GONE = checked("not runnable here", reason="no such backend")
ELSEWHERE = checked("not runnable here", kind="absolute", reason="it needs an A10G")


@pytest.mark.parametrize(
    ("checks", "expected", "reason"),
    [
        ((YES, YES), "supported", None),
        ((YES, NO), "refuted", None),
        ((MAYBE, GONE, NO), "refuted", "Not judged: no such backend."),
        ((YES, MAYBE), "undecided", "too few blocks."),
        ((YES, GONE), "not runnable here", "no such backend."),
        ((MAYBE, GONE), "not runnable here", "no such backend."),
        ((YES, ELSEWHERE), "supported", "Not judged: it needs an A10G."),
        ((MAYBE, ELSEWHERE), "undecided", "too few blocks. Not judged: it needs an A10G."),
        ((ELSEWHERE,), "not runnable here", "it needs an A10G."),
        ((YES, ELSEWHERE, GONE), "not runnable here", "it needs an A10G. no such backend."),
    ],
)
def test_a_claim_takes_the_verdicts_of_its_checks_together(
    checks: tuple[CheckVerdict, ...], expected: str, reason: str | None
) -> None:
    assert combine(checks) == (expected, reason)


@pytest.mark.parametrize("tolerance", [0.0, 0.02])
def test_no_number_lies_in_two_of_the_three_regions(tolerance: float) -> None:
    for point in (1 - tolerance, 1.0, 1 + tolerance, 0.5, 2.0):
        exactly = Interval(point, point, point, 3)
        found = [verdict(exactly, bounds(expect, tolerance)) for expect in ("below", "same", "above")]
        assert sorted(found) == ["refuted", "refuted", "supported"]


def test_about_a_negative_number_is_a_range_from_low_to_high() -> None:
    assert bounds(Region(about=-1, within=0.1), 0.02) == pytest.approx((-1.1, -0.9))


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (14_483_464_192, "B", "14.48 GB"),
        (1.0, "", "1.00"),
        (0.987, "", "0.99"),
        (0.0213, "ms", "0.0213 ms"),
        (12345.0, "tok/s", "12,345 tok/s"),
    ],
)
def test_numbers_are_said_with_their_unit(amount: float, unit: str, text: str) -> None:
    assert quantity(amount, unit) == text


@pytest.fixture
def report(lab: Any) -> Verdicts:
    plan = lab.plan(claims(ratio("half")))
    return judge(plan, lab.table(plan))


def test_what_is_written_is_json_without_holes(lab: Any) -> None:
    plan = lab.plan(claims(ratio("half"), ratio("tgi")))
    found = judge(plan, lab.table(plan))
    verdicts.write(lab.folder / "verdicts.json", found)
    written = json.loads((lab.folder / "verdicts.json").read_text())["verdicts"]
    assert set(written["cells"]) == set(plan.cells)
    assert written["device_name"] == "Example CPU @ 2 GHz"
    assert written["claims"][0]["verdict"] == "not runnable here"
    assert verdicts.read(lab.folder / "verdicts.json") == found


def test_the_verdicts_of_a_table_read_back_are_the_same(lab: Any) -> None:
    plan = lab.plan(claims(ratio("half"), ratio("oom")))
    table = lab.table(plan)
    table_file.write(table, lab.folder / "table.parquet", lab.folder / "table.csv", {})
    assert judge(plan, table_file.read(lab.folder / "table.parquet", {}).table) == judge(plan, table)


def test_a_cell_is_summed_up_with_its_interval_outcome_and_agreement(lab: Any, report: Verdicts) -> None:
    plan = lab.plan(claims(ratio("half")))
    half = report.cells[str(plan.row("study", "speed/half").cell)]
    assert half.metrics["step_ms"].value == pytest.approx(20, rel=0.02)
    assert half.metrics["step_ms"].low < half.metrics["step_ms"].value < half.metrics["step_ms"].high
    assert len(half.metrics["step_ms"].blocks) == 3
    assert half.tokens_match is True
    assert "energy_j_per_token" not in half.metrics
    other = report.cells[str(plan.row("study", "speed/other").cell)]
    assert (other.tokens_match, other.token_agreement, other.first_divergence) == (False, 0.0, 0)
    oom = report.cells[str(plan.row("study", "speed/oom").cell)]
    assert (oom.outcome, oom.reason, oom.metrics, oom.blocks_ok) == ("oom", "asked for oom", {}, 0)


RECOMMEND = """
experiments:
  speed:
    question: What pays?
    cells:
      plain: {}
      fast: {options: {step_ms: 5, first_call_ms: 4000}}
      slow: {options: {step_ms: 20}}
      equal: {options: {step_ms: 10, load_ms: 1}}
      wrong: {options: {step_ms: 1, fails: nan}}
  batch:
    question: What pays at a larger batch?
    hold: {batch: 8}
    cells: {plain: {}, fast: {options: {step_ms: 5}}}
"""


def test_only_what_clearly_pays_is_recommended_with_what_it_costs(lab: Any) -> None:
    plan = lab.plan(RECOMMEND)
    found = judge(plan, lab.table(plan)).recommendations
    named = {(each.objective, each.metric, each.shown_in[0].address) for each in found}
    assert named == {
        ("latency", "decode_tok_s", "speed/fast"),
        ("latency", "total_ms", "speed/fast"),
        ("throughput", "tok_s", "batch/fast"),
        ("throughput", "tok_s", "batch/plain"),  # a batch of 8 against the batch of 1 in `speed`
    }
    first = found[0]
    assert first.metric == "decode_tok_s"
    assert first.gain == pytest.approx(2.0, rel=0.02)
    assert 1.02 < first.low < first.gain < first.high
    assert first.cost.tokens_match is True
    saved_ms = 20 / 5  # of the reference's 60 ms and this cell's 40 ms, five tokens each
    assert first.cost.first_call_extra_s == pytest.approx(4.0, rel=0.02)
    assert first.cost.break_even_tokens == pytest.approx(4000 / saved_ms, rel=0.05)
    assert "raises decode tokens per second to 2x (" in first.sentence.replace("2.0x", "2x").replace("2.00x", "2x")
    assert "paid back after" in first.sentence


def test_what_is_not_recommended_says_why(lab: Any) -> None:
    plan = lab.plan(RECOMMEND)
    judged = judge(plan, lab.table(plan))
    named = {(each.objective, each.cell, each.reference) for each in judged.recommendations}
    left_out = {(each.objective, each.cell, each.reference): each for each in judged.left_out}
    assert not named & left_out.keys()
    assert {(objective, cell) for objective, cell, _ in named | left_out.keys()} >= {
        (objective, str(plan.row("study", f"speed/{name}").cell))
        for objective in ("latency", "memory")
        for name in ("fast", "slow", "equal", "wrong")
    }, "every row is named, or left out with a reason"
    by_place = {each.shown_in[0].address: each for each in left_out.values() if each.objective == "latency"}
    assert by_place["speed/slow"].gain == pytest.approx(0.5, rel=0.02)
    assert by_place["speed/slow"].reason is None
    assert by_place["speed/wrong"].reason == "wrong: asked for nan"
    assert by_place["speed/wrong"].gain is None
    assert by_place["speed/equal"].low < 1.02 < 2  # type: ignore[operator]


def test_the_surest_gain_comes_first(lab: Any, made: Made) -> None:
    """Not the largest estimate: one that is known worse comes later."""
    plan = lab.plan(RECOMMEND.replace("equal: {options: {step_ms: 10, load_ms: 1}}", "wild: {options: {step_ms: 4.8}}"))
    wild = plan.row("study", "speed/wild").cell

    def invent(planned: PlannedCell, block: int) -> Result:
        return made(planned, block, spread=0.1) if planned.cell.id == wild else made(planned, block)

    found = [each for each in judge(plan, lab.table(plan, invent)).recommendations if each.metric == "decode_tok_s"]
    assert [each.low for each in found] == sorted((each.low for each in found), reverse=True)


def test_a_measurement_above_its_ceiling_is_not_recommended(lab: Any, made: Made) -> None:
    plan = lab.plan(RECOMMEND)
    fast = plan.row("study", "speed/fast").cell

    def invent(planned: PlannedCell, block: int) -> Result:
        weights = 10**9 if planned.cell.id == fast else 1000
        return made(planned, block, memory={"step_weights": weights, "kv_cache": 0})

    table = lab.table(plan, invent, Ceilings(read_bytes_per_s=1e10, matmul_flops_per_s={"float32": 1e14}))
    found = judge(plan, table)
    assert all(each.cell != fast for each in found.recommendations)
    assert "above its ceiling" in found.cells[str(fast)].flags[0]


def test_memory_is_recommended_by_how_much_less_it_takes(lab: Any, made: Made) -> None:
    plan = lab.plan(RECOMMEND)
    slow = plan.row("study", "speed/slow").cell

    def invent(planned: PlannedCell, block: int) -> Result:
        peak = 2_000 if planned.cell.id == slow else 4_000
        return made(planned, block, memory={"rss_peak": peak, "step_weights": 0})

    memory = [each for each in judge(plan, lab.table(plan, invent)).recommendations if each.objective == "memory"]
    assert [each.cell for each in memory] == [slow]
    assert memory[0].gain == pytest.approx(2.0)
    assert memory[0].cost.memory_ratio == pytest.approx(0.5)
    assert memory[0].cost.decode_ratio == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(
    ("extra_s", "slow_ms", "fast_ms", "expected"),
    [(10, 3, 1, 5000), (-0.1, 3, 1, 0), (10, 1, 1, None), (None, 3, 1, None), (10, 3, None, None)],
)
def test_break_even_is_the_extra_time_over_what_a_token_saves(
    extra_s: float | None, slow_ms: float | None, fast_ms: float | None, expected: float | None
) -> None:
    assert recommend.break_even_tokens(extra_s, slow_ms, fast_ms) == expected


@given(
    st.floats(0.01, 10), st.floats(0.01, 10), st.floats(0.01, 10), st.sampled_from(["above", "below", "same", "region"])
)
def test_no_sentence_contradicts_its_verdict(low: float, high: float, at: float, name: str) -> None:
    found = Interval(low, min(low, high), max(low, high), 3)
    wanted = bounds(Region(at_least=at, at_most=2 * at) if name == "region" else name, 0.02)  # type: ignore[arg-type]
    said = place(found, wanted)
    if verdict(found, wanted) == "refuted":
        assert said.startswith("below" if found.high < wanted[0] else "above")  # type: ignore[operator]
    else:
        assert said.startswith({"supported": "inside", "undecided": "on both"}[verdict(found, wanted)])
