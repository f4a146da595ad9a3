"""One cell's metric over another's, with an interval over the rounds that both have."""

from __future__ import annotations

import re
from collections.abc import Callable

from claimbench.formatting import quantity, range_text
from claimbench.judging.evidence import Evidence, Side, basis_of, by_interval, sides_of, verdict_on
from claimbench.judging.expectations import bounds, bounds_text, place
from claimbench.schema.checks import Expectation, GainCheck, RatioCheck
from claimbench.schema.interval import Interval
from claimbench.schema.machine import device_names, readable
from claimbench.schema.metrics import METRICS
from claimbench.schema.verdicts import CheckVerdict, Verdict


def compared(
    check: RatioCheck | GainCheck, study: str, evidence: Evidence, say: Callable[[list[Side], Interval], str]
) -> CheckVerdict:
    sides = sides_of(check, study, evidence)
    if sides[0].cell == sides[1].cell and (len(sides) == 2 or sides[2].cell == sides[3].cell):
        reason = f"{check.of} and {check.to} are the same cell here, so their ratio says nothing."
        return verdict_on(
            check, f"Not judged: {reason}", Verdict.UNDECIDED, reason=reason, basis=basis_of(sides, evidence)
        )
    try:
        found = evidence.ratio(sides, check.metric)
    except ValueError:
        reason = f"a block has zero {METRICS[check.metric].title}, and a ratio with zero means nothing."
        return verdict_on(
            check, f"Not judged: {reason}", Verdict.UNDECIDED, reason=reason, basis=basis_of(sides, evidence)
        )
    region = region_of(check, sides, evidence)
    return by_interval(check, evidence, sides, found, region, lambda interval: say(sides, interval))


def region_of(check: RatioCheck | GainCheck, sides: list[Side], evidence: Evidence) -> Expectation:
    """Where the ratio must lie: its size on the document's hardware, with the document's work; else its direction."""
    there = getattr(check, "there", None)
    if there is None:
        return check.expect
    names = device_names(evidence.plan.machine, evidence.plan.device)
    other_work = any(deviation.is_other_work for side in sides for deviation in side.row.deviations)
    is_there = any(re.search(there.hardware, name) for name in names) and not other_work
    return there.expect if is_there else check.expect


def judge(check: RatioCheck, study: str, evidence: Evidence) -> CheckVerdict:
    def say(sides: list[Side], found: Interval) -> str:
        of, to = sides
        title = METRICS[check.metric].title
        size = f"{quantity(found.estimate)} times that of '{to.title}' ({range_text(found)})"
        where = place(found, bounds(region_of(check, sides, evidence), evidence.tolerance))
        return f"{title[0].upper()}{title[1:]} of '{of.title}' is {size}: {where}."

    return compared(check, study, evidence, say)


def expected(check: RatioCheck, tolerance: float) -> str:
    text = bounds_text(check.expect, tolerance)
    if check.there is None:
        return text
    return f"{text}; on {readable(check.there.hardware)} {bounds_text(check.there.expect, tolerance)}"
