"""What each kind of check says of one table: its verdict, its sentence, where its number must lie, and the reason."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from tests.unit.conftest import Lab
from tests.unit.test_judge import A10G, CELLS, GONE, MAYBE, YES, checked

from claimbench.analysis.comparing import Comparison
from claimbench.analysis.paired import PairedRound
from claimbench.judging import fitness
from claimbench.judging.checks import judge_check
from claimbench.judging.evidence import Evidence, Missing, by_interval, side_at, sides_of
from claimbench.judging.expectations import bounds_text, largest_difference, place, unit_of, verdict
from claimbench.judging.judge import combine, judge
from claimbench.schema.cell import Cell, Checkpoint, Workload
from claimbench.schema.checks import Check, Region
from claimbench.schema.deviation import Deviation
from claimbench.schema.interval import Interval
from claimbench.schema.study import Claim, Needs
from claimbench.schema.validation import parse_yaml
from claimbench.schema.verdicts import CheckVerdict

RATIO = "{kind: ratio, metric: decode_tok_s, of: speed/half, to: speed/plain, expect: %s}"

SAID = [
    (
        "{kind: ratio, metric: decode_tok_s, of: speed/half, to: speed/plain, expect: below}",
        "supported",
        "Decode tokens per second of 'half the speed' is 0.50 times that of 'plain' (0.50 to 0.50): "
        "inside the range asked for.",
        "below 0.98",
        None,
    ),
    (
        "{kind: ratio, metric: decode_tok_s, of: speed/equal, to: speed/plain, expect: same}",
        "supported",
        "Decode tokens per second of 'equal' is 1.00 times that of 'plain' (1.00 to 1.00): inside the range asked for.",
        "0.98 to 1.02",
        None,
    ),
    (
        "{kind: gain, metric: decode_tok_s, of: batches/flat@batch=4, to: batches/flat@batch=1, than_of: "
        "batches/linear@batch=4, than_to: batches/linear@batch=1, expect: above}",
        "supported",
        "In decode tokens per second, 'flat (batch 4)' over 'flat (batch 1)' is 4.01 times 'linear (batch 4)'"
        " over 'linear (batch 1)' (3.94 to 4.09): inside the range asked for.",
        "above 1.02",
        None,
    ),
    (
        "{kind: identity, of: speed/half, to: speed/plain}",
        "supported",
        "half the speed gives the same tokens as plain in 9 of 9 generations.",
        "the same tokens",
        None,
    ),
    (
        "{kind: identity, of: speed/other, to: speed/plain}",
        "refuted",
        "other gives the same tokens as plain in 0 of 9 generations only; row 0 leaves the reference at new token 0.",
        "the same tokens",
        "In doubt: speed/other: an exact technique, yet its tokens differ from the reference's from position 0 on.",
    ),
    (
        "{kind: shape, metric: step_ms, of: batches/flat, over: batch, expect: {at_most: 0.5}}",
        "supported",
        "Time of the median decode step of flat goes as batch^0.00 (0.00 to 0.01), from batch 1 to 4.",
        "at most 0.50",
        "Left out: batches/flat@batch=8 ended oom: batch 8 does not fit.",
    ),
    (
        "{kind: shape, metric: step_ms, of: batches/linear, over: batch, expect: {about: 1, within: 0.1}}",
        "supported",
        "Time of the median decode step of linear goes as batch^1.00 (1.00 to 1.00), from batch 1 to 8.",
        "0.90 to 1.10",
        None,
    ),
    (
        "{kind: shape, metric: step_ms, of: batches/linear, to: batches/flat, over: batch, expect: {at_least: 0.5}}",
        "supported",
        "Time of the median decode step of linear over flat goes as batch^1.00 (0.99 to 1.02), from batch 1 to 4.",
        "at least 0.50",
        "Left out: batches/flat@batch=8 ended oom: batch 8 does not fit.",
    ),
    (
        "{kind: value, metric: step_ms, of: speed/half, expect: {at_most: 30}}",
        "supported",
        "half the speed has 20 ms of time of the median decode step (19.9 ms to 20.2 ms).",
        "at most 30 ms",
        None,
    ),
    (
        "{kind: value, metric: weights_bytes, of: speed/half, expect: {at_least: 1}}",
        "supported",
        "half the speed has 1 kB of bytes of weights.",
        "at least 1 B",
        None,
    ),
    (
        "{kind: outcome, of: speed/oom, expect: oom}",
        "supported",
        "oom ended oom: asked for oom.",
        "ends oom",
        None,
    ),
    (
        "{kind: outcome, of: speed/slow, expect: oom}",
        "not runnable here",
        "Not judged: speed/slow ended timeout: asked for hang.",
        "ends oom",
        "speed/slow ended timeout: asked for hang",
    ),
    (
        "{kind: computed, quantity: weight_bytes, architecture: mistral-7b, bytes_per_weight: 2, expect: "
        "{about: 14500000000, within: 0.01}}",
        "agrees on paper",
        "The weights of mistral-7b at 2 bytes each are 14.48 GB, from 7,241,732,096 parameters.",
        "14.36 GB to 14.64 GB",
        None,
    ),
    (
        "{kind: computed, quantity: kv_bytes, architecture: mistral-7b, bytes_per_weight: 2, batch: 2, "
        "length: 1000, expect: {at_most: 1000000000}}",
        "agrees on paper",
        "The keys and values of mistral-7b, batch 2, 1000 tokens, are 262.1 MB, from 7,241,732,096 parameters.",
        "at most 1 GB",
        None,
    ),
    (
        "{kind: computed, quantity: weight_read_ms, architecture: mistral-7b, bytes_per_weight: 2, bandwidth:"
        " 1000000000000, expect: {at_least: 20}}",
        "differs on paper",
        "Reading the weights of mistral-7b at 1,000 GB/s takes 14.2 ms, from 7,241,732,096 parameters.",
        "at least 20 ms",
        None,
    ),
    (
        "{kind: absolute, metric: step_ms, of: speed/half, published: 20, within: 0.1, hardware: NVIDIA A10G}",
        "supported",
        "half the speed: time of the median decode step 20 ms (19.9 ms to 20.2 ms); published 20 ms.",
        "18 ms to 22 ms",
        None,
    ),
    (
        "{kind: frontier, of: batches/flat, over: batch, published: 4, hardware: NVIDIA A10G}",
        "supported",
        "The largest batch that fits is 4; batch 8 does not. Published: 4.",
        "the largest batch that fits is 4",
        None,
    ),
]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    """Three blocks of each cell, on the machine of the document."""
    before, lab = os.getcwd(), Lab(tmp_path_factory.mktemp("lab"))  # noqa: PTH109
    os.chdir(lab.folder)
    plan = lab.plan(CELLS, machine=A10G, device="cuda")
    yield Evidence(plan, lab.table(plan), plan.params.measure.tolerance)
    os.chdir(before)


def parsed(check: str) -> Check:
    found: Check = TypeAdapter(Check).validate_python(parse_yaml(check, "study"))
    return found


@pytest.mark.parametrize(("check", "verdict", "sentence", "expected", "reason"), SAID)
def test_a_check_says_what_it_found(
    evidence: Evidence, check: str, verdict: str, sentence: str, expected: str, reason: str | None
) -> None:
    found = judge_check(parsed(check), "study", evidence)
    assert (found.verdict, found.sentence, found.expect, found.reason) == (verdict, sentence, expected, reason)
    assert f"kind: {found.kind}," in check
    asked = parsed(check)
    assert (found.of, found.to) == (getattr(asked, "of", None), getattr(asked, "to", None))
    assert (found.estimate is None) == (verdict == "not runnable here" or found.kind == "outcome")


@pytest.mark.parametrize(
    ("looks", "result", "ends", "reason"),
    [
        ([(1.3, 0.9, 1.5), (1.3, 1.1, 1.5), (0.5, 0.4, 0.6)], "supported", (1.1, 1.5), None),
        ([(1.3, 0.9, 1.5), (0.5, 0.4, 0.6), (1.3, 1.1, 1.5)], "refuted", (0.4, 0.6), None),
        (
            [(1.3, 0.9, 1.5), (1.2, 1.01, 1.4)],
            "undecided",
            (1.01, 1.4),
            "The interval reaches beyond the range that would decide: more blocks would narrow it.",
        ),
        (
            [(1.3, None, None)],
            "undecided",
            (None, None),
            "1 block in common: at least 2 are needed for an interval.",
        ),
    ],
)
def test_a_number_is_judged_at_the_first_look_that_settles_it(
    evidence: Evidence, looks: list[Any], result: str, ends: Any, reason: str | None
) -> None:
    found = judged_at(evidence, "above", *looks)
    assert (found.verdict, (found.low, found.high), found.reason) == (result, ends, reason)
    assert found.needed is None
    assert found.sentence == f"It is {found.estimate}."


def judged_at(evidence: Evidence, expect: str, *looks: Any) -> CheckVerdict:
    check = parsed(RATIO % expect)
    compared = Comparison(
        tuple(Interval(*look, 1 if look[1] is None else number + 2) for number, look in enumerate(looks))
    )
    sides = sides_of(check, "study", evidence)
    return by_interval(check, evidence, sides, compared, check.expect, lambda found: f"It is {found.estimate}.")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("low", "high", "result", "sentence"),
    [
        (0.99, 1.01, "supported", "It is 1.0."),
        (0.9, 1.1, "bounded", "It is 1.0; no difference larger than 10%."),
        (0.95, 1.25, "bounded", "It is 1.0; no difference larger than 25%."),
        (0.7, 1.1, "undecided", "It is 1.0."),
        (1.001, 1.1, "undecided", "It is 1.0."),
    ],
)
def test_a_difference_that_is_not_there_is_bounded(
    evidence: Evidence, low: float, high: float, result: str, sentence: str
) -> None:
    found = judged_at(evidence, "same", (1.0, low, high))
    assert (found.verdict, found.sentence, found.blocks) == (result, sentence, 2)


def test_without_a_round_in_common_it_is_undecided_and_says_of_which(evidence: Evidence) -> None:
    found = judged_at(evidence, "same")
    assert found.verdict == "undecided"
    assert found.reason == "there is no round in which speed/half and speed/plain gave this metric."
    assert found.sentence == "Not judged: there is no round in which speed/half and speed/plain gave this metric."
    assert len(found.results) == 6


@pytest.mark.parametrize(
    ("ends", "wanted", "result", "words"),
    [
        ((1.0, 2.0), (1.0, 2.0), "supported", "inside the range asked for"),
        ((1.0, 2.1), (1.0, 2.0), "undecided", "on both sides of an end of the range asked for"),
        ((0.9, 2.0), (1.0, 2.0), "undecided", "on both sides of an end of the range asked for"),
        ((2.0, 3.0), (1.0, 2.0), "undecided", "on both sides of an end of the range asked for"),
        ((0.5, 1.0), (1.0, 2.0), "undecided", "on both sides of an end of the range asked for"),
        ((2.1, 3.0), (1.0, 2.0), "refuted", "above the range asked for"),
        ((0.5, 0.9), (1.0, 2.0), "refuted", "below the range asked for"),
        ((None, None), (1.0, 2.0), "undecided", "too early to tell"),
    ],
)
def test_an_interval_is_held_to_a_closed_range(ends: Any, wanted: Any, result: str, words: str) -> None:
    found = Interval(1.5, *ends, 3)
    assert (verdict(found, wanted), place(found, wanted)) == (result, words)


def test_a_largest_difference_is_of_what_is_said_to_be_the_same_and_holds_it() -> None:
    wanted = (0.98, 1.02)
    assert largest_difference(Interval(1.0, 0.9, 1.05, 3), wanted) == pytest.approx(0.1)
    assert largest_difference(Interval(1.0, 0.97, 1.05, 3), wanted) == pytest.approx(0.05)
    assert largest_difference(Interval(1.0, 1.0, 1.0, 3), wanted) == 0.0
    assert largest_difference(Interval(1.2, 1.01, 1.3, 3), wanted) is None
    assert largest_difference(Interval(0.9, 0.8, 0.99, 3), wanted) is None
    assert largest_difference(Interval(1.0), wanted) is None
    for other in ((1.02, math.inf), (-math.inf, 2.0), (1.0, 1.5), (0.5, 1.0), (1.2, 1.5)):
        assert largest_difference(Interval(1.0, 0.9, 1.05, 3), other) is None


@pytest.mark.parametrize(
    ("expect", "unit", "text"),
    [
        ("same", "", "0.95 to 1.05"),
        ("above", "", "above 1.05"),
        ("below", "", "below 0.95"),
        (Region(at_least=3), "ms", "at least 3.00 ms"),
        (Region(at_most=3), "ms", "at most 3.00 ms"),
        (Region(at_least=2, at_most=3), "", "2.00 to 3.00"),
        (Region(about=10, within=0.1), "ms", "9.00 ms to 11 ms"),
    ],
)
def test_where_a_number_must_lie_is_said(expect: Any, unit: str, text: str) -> None:
    assert bounds_text(expect, 0.05, unit) == text


def test_a_unit_is_the_metric_s() -> None:
    assert (unit_of("step_ms"), unit_of("weights_bytes"), unit_of("nothing known")) == ("ms", "B", "")


@pytest.mark.parametrize(
    ("verdicts", "result"),
    [
        (("agrees on paper", "agrees on paper"), "agrees on paper"),
        (("agrees on paper", "differs on paper"), "differs on paper"),
        (("agrees on paper", "supported"), "supported"),
        (("bounded", "supported"), "bounded"),
        (("bounded", "undecided"), "undecided"),
        (("bounded", "refuted"), "refuted"),
    ],
)
def test_a_claim_on_paper_is_neither_supported_nor_refuted_and_a_bound_is_weaker_than_support(
    verdicts: tuple[str, ...], result: str
) -> None:
    assert combine(tuple(checked(one) for one in verdicts)) == (result, None)


def test_a_reason_is_said_once() -> None:
    assert combine((MAYBE, MAYBE, YES)) == ("undecided", "too few blocks.")
    assert combine((GONE, GONE)) == ("not runnable here", "no such backend.")


def cell(of: str, dtype: str = "float32", **draft: Any) -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="target", source=of, architecture="smollm2-135m"),
        draft=Checkpoint(name="drafter", **draft) if draft else None,
        backend="null_model",
        dtype=dtype,  # type: ignore[arg-type]
        workload=Workload(prompt="Hello", new_tokens=1),
        device="cpu",
    )


TRAINED, RANDOM = "file:///model", "random://smollm2-135m?seed=0"
SAYS_NOTHING = "What is said decides this speed, and target says nothing: its weights are random."
SHARES_NOTHING = "The draft, drafter, shares nothing with its target: its weights are random."
FIRST_LAYERS = "The draft, drafter, is the first 4 layers of a model that was trained whole"
TOO_SMALL = "target has 0.54 GB of weights. At least 1 GB are needed"


@pytest.mark.parametrize(
    ("needs", "of", "reason"),
    [
        ({}, cell(RANDOM), None),
        ({"trained": True}, cell(TRAINED), None),
        ({"trained": True}, cell(RANDOM), SAYS_NOTHING),
        ({"draft": True}, cell(RANDOM), None),
        ({"draft": True}, cell(TRAINED, source=TRAINED), None),
        ({"draft": True}, cell(TRAINED, source=RANDOM), SHARES_NOTHING),
        ({"draft": True}, cell(TRAINED, source=TRAINED, keep_layers=4), FIRST_LAYERS),
        ({}, cell(TRAINED, source=RANDOM), None),
        ({"checkpoint_gb": 1}, cell(TRAINED), TOO_SMALL),
        ({"checkpoint_gb": 0.53}, cell(TRAINED), None),
        ({"checkpoint_gb": 0.53}, cell(TRAINED, "float16"), "target has 0.27 GB of weights. At least 0.53 GB"),
    ],
)
def test_what_a_cell_lacks_of_what_a_sentence_is_about(needs: dict[str, Any], of: Cell, reason: str | None) -> None:
    found = fitness._lacks(Needs(**needs), of)
    assert found is None if reason is None else str(found).startswith(reason)


def changed(evidence: Evidence, address: str, **columns: Any) -> Evidence:
    """As if the cell at `address` had these numbers in the table."""
    other, cell = copy.copy(evidence), str(evidence.plan.row("study", address).cell)
    other.frames = evidence.frames | {cell: evidence.frames[cell].assign(**columns)}
    other._endings = {}
    return other


SAME_CELL = "speed/plain and speed/plain are the same cell here, so"


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (RATIO.replace("half", "plain") % "same", f"{SAME_CELL} their ratio says nothing."),
        ("{kind: identity, of: speed/plain, to: speed/plain}", f"{SAME_CELL} equal tokens say nothing."),
        (
            "{kind: gain, metric: decode_tok_s, of: speed/plain, to: speed/plain, than_of: speed/half, "
            "than_to: speed/half, expect: same}",
            f"{SAME_CELL} their ratio says nothing.",
        ),
    ],
)
def test_a_cell_says_nothing_of_itself(evidence: Evidence, check: str, reason: str) -> None:
    found = judge_check(parsed(check), "study", evidence)
    assert (found.verdict, found.sentence, found.reason) == ("undecided", f"Not judged: {reason}", reason)
    assert found.kind == check[7:].partition(",")[0]
    assert len(found.results) == (6 if "than_of" in check else 3)


def test_zero_has_no_ratio_and_no_exponent(evidence: Evidence) -> None:
    of = changed(evidence, "speed/half", decode_tok_s=0.0)
    found = judge_check(parsed(RATIO % "below"), "study", of)
    reason = "a block has zero decode tokens per second, and a ratio with zero means nothing."
    assert (found.verdict, found.sentence, found.reason) == ("undecided", f"Not judged: {reason}", reason)
    assert (found.kind, found.of, len(found.results)) == ("ratio", "speed/half", 6)
    of = changed(evidence, "batches/linear@batch=2", step_ms=0.0)
    shape = "{kind: shape, metric: step_ms, of: batches/linear, over: batch, expect: {at_most: 2}}"
    found = judge_check(parsed(shape), "study", of)
    reason = "expected positive values: the logarithm of zero does not exist."
    assert (found.verdict, found.sentence, found.reason) == ("undecided", f"Not judged: {reason}", reason)
    assert (found.kind, len(found.results)) == ("shape", 12)


def test_blocks_that_ended_differently_decide_no_outcome(evidence: Evidence) -> None:
    blocks = evidence.frames[str(evidence.plan.row("study", "speed/oom").cell)]["block"]
    mixed = changed(evidence, "speed/oom", outcome=["ok" if block else "oom" for block in blocks])
    found = judge_check(parsed("{kind: outcome, of: speed/oom, expect: oom}"), "study", mixed)
    assert (found.verdict, found.reason) == ("undecided", "Its blocks ended differently.")
    assert found.sentence.startswith("oom ended ok and oom")


def with_deviations(evidence: Evidence, address: str, *found: Deviation) -> Evidence:
    """As if the cell at `address` departed from the document's."""
    other = copy.copy(evidence)
    other.plan = evidence.plan.model_copy(deep=True)
    experiment, _, name = address.partition("/")
    rows = other.plan.studies["study"].rows[experiment]
    rows[name] = rows[name].model_copy(update={"deviations": found})
    return other


OTHER_MODEL = Deviation(of="model", here="small", documented="large")


def test_a_size_is_the_document_s_where_hardware_and_work_are(evidence: Evidence) -> None:
    for hardware, size in (("A10G", "at_most: 0.3"), ("A100", "at_most: 0.3"), ("A10G", "at_most: 0.6")):
        check = parsed((RATIO % "below")[:-1] + f", there: {{hardware: {hardware}, expect: {{{size}}}}}}}")
        refuted = (hardware, size) == ("A10G", "at_most: 0.3")
        assert judge_check(check, "study", evidence).verdict == ("refuted" if refuted else "supported")
        elsewhere = with_deviations(evidence, "speed/half", OTHER_MODEL)
        assert judge_check(check, "study", elsewhere).verdict == "supported", "another model's size is nobody's"


@pytest.mark.parametrize(
    "check",
    [
        RATIO % "below",
        "{kind: shape, metric: step_ms, of: batches/linear, over: batch, expect: {at_most: 2}}",
        "{kind: frontier, of: batches/flat, over: batch, published: 4, hardware: NVIDIA A10G}",
        "{kind: identity, of: speed/half, to: speed/plain}",
        "{kind: outcome, of: speed/oom, expect: oom}",
    ],
)
def test_what_a_claim_needs_is_asked_of_every_cell_but_tokens_and_outcomes(evidence: Evidence, check: str) -> None:
    always = "identity" in check or "outcome" in check

    def reason(evidence: Evidence, **more: Any) -> str | None:
        base = {"id": "X1", "kind": "any", "statement": "A sentence", "checks": [parse_yaml(check, "study")]}
        return fitness.unfit(Claim.model_validate(base | more), parsed(check), "study", evidence)

    assert reason(evidence) is None
    assert reason(evidence, device="cuda") is None
    assert reason(evidence, device="cpu") == "The sentence is about a CPU, and what was measured here is a GPU."
    random = "What is said decides this speed, and small says nothing: its weights are random."
    assert reason(evidence, needs={"trained": True}) == (None if always else random)
    address = {"ratio": "speed/plain", "shape": "batches/linear@batch=4"}.get(
        parsed(check).kind, "batches/flat@batch=2"
    )
    other = with_deviations(evidence, address, OTHER_MODEL)
    one_model = f"The sentence is about one model: {OTHER_MODEL.text}."
    assert reason(other, needs={"model": True}) == (None if always else one_model)
    assert reason(other) is None
    unlike = with_deviations(evidence, address, Deviation(of="device", here="this", documented="that"))
    assert reason(unlike, needs={"model": True}) is None


def test_reasons_are_whole_sentences() -> None:
    small, first = cell(TRAINED), cell(TRAINED, source=TRAINED, keep_layers=4)
    assert fitness._lacks(Needs(checkpoint_gb=1), small) == (
        "target has 0.54 GB of weights. At least 1 GB are needed: below, time and memory are mostly those of starting "
        "and of the libraries."
    )
    assert fitness._lacks(Needs(draft=True), first) == (
        "The draft, drafter, is the first 4 layers of a model that was trained whole: its target accepts next to "
        "nothing of it. A draft that was trained as a model of its own decides."
    )


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("speed/tgi", "speed/tgi cannot be run: {unavailable}"),
        ("speed/wrong", "speed/wrong ran, but its outputs were wrong: asked for nan"),
        ("speed/slow", "speed/slow ended timeout: asked for hang"),
    ],
)
def test_a_cell_without_numbers_is_missing_for_its_reason(evidence: Evidence, address: str, why: str) -> None:
    with pytest.raises(Missing) as missing:
        side_at("study", address, evidence)
    assert str(missing.value) == why.format(unavailable=evidence.plan.row("study", address).unavailable)


def test_what_is_undecided_says_how_many_minutes_would_decide(evidence: Evidence) -> None:
    """A round of both took a minute, its last one; the forecast is that of the rounds so far."""
    rounds = (PairedRound((0.03, 0.05, 0.04)), PairedRound((0.05, 0.03, 0.04)))
    in_rounds = evidence
    for address, seconds in (("speed/half", 40.0), ("speed/plain", 20.0)):
        blocks = evidence.frames[str(evidence.plan.row("study", address).cell)]["block"]
        took = blocks.map({0: 900.0, 1: seconds, 2: 900.0})
        in_rounds = changed(in_rounds, address, round=blocks.map({0: "a", 1: "b", 2: None}), arm_s=took)
    check = parsed(RATIO % "above")
    compared = Comparison((Interval(1.04, 0.9, 1.2, 2),), rounds)
    sides = sides_of(check, "study", in_rounds)
    found = by_interval(check, in_rounds, sides, compared, "above", lambda _: "A sentence.")
    needed = compared.rounds_needed(1.02, math.inf)
    assert found.needed is not None
    assert needed is not None
    assert (found.needed.rounds, found.needed.minutes) == (needed, (needed - 2) * 60 / 60)
    assert str(found.reason).startswith("The interval reaches beyond the range that would decide: about ")
    early = compared._replace(looks=(Interval(1.04, None, None, 1),))
    found = by_interval(check, in_rounds, sides, early, "above", lambda _: "A sentence.")
    assert str(found.reason).startswith("1 round so far, and an interval needs 2: about ")
    at = math.log(1.02)
    near = compared._replace(rounds=(PairedRound((at - 0.01, at, at + 0.01)), PairedRound((at + 0.01, at, at - 0.01))))
    found = by_interval(check, in_rounds, sides, near, "above", lambda _: "A sentence.")
    assert found.needed is not None
    assert (found.needed.rounds, found.needed.minutes) == (None, None)
    assert str(found.reason).endswith("its estimate lies so near the end of that range that no budget would.")


def test_verdicts_say_of_which_device_tolerance_and_claims_they_are(tmp_path: Path) -> None:
    before, lab = os.getcwd(), Lab(tmp_path)  # noqa: PTH109
    os.chdir(tmp_path)
    try:
        more = "published: '2 times', note: a note, "
        study = CELLS + f"claims: [{{id: X1, kind: any, statement: A sentence, {more}checks: [{RATIO % 'below'}]}}]\n"
        plan = lab.plan(study, machine=A10G, device="cuda", blocks=2)
        table = lab.table(plan)
        found = judge(plan, table)
        strict = judge(plan, table, tolerance=0.6)
    finally:
        os.chdir(before)
    assert (found.device, found.device_name, found.frontiers) == ("cuda", "NVIDIA A10G", {})
    assert (found.tolerance, strict.tolerance) == (plan.params.measure.tolerance, 0.6)
    (claim,) = found.claims
    assert (claim.study, claim.id, claim.kind, claim.statement) == ("study", "X1", "any", "A sentence")
    assert (claim.published, claim.note, claim.verdict, claim.reason) == ("2 times", "a note", "supported", None)
    assert [check.blocks for check in claim.checks] == [2]
    assert strict.claims[0].verdict == "refuted", "0.5 is within 0.6 of 1"


@pytest.mark.parametrize(
    ("check", "address"),
    [
        ("{kind: outcome, of: speed/oom, expect: oom}", "speed/oom"),
        (RATIO % "below", "speed/half"),
        ("{kind: identity, of: speed/half, to: speed/plain}", "speed/plain"),
        ("{kind: ratio, metric: energy_j_per_token, of: speed/half, to: speed/plain, expect: above}", "speed/half"),
    ],
)
def test_doubts_about_a_cell_stand_at_whatever_rests_on_it(evidence: Evidence, check: str, address: str) -> None:
    found = judge_check(parsed(check), "study", changed(evidence, address, flags="noisy; warm"))
    assert str(found.reason).endswith(f"In doubt: {address}: noisy; {address}: warm.")


def test_only_float32_refutes_that_tokens_are_the_same(evidence: Evidence) -> None:
    half = copy.copy(evidence)
    cells = dict(evidence.plan.cells)
    for address, dtype in (("speed/other", "float16"), ("speed/plain", "bfloat16")):
        id = str(evidence.plan.row("study", address).cell)
        cells[id] = cells[id].model_copy(update={"cell": cells[id].cell.model_copy(update={"dtype": dtype})})
    half.plan = evidence.plan.model_copy(update={"cells": cells})
    found = judge_check(parsed("{kind: identity, of: speed/other, to: speed/plain}"), "study", half)
    why = "In bfloat16 and float16 rounding alone can change a token: only float32 can refute this. In doubt: "
    assert found.verdict == "undecided"
    assert str(found.reason).startswith(why)


def test_a_figure_of_other_hardware_is_told_with_its_unit(evidence: Evidence) -> None:
    there = "{kind: absolute, metric: step_ms, of: speed/half, published: 20, within: 0.1, hardware: NVIDIA X9}"
    found = judge_check(parsed(there), "study", evidence)
    assert (found.verdict, found.sentence) == ("not runnable here", "The published 20 ms cannot be checked here.")
    assert found.reason == "It needs 1 x NVIDIA X9; this machine has NVIDIA A10G."


def test_two_blocks_are_enough_for_an_interval(evidence: Evidence) -> None:
    found = judged_at(evidence, "above", (1.2, 1.01, 1.4))
    assert (found.blocks, str(found.reason)[:19]) == (2, "The interval reache")


def test_whoever_may_go_on_looks_at_planned_rounds_alone(evidence: Evidence) -> None:
    found = Comparison((Interval(1.0, 0.9, 1.1, 4), Interval(1.0, 0.9, 1.1, 5)))
    assert evidence._looked_at(found) is found
    planned = copy.copy(evidence)
    planned.only_planned_looks = True
    assert planned._looked_at(found).looks == found.looks[:1]


FRONTIER = "{kind: frontier, of: batches/%s, over: batch, published: %d, hardware: NVIDIA A10G}"


@pytest.mark.parametrize(
    ("of", "published", "verdict", "sentence", "reason"),
    [
        ("flat", 4, "supported", "The largest batch that fits is 4; batch 8 does not. Published: 4.", None),
        ("flat", 8, "refuted", "The largest batch that fits is 4; batch 8 does not. Published: 8.", None),
        ("flat", 2, "refuted", "The largest batch that fits is 4; batch 8 does not. Published: 2.", None),
        (
            "linear",
            8,
            "undecided",
            "The largest batch that fits is 8; no larger one was tried. Published: 8.",
            "The sweep does not reach the frontier: it needs batch 8 and a larger one.",
        ),
    ],
)
def test_a_frontier_lies_between_what_fits_and_what_does_not(
    evidence: Evidence, of: str, published: int, verdict: str, sentence: str, reason: str | None
) -> None:
    found = judge_check(parsed(FRONTIER % (of, published)), "study", evidence)
    assert (found.verdict, found.sentence, found.reason) == (verdict, sentence, reason)
    doubted = changed(evidence, f"batches/{of}@batch=1", flags="noisy")
    doubts = f"In doubt: batches/{of}@batch=1: noisy."
    found = judge_check(parsed(FRONTIER % (of, published)), "study", doubted)
    assert found.reason == (f"{reason} {doubts}" if reason else doubts)


def test_where_nothing_fits_the_largest_is_none(evidence: Evidence) -> None:
    full = evidence
    for batch in (1, 2, 4):
        full = changed(full, f"batches/flat@batch={batch}", outcome="oom", reason="full")
    found = judge_check(parsed(FRONTIER % ("flat", 1)), "study", full)
    assert (found.verdict, found.estimate) == ("refuted", 0.0)
    assert found.sentence == "The largest batch that fits is 0; batch 1 does not. Published: 1."


def test_how_a_cell_ends_that_cannot_be_run_is_not_known(evidence: Evidence) -> None:
    found = judge_check(parsed("{kind: outcome, of: speed/tgi, expect: oom}"), "study", evidence)
    assert found.verdict == "not runnable here"
    assert found.reason == f"speed/tgi cannot be run: {evidence.plan.row('study', 'speed/tgi').unavailable}"
