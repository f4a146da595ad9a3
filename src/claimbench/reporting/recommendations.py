"""What to switch on here, in words: recommendations as rows of a table, each with its cost."""

from __future__ import annotations

from typing import NamedTuple

from claimbench.formatting import interval, number, percent
from claimbench.reporting.report_data import ReportData
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS
from claimbench.schema.verdicts import Objective, Recommendation

OBJECTIVES: dict[Objective, str] = {
    "latency": "a lower latency",
    "throughput": "a higher throughput",
    "memory": "less memory",
}
MOST_SHOWN = 3


class Advice(NamedTuple):
    """What one cell gains over another, by one metric or several, as one row."""

    best: Recommendation
    what: str
    where: str
    costs: str
    gains: tuple[str, ...]


class ObjectiveAdvice(NamedTuple):
    """All advice for one objective, best first; what is beyond the first few is folded away."""

    aim: str
    shown: tuple[Advice, ...]
    folded: tuple[Advice, ...]


def objectives(data: ReportData) -> list[ObjectiveAdvice]:
    """For each objective its recommendations, best first, and the words for what each costs."""
    found = []
    for objective, aim in OBJECTIVES.items():
        pairs: dict[tuple[str, str], list[Recommendation]] = {}
        for entry in data.verdicts.recommendations:
            if entry.objective == objective:
                pairs.setdefault((entry.cell, entry.reference), []).append(entry)
        described = tuple(_describe(entries) for entries in pairs.values())
        found.append(ObjectiveAdvice(aim, described[:MOST_SHOWN], described[MOST_SHOWN:]))
    return found


def _describe(entries: list[Recommendation]) -> Advice:
    best = entries[0]
    return Advice(
        best=best,
        what=_switch_on(best),
        where=", ".join(f"{place.title} ({place.study})" for place in best.shown_in[:2]),
        costs=_costs(best),
        gains=tuple(
            f"{interval(Interval(entry.gain, entry.low, entry.high), 'x')} ({METRICS[entry.metric].title})"
            for entry in entries
        ),
    )


def _switch_on(entry: Recommendation) -> str:
    names = ", ".join(f"`{name}`" for name in entry.optimizations)
    system = f"{names} on `{entry.backend}`" if names else f"`{entry.backend}` as it is"
    if entry.batch != entry.reference_batch:
        return f"{system}, at batch {entry.batch} instead of {entry.reference_batch}"
    return system


def _costs(entry: Recommendation) -> str:
    cost = entry.cost
    parts = []
    if cost.memory_ratio is not None and entry.objective != "memory":
        parts.append(f"{number(cost.memory_ratio)}x the memory")
    if entry.batch != entry.reference_batch and cost.step_ratio is not None:
        parts.append(f"each step takes {number(cost.step_ratio)}x the time")
    if cost.decode_ratio is not None and cost.decode_ratio < 1:
        parts.append(f"{number(cost.decode_ratio)}x the decode speed")
    if cost.first_call_extra_s is not None and cost.first_call_extra_s >= 0.1:
        even = cost.break_even_tokens
        pays = f", which pays after {even:,.0f} tokens" if even is not None else ""
        parts.append(f"{number(cost.first_call_extra_s)} s more for the first call{pays}")
    parts.append(_token_cost(entry))
    return "; ".join(parts)


def _token_cost(entry: Recommendation) -> str:
    cost = entry.cost
    if cost.tokens_match:
        return "same tokens"
    if cost.tokens_match is None:
        return "tokens not compared"
    agree = f": {percent(cost.token_agreement)} agree" if cost.token_agreement is not None else ""
    divergence = f", KL {number(cost.kl_mean_nats)} nats" if cost.kl_mean_nats is not None else ""
    return f"other tokens{agree}{divergence}"
