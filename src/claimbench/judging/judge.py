"""Claims and a table -> verdicts. Pure.

The rule, in words. A check is judged by the 95 % interval of its number: supported where the whole interval lies in the
region that the check names, refuted where none of it does, undecided between, and undecided with fewer than two blocks.
A check whose cells gave no numbers is not runnable here, and so is a figure of hardware that this machine is not;
neither is ever refuted. A claim takes the verdict of its checks:

1. refuted, if any check is refuted: the sentence says all of it.
2. not runnable here, if no check could be judged, or if a check that any machine could judge was not runnable.
3. Otherwise only figures of the document's own hardware (absolute, frontier) may be missing. The verdict is that of the
   checks which were judged, and the reason names what was not: undecided if any of them is, else supported.

A claim of computed checks is measured nowhere: it agrees on paper if all of them do, and differs if one does not. A
check whose cells are not what the sentence is about (judging/fitness.py) is not runnable here, whatever they measured.

What is written, `results/verdicts.json`, is `Verdicts` of schema/verdicts.py.
"""

from __future__ import annotations

import pandas as pd

from claimbench.judging.checks import judge_check
from claimbench.judging.evidence import Evidence
from claimbench.judging.fitness import unfit
from claimbench.judging.recommend import advise
from claimbench.judging.summary import summarise
from claimbench.schema.checks import Check
from claimbench.schema.frontier import Frontier
from claimbench.schema.machine import device_names
from claimbench.schema.plan import Plan
from claimbench.schema.study import Claim
from claimbench.schema.verdicts import ON_PAPER, CheckVerdict, ClaimVerdict, Verdict, Verdicts

ELSEWHERE_KINDS = ("absolute", "frontier")


def judge(
    plan: Plan,
    table: pd.DataFrame,
    tolerance: float | None = None,
    frontiers: dict[str, Frontier] | None = None,
) -> Verdicts:
    """Verdicts on every claim of every study of `plan`; the tolerance is the plan's own unless given."""
    tolerance = plan.params.measure.tolerance if tolerance is None else tolerance
    evidence = Evidence(plan, table, tolerance, frontiers)
    cells = summarise(plan, table)
    names = device_names(plan.machine, plan.device)
    advice = advise(plan, table, cells, tolerance)
    return Verdicts(
        device=plan.device,
        device_name=names[0] if names else None,
        tolerance=tolerance,
        claims=tuple(
            judge_claim(claim, study, evidence)
            for study, planned in plan.studies.items()
            for claim in planned.study.claims
        ),
        cells=cells,
        frontiers=frontiers or {},
        recommendations=advice.named,
        left_out=advice.left_out,
    )


def judge_claim(claim: Claim, study: str, evidence: Evidence) -> ClaimVerdict:
    checks = tuple(check_of(claim, check, study, evidence) for check in claim.checks)
    verdict, reason = combine(checks)
    return ClaimVerdict(
        study=study,
        id=claim.id,
        kind=claim.kind,
        statement=claim.statement,
        published=claim.published,
        note=claim.note,
        verdict=verdict,
        reason=reason,
        checks=checks,
    )


def check_of(claim: Claim, check: Check, study: str, evidence: Evidence) -> CheckVerdict:
    """The verdict on a check; what was measured stays beside the reason where it cannot decide."""
    judged, reason = judge_check(check, study, evidence), unfit(claim, check, study, evidence)
    if reason is None or judged.verdict == Verdict.NOT_RUNNABLE:
        return judged
    changes = {"verdict": Verdict.NOT_RUNNABLE, "reason": reason, "needed": None}
    return judged.model_copy(update=changes)


def combine(checks: tuple[CheckVerdict, ...]) -> tuple[Verdict, str | None]:
    """The verdict of a claim from its checks, by the rule above, and the reason where it needs one."""
    if all(check.verdict in ON_PAPER for check in checks):
        differs = any(check.verdict == Verdict.DIFFERS for check in checks)
        return (Verdict.DIFFERS if differs else Verdict.AGREES), None
    absent = [check for check in checks if check.verdict == Verdict.NOT_RUNNABLE]
    judged = [check for check in checks if check.verdict != Verdict.NOT_RUNNABLE]
    not_judged = f"Not judged: {_reasons(absent)}" if absent else None
    if any(check.verdict == Verdict.REFUTED for check in judged):
        return Verdict.REFUTED, _joined(
            _reasons([check for check in judged if check.verdict == Verdict.REFUTED]), not_judged
        )
    if not judged or any(check.kind not in ELSEWHERE_KINDS for check in absent):
        return Verdict.NOT_RUNNABLE, _reasons(absent)
    for verdict in (Verdict.UNDECIDED, Verdict.BOUNDED):
        open_ones = [check for check in judged if check.verdict == verdict]
        if open_ones:
            return verdict, _joined(_reasons(open_ones), not_judged)
    return Verdict.SUPPORTED, _joined(_reasons(judged), not_judged)


def _reasons(checks: list[CheckVerdict]) -> str | None:
    found = dict.fromkeys(check.reason.rstrip(".") + "." for check in checks if check.reason)
    return " ".join(found) or None


def _joined(*parts: str | None) -> str | None:
    return " ".join(part for part in parts if part) or None
