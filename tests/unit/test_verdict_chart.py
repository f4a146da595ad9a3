"""The figure that a report opens with: a row a claim, its ratio on a logarithmic axis, no dot where there is none."""

from __future__ import annotations

import re
from typing import Any

import pytest

from claimbench.reporting import study_figures, verdict_chart
from claimbench.reporting.verdict_chart import Dot, headline, ratio_of
from claimbench.schema.interval import Interval
from claimbench.schema.verdicts import CheckVerdict, ClaimVerdict, Verdict


def check(verdict: Verdict = Verdict.SUPPORTED, kind: str = "ratio", **fields: Any) -> CheckVerdict:
    given = {"verdict": verdict, "kind": kind, "sentence": "s", "expect": "above 1", "reason": None, "results": ()}
    values = {name: None for name in CheckVerdict.model_fields if CheckVerdict.model_fields[name].is_required()}
    return CheckVerdict.model_construct(**{**values, "low": None, "high": None, **given, **fields})


def claim(id: str, verdict: Verdict, *checks: CheckVerdict, statement: str = "It is faster") -> ClaimVerdict:
    values = {name: None for name in ClaimVerdict.model_fields}
    given = {"study": "s", "id": id, "statement": statement, "verdict": verdict, "checks": checks}
    return ClaimVerdict.model_construct(**{**values, **given})


def test_a_claim_is_told_by_the_check_that_makes_its_verdict() -> None:
    good, bad = check(estimate=3.0), check(Verdict.REFUTED, estimate=0.9)
    tokens = check(kind="tokens", estimate=1.0)
    assert headline(claim("Q1", Verdict.REFUTED, good, bad)) is bad
    assert headline(claim("Q2", Verdict.SUPPORTED, tokens, good)) is good
    assert headline(claim("Q3", Verdict.SUPPORTED, tokens)) is tokens
    assert headline(claim("Q4", Verdict.NOT_RUNNABLE)) is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"estimate": 2.0, "low": 1.5, "high": 3.0}, Interval(2.0, 1.5, 3.0)),
        ({"estimate": 2.0}, Interval(2.0)),
        ({"estimate": 2.0, "low": 0.0, "high": 3.0}, None),
        ({"estimate": 0.0}, None),
        ({"estimate": None}, None),
        ({"estimate": 2.0, "kind": "shape"}, None),
    ],
)
def test_only_a_ratio_above_zero_stands_on_the_axis(fields: dict[str, Any], expected: Interval | None) -> None:
    assert ratio_of(check(**fields)) == expected
    assert ratio_of(None) is None


def test_the_figure_has_a_row_a_claim_and_the_same_bytes_each_time() -> None:
    dots = [
        Dot("A1 <One> & two", Verdict.SUPPORTED, Interval(4.0, 3.0, 5.0), "4x"),
        Dot("A2 Another", Verdict.REFUTED, Interval(0.25), "0.25x"),
        Dot("A3 A third", Verdict.NOT_RUNNABLE, None, "not runnable here"),
    ]
    text = verdict_chart.draw("t", verdict_chart.described(dots), dots)
    assert text == verdict_chart.draw("t", verdict_chart.described(dots), dots)
    written = re.sub(r"<[^>]+>", " ", text)
    for words in ("A1", "A2", "A3", "not runnable here", "1x", "supported", "refuted"):
        assert words in written
    assert "A1 &lt;One&gt; &amp; two: supported, 4.0x [3.0x, 5.0x]; A2 Another: refuted, 0.250x" in text


def test_a_study_without_a_ratio_has_no_such_figure() -> None:
    assert study_figures.of_verdicts("s", [claim("Q1", Verdict.SUPPORTED, check(kind="tokens", estimate=1.0))]) is None
    unknown = claim("Q2", Verdict.NOT_RUNNABLE, check(Verdict.NOT_RUNNABLE, estimate=None))
    assert study_figures.of_verdicts("s", [unknown]) is None
    drawn = study_figures.of_verdicts(
        "s", [unknown, claim("Q3", Verdict.UNDECIDED, check(Verdict.UNDECIDED, estimate=1.1))]
    )
    assert drawn is not None
    assert "Q2 It is faster: not runnable here; Q3" in " ".join(drawn.alt.split())
