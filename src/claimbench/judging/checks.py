"""One check of a claim -> its verdict, with a sentence that says the numbers. One function per kind of check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from claimbench import stats
from claimbench.errors import ConfigError
from claimbench.fitting import told
from claimbench.judging import elsewhere
from claimbench.judging.evidence import (
    NOT_RUNNABLE,
    CheckVerdict,
    Evidence,
    Missing,
    Side,
    any_side_at,
    by_interval,
    doubts_about,
    joined,
    resting_on,
    side_at,
    sides_of,
    verdict_on,
)
from claimbench.judging.regions import bounds, direction, number, power, range_text, unit_of, verdict
from claimbench.metrics import METRICS
from claimbench.model import cost
from claimbench.plan import Row
from claimbench.stats import Interval
from claimbench.study import (
    AbsoluteCheck,
    Check,
    ComputedCheck,
    FrontierCheck,
    GainCheck,
    IdentityCheck,
    OutcomeCheck,
    RatioCheck,
    Region,
    ShapeCheck,
    ValueCheck,
)


def judge_check(check: Check, study: str, evidence: Evidence) -> CheckVerdict:
    """The verdict on one check of `study`.

    Raises:
        ConfigError: a curve over something that is not a number, or bytes over no bandwidth.
    """
    judges: dict[type[Any], Callable[[Any, str, Evidence], CheckVerdict]] = {
        RatioCheck: _ratio,
        GainCheck: _gain,
        IdentityCheck: _identity,
        ShapeCheck: _shape,
        ValueCheck: _value,
        OutcomeCheck: _outcome,
        ComputedCheck: _computed,
        AbsoluteCheck: _absolute,
        FrontierCheck: _frontier,
    }
    try:
        return judges[type(check)](check, study, evidence)
    except Missing as missing:
        return verdict_on(check, evidence, f"Not judged: {missing}.", NOT_RUNNABLE, reason=str(missing))


def _compared(
    check: RatioCheck | GainCheck, study: str, evidence: Evidence, say: Callable[[list[Side], Interval], str]
) -> CheckVerdict:
    sides = sides_of(check, study, evidence)
    if sides[0].cell == sides[1].cell and (len(sides) == 2 or sides[2].cell == sides[3].cell):
        reason = f"{check.of} and {check.to} are the same cell here, so their ratio says nothing."
        return verdict_on(
            check, evidence, f"Not judged: {reason}", "undecided", reason=reason, **resting_on(sides, evidence)
        )
    series = [evidence.blocks(side.cell, check.metric) for side in sides]
    try:
        found = stats.ratio_interval(*series) if len(series) == 2 else stats.gain_interval(*series)
    except ValueError:
        reason = f"a block has zero {METRICS[check.metric].title}, and a ratio with zero means nothing."
        return verdict_on(
            check, evidence, f"Not judged: {reason}", "undecided", reason=reason, **resting_on(sides, evidence)
        )
    return by_interval(check, evidence, sides, found, check.expect, lambda interval: say(sides, interval))


def _ratio(check: RatioCheck, study: str, evidence: Evidence) -> CheckVerdict:
    def say(sides: list[Side], found: Interval) -> str:
        of, to = sides
        title = METRICS[check.metric].title
        size = f"{number(found.estimate)} times that of '{to.title}' ({range_text(found)})"
        return f"{title[0].upper()}{title[1:]} of '{of.title}' is {size}: {direction(found, evidence.tolerance)}."

    return _compared(check, study, evidence, say)


def _gain(check: GainCheck, study: str, evidence: Evidence) -> CheckVerdict:
    def say(sides: list[Side], found: Interval) -> str:
        of, to, than_of, than_to = sides
        title = METRICS[check.metric].title
        ratio = f"In {title}, '{of.title}' over '{to.title}'"
        size = f"{number(found.estimate)} times '{than_of.title}' over '{than_to.title}' ({range_text(found)})"
        return f"{ratio} is {size}: {direction(found, evidence.tolerance)}."

    return _compared(check, study, evidence, say)


def _identity(check: IdentityCheck, study: str, evidence: Evidence) -> CheckVerdict:
    of, to = sides_of(check, study, evidence)
    rests_on = resting_on([of, to], evidence)
    if of.cell == to.cell:
        reason = f"{check.of} and {check.to} are the same cell here, so equal tokens say nothing."
        return verdict_on(check, evidence, f"Not judged: {reason}", "undecided", reason=reason, **rests_on)
    hashes = [evidence.frames[side.cell]["tokens_sha256"].dropna() for side in (of, to)]
    expected = hashes[1].mode().iloc[0]
    share = float((hashes[0] == expected).mean())
    blocks = min(of.end.blocks_ok, to.end.blocks_ok)
    found = {"estimate": share, "low": share, "high": share, "blocks": blocks, **rests_on}
    count = f"{int((hashes[0] == expected).sum())} of {len(hashes[0])} generations"
    if share == 1 and hashes[1].nunique() == 1:
        sentence = f"{of.title} gives the same tokens as {to.title} in {count}."
        return verdict_on(check, evidence, sentence, "supported", reason=doubts_about([of, to]), **found)
    sentence = f"{of.title} gives the same tokens as {to.title} in {count} only{_where(of, evidence)}."
    dtypes = {evidence.plan.cells[side.cell].cell.dtype for side in (of, to)}
    if dtypes == {"float32"}:
        return verdict_on(check, evidence, sentence, "refuted", reason=doubts_about([of, to]), **found)
    reason = f"In {' and '.join(sorted(dtypes))} rounding alone can change a token: only float32 can refute this."
    return verdict_on(check, evidence, sentence, "undecided", reason=joined(reason, doubts_about([of, to])), **found)


def _where(side: Side, evidence: Evidence) -> str:
    first = evidence.frames[side.cell]["first_divergence"].dropna()
    return f"; row 0 leaves the reference at new token {int(first.min())}" if len(first) else ""


def _curve(study: str, address: str, over: str, evidence: Evidence) -> list[tuple[str, Row]]:
    """(address, row) of every point of a swept cell, by the swept value."""
    experiment, _, label = address.partition("/")
    rows = evidence.plan.studies[study].rows[experiment]
    points = [(f"{experiment}/{name}", row) for name, row in rows.items() if row.label == label]
    for name, row in points:
        if isinstance(row.sweep[over], str):
            raise ConfigError(
                f"studies/{study}.yaml: {name}: a curve over '{over}' needs numbers, got {row.sweep[over]!r}"
            )
    return sorted(points, key=lambda point: float(point[1].sweep[over]))


def _shape(check: ShapeCheck, study: str, evidence: Evidence) -> CheckVerdict:
    kept: list[tuple[float, str, list[Side]]] = []  # swept value, the other swept settings, of and to
    missing: list[str] = []
    pairs = [_curve(study, address, check.over, evidence) for address in (check.of, check.to) if address]
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
    curves = [[(x, evidence.blocks(sides[k].cell, check.metric)) for x, _, sides in kept] for k in range(len(pairs))]
    sides = [side for _, _, pair in kept for side in pair]
    try:
        found = stats.exponent_interval(curves[0], *curves[1:], groups=[others for _, others, _ in kept])
    except ValueError as error:
        return verdict_on(
            check, evidence, f"Not judged: {error}.", "undecided", reason=f"{error}.", **resting_on(sides, evidence)
        )
    title = kept[0][2][0].row.title + (f" over {kept[0][2][1].row.title}" if check.to else "")
    span = f"{min(x for x, _, _ in kept):g} to {max(x for x, _, _ in kept):g}"

    def say(interval: Interval) -> str:
        law = f"{check.over}^{power(interval.estimate)}"
        if interval.low is not None and interval.high is not None:
            law += f" ({power(interval.low)} to {power(interval.high)})"
        metric = METRICS[check.metric].title
        return f"{metric[0].upper()}{metric[1:]} of {title} goes as {law}, from {check.over} {span}."

    judged = by_interval(check, evidence, sides, found, check.expect, say)
    left_out = f"Left out: {'; '.join(missing)}." if missing else None
    return judged.model_copy(update={"reason": joined(judged.reason, left_out)})


def _value(check: ValueCheck, study: str, evidence: Evidence) -> CheckVerdict:
    side = side_at(study, check.of, evidence)
    blocks, metric = evidence.blocks(side.cell, check.metric), METRICS[check.metric]
    if metric.is_certain:
        worst = min if metric.better == "higher" else max
        values = [worst(block) for block in blocks if block]
        found = Interval(worst(values), worst(values), worst(values), max(2, len(values))) if values else None
    else:
        found = stats.interval(blocks)

    def say(interval: Interval) -> str:
        amount = number(interval.estimate, metric.unit)
        spread = "" if metric.is_certain else f" ({range_text(interval, metric.unit)})"
        return f"{side.title} has {amount} {'' if metric.unit else metric.title}".rstrip() + (
            f" of {metric.title}{spread}." if metric.unit else f"{spread}."
        )

    judged = by_interval(check, evidence, [side], found, check.expect, say)
    return judged.model_copy(update={"blocks": side.end.blocks_ok})


def _outcome(check: OutcomeCheck, study: str, evidence: Evidence) -> CheckVerdict:
    side = any_side_at(study, check.of, evidence)
    if side is None:
        raise Missing(f"{check.of} cannot be run: {evidence.plan.row(study, check.of).unavailable}")
    rests_on = {"blocks": side.end.blocks, **resting_on([side], evidence)}
    outcomes = set(evidence.frames[side.cell].drop_duplicates("block")["outcome"].str.removeprefix("implied-"))
    why = f": {side.end.reason}" if side.end.reason else ""
    sentence = f"{side.title} ended {' and '.join(sorted(outcomes))}{why}."
    if len(outcomes) > 1:
        return verdict_on(check, evidence, sentence, "undecided", reason="Its blocks ended differently.", **rests_on)
    holds = outcomes == {check.expect} and (check.reason_contains or "").lower() in (side.end.reason or "").lower()
    if not holds and outcomes <= {"unavailable", "timeout", "error"}:
        raise Missing(f"{check.of} ended {side.end.outcome}: {side.end.reason}")
    return verdict_on(
        check, evidence, sentence, "supported" if holds else "refuted", reason=doubts_about([side]), **rests_on
    )


def _computed(check: ComputedCheck, study: str, evidence: Evidence) -> CheckVerdict:
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
        what = f"Reading the weights of {check.architecture} at {number(check.bandwidth / 1e9)} GB/s takes"
    result = verdict(Interval(value, value, value, 1), bounds(check.expect, evidence.tolerance))
    sentence = f"{what} {number(value, unit)}, from {arch.weights:,} parameters."
    return verdict_on(check, evidence, sentence, result, estimate=value, low=value, high=value)


def _absolute(check: AbsoluteCheck, study: str, evidence: Evidence) -> CheckVerdict:
    elsewhere_reason = elsewhere.not_here(check, study, check.of, evidence.plan)
    if elsewhere_reason:
        note = elsewhere.roofline(check, study, evidence.plan, evidence.frames)
        sentence = (
            f"The published {number(check.published, unit_of(check.metric))} cannot be checked here. {note}".strip()
        )
        return verdict_on(check, evidence, sentence, NOT_RUNNABLE, reason=elsewhere_reason)
    side = side_at(study, check.of, evidence)
    found = stats.interval(evidence.blocks(side.cell, check.metric))
    region, unit = Region(about=float(check.published), within=float(check.within)), unit_of(check.metric)

    def say(interval: Interval) -> str:
        amount = f"{number(interval.estimate, unit)} ({range_text(interval, unit)})"
        return f"{side.title}: {METRICS[check.metric].title} {amount}; published {number(check.published, unit)}."

    return by_interval(check, evidence, [side], found, region, say)


def _frontier(check: FrontierCheck, study: str, evidence: Evidence) -> CheckVerdict:
    points = _curve(study, check.of, check.over, evidence)
    for address, _ in points:
        reason = elsewhere.not_here(check, study, address, evidence.plan)
        if reason:
            note = elsewhere.bound(check, study, evidence.plan)
            sentence = f"The published frontier ({check.over} {check.published}) cannot be checked here. {note}".strip()
            return verdict_on(check, evidence, sentence, NOT_RUNNABLE, reason=reason)
    sides = [side for address, _ in points if (side := any_side_at(study, address, evidence))]
    fits, fails = [], []
    for side in sides:
        value = float(side.row.sweep[check.over])
        if side.end.outcome == "ok":
            fits.append(value)
        elif side.end.outcome in ("oom", "implied-oom"):
            fails.append(value)
        else:
            raise Missing(f"{side.address} ended {side.end.outcome}: {side.end.reason}")
    largest, smallest_oom = max(fits, default=0.0), min(fails, default=None)
    limit = f"{check.over} {smallest_oom:g} does not" if smallest_oom is not None else "no larger one was tried"
    between = _searched(sides, evidence)
    sentence = f"The largest {check.over} that fits is {largest:g}; {limit}.{between} Published: {check.published}."
    facts = {
        "estimate": largest,
        "blocks": min((side.end.blocks for side in sides), default=0),
        **resting_on(sides, evidence),
    }
    if largest > check.published or (smallest_oom is not None and smallest_oom <= check.published):
        return verdict_on(check, evidence, sentence, "refuted", reason=doubts_about(sides), **facts)
    if largest == check.published and smallest_oom is not None:
        return verdict_on(check, evidence, sentence, "supported", reason=doubts_about(sides), **facts)
    reason = f"The sweep does not reach the frontier: it needs {check.over} {check.published} and a larger one."
    return verdict_on(check, evidence, sentence, "undecided", reason=joined(reason, doubts_about(sides)), **facts)


def _searched(sides: list[Side], evidence: Evidence) -> str:
    """What a search between the swept batches found. The verdict rests on the sweep, as the document's figure does."""
    ids = {side.row.frontier for side in sides} - {None}
    found = [evidence.frontiers[id] for id in ids if id in evidence.frontiers]
    return "".join(f" {told(one)}" for one in found)
