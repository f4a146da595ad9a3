"""Bytes or seconds that follow from an architecture and the document's figures: the same on every machine.

Nothing is measured, so nothing is supported or refuted: the figures agree or they do not.
"""

from __future__ import annotations

from claimbench.cost_model import cost
from claimbench.errors import ConfigError
from claimbench.formatting import quantity
from claimbench.judging.evidence import Evidence, verdict_on
from claimbench.judging.expectations import bounds, bounds_text, verdict
from claimbench.schema.checks import ComputedCheck
from claimbench.schema.interval import Interval
from claimbench.schema.verdicts import CheckVerdict, Verdict


def judge(check: ComputedCheck, study: str, evidence: Evidence) -> CheckVerdict:
    arch = cost.architecture(check.architecture)
    if check.quantity == "weight_bytes":
        value, unit = arch.weights * check.bytes_per_weight, "B"
        what = f"The weights of {check.architecture} at {check.bytes_per_weight:g} bytes each are"
    elif check.quantity == "kv_bytes":
        value, unit = cost.kv_bytes(arch, check.batch, check.length, check.bytes_per_weight), "B"
        what = f"The keys and values of {check.architecture}, batch {check.batch}, {check.length} tokens, are"
    else:
        if check.bandwidth is None:
            raise ConfigError(
                f"studies/{study}.yaml: a check of weight_read_ms needs a `bandwidth` in bytes per second"
            )
        value, unit = arch.step_weights * check.bytes_per_weight / check.bandwidth * 1e3, "ms"
        what = f"Reading the weights of {check.architecture} at {quantity(check.bandwidth / 1e9)} GB/s takes"
    exactly = Interval(value, value, value)
    holds = verdict(exactly, bounds(check.expect, evidence.tolerance)) == Verdict.SUPPORTED
    sentence = f"{what} {quantity(value, unit)}, from {arch.weights:,} parameters."
    return verdict_on(check, sentence, Verdict.AGREES if holds else Verdict.DIFFERS, found=exactly)


def expected(check: ComputedCheck, tolerance: float) -> str:
    return bounds_text(check.expect, tolerance, "ms" if check.quantity == "weight_read_ms" else "B")
