"""What decides: the claims, with their limits, and the rules that judge them. Fixed before the first round."""

from __future__ import annotations

from claimbench.analysis import paired, validity
from claimbench.schema.json_file import digest
from claimbench.schema.plan import Plan


def protocol_of(plan: Plan) -> str:
    """A hash of it. A round says which it was measured under, so that a claim or a rule that was edited since shows."""
    claims = {
        name: [claim.model_dump(mode="json", exclude_defaults=True) for claim in each.study.claims]
        for name, each in plan.studies.items()
    }
    rules = [
        paired.ALPHA,
        paired.TRIM,
        list(paired.LOOKS),
        list(paired.STEADY),
        list(paired.RESTLESS),
        [list(rule) for rule in validity.RULES],
    ]
    return digest([claims, plan.params.measure.tolerance, rules], 16)
