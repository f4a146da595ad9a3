"""A sentence is decided by cells that are what it is about, and by no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from claimbench.judging.judge import judge
from claimbench.schema.result import Result
from claimbench.schema.verdicts import ClaimVerdict

Made = Callable[..., Result]

CELLS = """
experiments:
  speed:
    question: How fast?
    cells:
      plain: {}
      half: {options: {step_ms: 20}}
      other: {options: {token: 7}}
  real:
    question: And with weights that were trained?
    hold: {checkpoint: trained}
    cells:
      plain: {}
      half: {options: {step_ms: 20}}
"""
SLOWER = "{kind: ratio, metric: decode_tok_s, of: speed/half, to: speed/plain, expect: above}"
TRAINED = SLOWER.replace("speed/", "real/")
SAME = "{kind: identity, of: speed/other, to: speed/plain}"
CHECKPOINTS = {
    name: {"source": source, "architecture": "smollm2-135m"}
    for name, source in (("small", "random://smollm2-135m?seed=0"), ("trained", "file:///model"))
}


def judged(lab: Any, more: str, *checks: str, **planned: Any) -> ClaimVerdict:
    claim = f"claims: [{{id: X1, kind: any, statement: A sentence, {more}, checks: [{', '.join(checks)}]}}]\n"
    plan = lab.plan(CELLS + claim, more={"checkpoints": CHECKPOINTS}, **planned)
    return judge(plan, lab.table(plan)).claims[0]


def test_a_sentence_about_a_gpu_is_not_refuted_by_a_cpu(lab: Any) -> None:
    assert judged(lab, "device: cpu", SLOWER).verdict == "refuted"
    claim = judged(lab, "device: cuda", SLOWER)
    assert claim.verdict == "not runnable here"
    assert claim.reason == "The sentence is about a GPU, and what was measured here is a CPU."
    assert claim.checks[0].estimate == pytest.approx(0.5, rel=0.02)  # what was measured still stands there


@pytest.mark.parametrize(
    ("needs", "check", "verdict"),
    [
        ("needs: {trained: true}", SLOWER, "not runnable here"),
        ("needs: {trained: true}", TRAINED, "refuted"),
        ("needs: {checkpoint_gb: 100}", SLOWER, "not runnable here"),
        ("needs: {checkpoint_gb: 0.1}", SLOWER, "refuted"),
    ],
)
def test_what_a_sentence_needs_decides_whether_its_cells_do(lab: Any, needs: str, check: str, verdict: str) -> None:
    assert judged(lab, needs, check).verdict == verdict


def test_another_token_refutes_whatever_a_sentence_needs(lab: Any) -> None:
    claim = judged(lab, "needs: {trained: true}", SLOWER, SAME)
    assert [check.verdict for check in claim.checks] == ["not runnable here", "refuted"]
    assert claim.verdict == "refuted"
