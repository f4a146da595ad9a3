"""Whether one technique gains more here than there: the ratio of two ratios."""

from __future__ import annotations

from claimbench.formatting import quantity, range_text
from claimbench.judging.checks.ratio import compared
from claimbench.judging.evidence import Evidence, Side
from claimbench.judging.expectations import bounds, bounds_text, place
from claimbench.schema.checks import GainCheck
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS
from claimbench.schema.verdicts import CheckVerdict


def judge(check: GainCheck, study: str, evidence: Evidence) -> CheckVerdict:
    def say(sides: list[Side], found: Interval) -> str:
        of, to, than_of, than_to = sides
        title = METRICS[check.metric].title
        ratio = f"In {title}, '{of.title}' over '{to.title}'"
        size = f"{quantity(found.estimate)} times '{than_of.title}' over '{than_to.title}' ({range_text(found)})"
        return f"{ratio} is {size}: {place(found, bounds(check.expect, evidence.tolerance))}."

    return compared(check, study, evidence, say)


def expected(check: GainCheck, tolerance: float) -> str:
    return bounds_text(check.expect, tolerance)
