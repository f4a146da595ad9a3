"""How a metric grows with what is swept: the exponent of a power law, with its interval."""

from __future__ import annotations

from claimbench.formatting import power
from claimbench.judging.evidence import (
    Evidence,
    Missing,
    Side,
    basis_of,
    by_interval,
    curve,
    joined,
    side_at,
    verdict_on,
)
from claimbench.judging.expectations import bounds_text
from claimbench.schema.checks import ShapeCheck
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS
from claimbench.schema.verdicts import CheckVerdict, Verdict


def judge(check: ShapeCheck, study: str, evidence: Evidence) -> CheckVerdict:
    kept: list[tuple[float, str, list[Side]]] = []  # swept value, the other swept settings, of and to
    missing: list[str] = []
    pairs = [curve(study, address, check.over, evidence) for address in (check.of, check.to) if address]
    for points in zip(*pairs, strict=True):
        row = points[0][1]
        others = str({key: value for key, value in row.sweep.items() if key != check.over})
        try:
            kept.append((float(row.sweep[check.over]), others, [side_at(study, name, evidence) for name, _ in points]))
        except Missing as reason:
            missing.append(str(reason))
    if len({x for x, _, _ in kept}) < 2:
        raise Missing(
            f"a curve needs at least two points, and {len(kept)} gave numbers; {'; '.join(missing)}".rstrip("; ")
        )
    curves = [[(x, sides[k]) for x, _, sides in kept] for k in range(len(pairs))]
    sides = [side for _, _, pair in kept for side in pair]
    try:
        found = evidence.exponent(curves, check.metric, [others for _, others, _ in kept])
    except ValueError as error:
        return verdict_on(
            check, f"Not judged: {error}.", Verdict.UNDECIDED, reason=f"{error}.", basis=basis_of(sides, evidence)
        )
    title = kept[0][2][0].row.title + (f" over {kept[0][2][1].row.title}" if check.to else "")
    span = f"{min(x for x, _, _ in kept):g} to {max(x for x, _, _ in kept):g}"

    def say(interval: Interval) -> str:
        law = f"{check.over}^{power(interval.estimate)}"
        if interval.ends:
            law += f" ({power(interval.ends[0])} to {power(interval.ends[1])})"
        metric = METRICS[check.metric].title
        return f"{metric[0].upper()}{metric[1:]} of {title} goes as {law}, from {check.over} {span}."

    judged = by_interval(check, evidence, sides, found, check.expect, say)
    left_out = f"Left out: {'; '.join(missing)}." if missing else None
    return judged.model_copy(update={"reason": joined(judged.reason, left_out)})


def expected(check: ShapeCheck, tolerance: float) -> str:
    return bounds_text(check.expect, tolerance)
