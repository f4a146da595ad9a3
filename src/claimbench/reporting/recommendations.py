"""What to switch on here, in words: recommendations as rows of a table, each with its cost, and what was left out.

Three kinds stand apart: what promises the plain run's tokens and gave them, what is lossy or was not compared, and
Claimbench's own engine, which says what the machine could give and can be switched on nowhere else.
"""

from __future__ import annotations

from typing import NamedTuple

from claimbench import backends, optimizations
from claimbench.formatting import interval, number, percent
from claimbench.reporting.report_data import ReportData
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS
from claimbench.schema.verdicts import CellSummary, LeftOut, Objective, Place, Recommendation

OBJECTIVES: dict[Objective, str] = {
    "latency": "a lower latency",
    "throughput": "a higher throughput",
    "memory": "less memory",
}
OWN_BACKENDS = ("engine", "engine_tensor_parallel")
MOST_SHOWN = 3
NOTE = (
    "“To 2x” is twice as good as the plain run of the same checkpoint and workload, in the experiment's usual "
    "precision. Listed are only those whose whole interval clears the tolerance, by its lower end. Intervals are "
    "widened for having been chosen among many: of all that are shown for one aim, 5 % miss. “Same tokens” means that "
    "every generation gave the plain run's tokens."
)


class Advice(NamedTuple):
    """What one cell gains over another, by one metric or several, as one row."""

    best: Recommendation
    what: str
    code: tuple[str, ...]
    """Lines that switch it on."""
    where: str
    costs: str
    gains: tuple[str, ...]
    elsewhere: tuple[str, ...]
    """The same on other work, where it gains nothing that is sure."""


class Omitted(NamedTuple):
    """A row that is not recommended."""

    where: str
    why: str


class Kind(NamedTuple):
    """Advice of one kind, the largest sure gain first; what is beyond the first few is folded away."""

    title: str
    shown: tuple[Advice, ...]
    folded: tuple[Advice, ...]


class ObjectiveAdvice(NamedTuple):
    """All advice for one objective."""

    aim: str
    same: Kind
    """Gives the plain run's tokens."""
    other: Kind
    own: Kind
    """Of Claimbench's engine."""
    left_out: tuple[Omitted, ...]

    @property
    def kinds(self) -> list[Kind]:
        """Those that have a row."""
        return [kind for kind in (self.same, self.other, self.own) if kind.shown]


def objectives(data: ReportData) -> list[ObjectiveAdvice]:
    """For each objective its recommendations, best first, and the words for what each costs."""
    found = []
    for objective, aim in OBJECTIVES.items():
        left_out = [one for one in data.verdicts.left_out if one.objective == objective]
        pairs: dict[tuple[str, str], list[Recommendation]] = {}
        for entry in data.verdicts.recommendations:
            if entry.objective == objective:
                pairs.setdefault((entry.cell, entry.reference), []).append(entry)
        described = [_describe(entries, left_out, data) for entries in pairs.values()]
        own = [one for one in described if one.best.backend in OWN_BACKENDS]
        same = [one for one in described if one not in own and _is_lossless(one.best, data)]
        other = [one for one in described if one not in own and one not in same]
        found.append(
            ObjectiveAdvice(
                aim,
                _kind("With the plain run's tokens", same),
                _kind("Lossy, or tokens that were not compared", other),
                _kind("What this machine could give: Claimbench's own engine", own),
                tuple(_omitted(one) for one in left_out),
            )
        )
    return found


def _kind(title: str, advice: list[Advice]) -> Kind:
    return Kind(title, tuple(advice[:MOST_SHOWN]), tuple(advice[MOST_SHOWN:]))


def _describe(entries: list[Recommendation], left_out: list[LeftOut], data: ReportData) -> Advice:
    best = entries[0]
    return Advice(
        best=best,
        what=_switch_on(best),
        code=_code(best, data),
        where=_where(best.shown_in),
        costs=_costs(best),
        gains=tuple(
            f"{interval(Interval(entry.gain, entry.low, entry.high), 'x')} ({METRICS[entry.metric].title})"
            for entry in entries
        ),
        elsewhere=tuple(
            f"{_gain(one)}: {_where(one.shown_in[:1])}" for one in left_out if _is_the_same_elsewhere(one, best, data)
        ),
    )


def _is_lossless(entry: Recommendation, data: ReportData) -> bool:
    rounds_more = data.cells[entry.cell].dtype != data.cells[entry.reference].dtype
    return entry.exact and not rounds_more and entry.cost.tokens_match is True


def _where(places: tuple[Place, ...]) -> str:
    return ", ".join(f"{place.title} ({place.study})" for place in places[:2])


def _is_the_same_elsewhere(one: LeftOut, best: Recommendation, data: ReportData) -> bool:
    """Whether it is what `best` switches on, on other work."""
    there = data.cells[one.cell]
    changes_batch = there.batch != data.cells[one.reference].batch
    return (
        one.gain is not None
        and _switched(there) == _switched(data.cells[best.cell])
        and changes_batch == (best.batch != best.reference_batch)
    )


def _switched(cell: CellSummary) -> tuple[object, ...]:
    return cell.backend, cell.optimizations, cell.checkpoint, cell.dtype


def _code(entry: Recommendation, data: ReportData) -> tuple[str, ...]:
    """What switches it on, in the libraries that have it; none for the engine, which is nobody else's."""
    cell, reference = data.plan.cells[entry.cell].cell, data.plan.cells[entry.reference].cell
    if entry.backend in OWN_BACKENDS:
        return ()
    found = [getattr(backends.find(entry.backend), "SWITCH", None)]
    if cell.dtype != reference.dtype and entry.backend == reference.backend:
        found.append(f"from_pretrained(..., dtype=torch.{cell.dtype})")
    for technique in optimizations.used_by(cell):
        line = getattr(technique.optimization, "SWITCH", None)
        found.append(line.format(**technique.settings.model_dump()) if line else None)
    return tuple(line for line in found if line)


def _omitted(one: LeftOut) -> Omitted:
    return Omitted(_where(one.shown_in), one.reason or _gain(one))


def _gain(one: LeftOut) -> str:
    assert one.gain is not None
    return f"{interval(Interval(one.gain, one.low, one.high), 'x')} ({METRICS[one.metric].title})"


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
        parts.append(f"{number(cost.memory_ratio)}x the peak memory")
    if cost.weights_ratio is not None and cost.weights_ratio != 1:
        parts.append(f"{number(cost.weights_ratio)}x the weights' bytes")
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
    divergence = f", KL {number(cost.kl_mean_nats)} nats" if cost.kl_mean_nats is not None else ""
    if cost.tokens_match:
        return f"same tokens{divergence}"
    if cost.tokens_match is None:
        return "tokens not compared"
    agree = f": {percent(cost.token_agreement)} agree" if cost.token_agreement is not None else ""
    return f"other tokens{agree}{divergence}"
