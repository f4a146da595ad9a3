"""The largest batch of a sweep that fits in memory, against the document's."""

from __future__ import annotations

from functools import partial

from claimbench.judging import other_hardware
from claimbench.judging.evidence import (
    Evidence,
    Missing,
    Side,
    any_side_at,
    basis_of,
    curve,
    doubts_about,
    joined,
    verdict_on,
)
from claimbench.schema.checks import FrontierCheck
from claimbench.schema.frontier import describe
from claimbench.schema.interval import Interval
from claimbench.schema.outcome import OUT_OF_MEMORY, Outcome
from claimbench.schema.verdicts import CheckVerdict, Verdict


def judge(check: FrontierCheck, study: str, evidence: Evidence) -> CheckVerdict:
    points = curve(study, check.of, check.over, evidence)
    for address, _ in points:
        reason = other_hardware.not_here(check, study, address, evidence.plan)
        if reason:
            note = other_hardware.bound(check, study, evidence.plan)
            sentence = f"The published frontier ({check.over} {check.published}) cannot be checked here. {note}".strip()
            return verdict_on(check, sentence, Verdict.NOT_RUNNABLE, reason=reason)
    sides = [side for address, _ in points if (side := any_side_at(study, address, evidence))]
    fits, fails = [], []
    for side in sides:
        value = float(side.row.sweep[check.over])
        if side.end.outcome == Outcome.OK:
            fits.append(value)
        elif side.end.outcome in OUT_OF_MEMORY:
            fails.append(value)
        else:
            raise Missing(f"{side.address} ended {side.end.outcome}: {side.end.reason}")
    largest, smallest_oom = max(fits, default=0.0), min(fails, default=None)
    limit = f"{check.over} {smallest_oom:g} does not" if smallest_oom is not None else "no larger one was tried"
    between = _searched(sides, evidence)
    sentence = f"The largest {check.over} that fits is {largest:g}; {limit}.{between} Published: {check.published}."
    judged = partial(
        verdict_on,
        check,
        sentence,
        found=Interval(largest),
        blocks=min((side.end.blocks for side in sides), default=0),
        basis=basis_of(sides, evidence),
    )
    if largest > check.published or (smallest_oom is not None and smallest_oom <= check.published):
        return judged(Verdict.REFUTED, reason=doubts_about(sides))
    if largest == check.published and smallest_oom is not None:
        return judged(Verdict.SUPPORTED, reason=doubts_about(sides))
    reason = f"The sweep does not reach the frontier: it needs {check.over} {check.published} and a larger one."
    return judged(Verdict.UNDECIDED, reason=joined(reason, doubts_about(sides)))


def _searched(sides: list[Side], evidence: Evidence) -> str:
    """What a search between the swept batches found. The verdict rests on the sweep, as the document's figure does."""
    ids = {side.row.frontier for side in sides} - {None}
    found = [evidence.frontiers[id] for id in ids if id in evidence.frontiers]
    return "".join(f" {describe(one)}" for one in found)


def expected(check: FrontierCheck, tolerance: float) -> str:
    return f"the largest {check.over} that fits is {check.published}"
