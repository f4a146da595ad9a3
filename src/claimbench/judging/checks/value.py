"""A metric of one cell in its own unit."""

from __future__ import annotations

from claimbench.analysis import stats
from claimbench.analysis.comparing import Comparison
from claimbench.formatting import quantity, range_text
from claimbench.judging.evidence import Evidence, by_interval, side_at
from claimbench.judging.expectations import bounds_text, unit_of
from claimbench.schema.checks import ValueCheck
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS
from claimbench.schema.verdicts import CheckVerdict


def judge(check: ValueCheck, study: str, evidence: Evidence) -> CheckVerdict:
    side = side_at(study, check.of, evidence)
    blocks, metric = evidence.blocks(side.cell, check.metric), METRICS[check.metric]
    if metric.is_certain:
        worst = min if metric.better == "higher" else max
        values = [worst(block) for block in blocks if block]
        found = Interval(worst(values), worst(values), worst(values), max(2, len(values))) if values else None
    else:
        found = stats.interval(blocks)

    def say(interval: Interval) -> str:
        amount = quantity(interval.estimate, metric.unit)
        spread = "" if metric.is_certain else f" ({range_text(interval, metric.unit)})"
        return f"{side.title} has {amount} {'' if metric.unit else metric.title}".rstrip() + (
            f" of {metric.title}{spread}." if metric.unit else f"{spread}."
        )

    judged = by_interval(check, evidence, [side], Comparison((found,) if found else ()), check.expect, say)
    return judged.model_copy(update={"blocks": side.end.blocks_ok})


def expected(check: ValueCheck, tolerance: float) -> str:
    return bounds_text(check.expect, tolerance, unit_of(check.metric))
