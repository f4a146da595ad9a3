"""How a cell ends, for claims about what is not supported or does not fit."""

from __future__ import annotations

from functools import partial

from claimbench.judging.evidence import Evidence, Missing, any_side_at, basis_of, doubts_about, verdict_on
from claimbench.schema.checks import OutcomeCheck
from claimbench.schema.outcome import Outcome
from claimbench.schema.verdicts import CheckVerdict, Verdict


def judge(check: OutcomeCheck, study: str, evidence: Evidence) -> CheckVerdict:
    side = any_side_at(study, check.of, evidence)
    if side is None:
        raise Missing(f"{check.of} cannot be run: {evidence.plan.row(study, check.of).unavailable}")
    judged = partial(verdict_on, check, blocks=side.end.blocks, basis=basis_of([side], evidence))
    outcomes = set(evidence.frames[side.cell].drop_duplicates("block")["outcome"].str.removeprefix("implied-"))
    why = f": {side.end.reason}" if side.end.reason else ""
    sentence = f"{side.title} ended {' and '.join(sorted(outcomes))}{why}."
    if len(outcomes) > 1:
        return judged(sentence, Verdict.UNDECIDED, reason="Its blocks ended differently.")
    holds = outcomes == {check.expect} and (check.reason_contains or "").lower() in (side.end.reason or "").lower()
    if not holds and outcomes <= {Outcome.UNAVAILABLE, Outcome.TIMEOUT, Outcome.ERROR}:
        raise Missing(f"{check.of} ended {side.end.outcome}: {side.end.reason}")
    return judged(sentence, Verdict.SUPPORTED if holds else Verdict.REFUTED, reason=doubts_about([side]))


def expected(check: OutcomeCheck, tolerance: float) -> str:
    return f"ends {check.expect}" + (f", because of '{check.reason_contains}'" if check.reason_contains else "")
