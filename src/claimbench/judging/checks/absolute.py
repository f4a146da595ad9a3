"""A figure of the document's own hardware: judged on that hardware, and set beside what physics allows elsewhere."""

from __future__ import annotations

from claimbench.analysis import stats
from claimbench.analysis.comparing import Comparison
from claimbench.formatting import quantity, range_text
from claimbench.judging import other_hardware
from claimbench.judging.evidence import Evidence, by_interval, side_at, verdict_on
from claimbench.judging.expectations import bounds_text, unit_of
from claimbench.schema.checks import AbsoluteCheck, Region
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS
from claimbench.schema.verdicts import CheckVerdict, Verdict


def judge(check: AbsoluteCheck, study: str, evidence: Evidence) -> CheckVerdict:
    elsewhere_reason = other_hardware.not_here(check, study, check.of, evidence.plan)
    if elsewhere_reason:
        note = other_hardware.roofline(check, study, evidence.plan, evidence.frames)
        sentence = (
            f"The published {quantity(check.published, unit_of(check.metric))} cannot be checked here. {note}".strip()
        )
        return verdict_on(check, sentence, Verdict.NOT_RUNNABLE, reason=elsewhere_reason)
    side = side_at(study, check.of, evidence)
    found = stats.interval(evidence.blocks(side.cell, check.metric))
    compared = Comparison((found,) if found else ())
    unit = unit_of(check.metric)

    def say(interval: Interval) -> str:
        amount = f"{quantity(interval.estimate, unit)} ({range_text(interval, unit)})"
        return f"{side.title}: {METRICS[check.metric].title} {amount}; published {quantity(check.published, unit)}."

    return by_interval(check, evidence, [side], compared, _region(check), say)


def expected(check: AbsoluteCheck, tolerance: float) -> str:
    return bounds_text(_region(check), tolerance, unit_of(check.metric))


def _region(check: AbsoluteCheck) -> Region:
    return check.expect or Region(about=float(check.published), within=float(check.within))
