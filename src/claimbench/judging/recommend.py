"""What to switch on here: every cell against its reference, ranked by what it surely gains, with what it costs.

A cell is compared with its reference: the plain run of the same checkpoint and workload, in the type that the
experiment usually takes; and for throughput with itself at the smallest batch of the plan. Only cells that ended well,
gave no sign of a broken measurement, and whose interval clears the tolerance, widened for having been chosen among many
(see selection.py), are named. Every other cell is left out with its reason.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from claimbench.analysis import comparing
from claimbench.analysis.aggregate import by_cell, promises_tokens
from claimbench.analysis.paired import ALPHA
from claimbench.formatting import quantity
from claimbench.judging import selection
from claimbench.judging.selection import IntervalAt
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Plan
from claimbench.schema.verdicts import CellSummary, Cost, LeftOut, Objective, Place, Recommendation

TOO_FEW = "it sat with what it is compared with in too few rounds for an interval"
VOID = "every round in which it sat with what it is compared with was disturbed too much to count"
ORDER: dict[Objective, int] = {"latency": 0, "throughput": 1, "memory": 2}


class _Question(NamedTuple):
    objective: Objective
    metric: str
    cell: str
    """Id of the cell that is asked about."""
    to: str
    """And of the one that it is compared with."""

    @property
    def pair(self) -> tuple[Objective, str, str]:
        return self.objective, self.cell, self.to


class Advice(NamedTuple):
    named: tuple[Recommendation, ...]
    """By objective, the largest sure gain first."""
    left_out: tuple[LeftOut, ...]
    """By objective, each pair of cells once."""


class _Adviser:
    def __init__(self, plan: Plan, table: pd.DataFrame, cells: dict[str, CellSummary], tolerance: float) -> None:
        self.plan, self.cells, self.tolerance = plan, cells, tolerance
        self.frames = by_cell(table)
        self.places = _places(plan)

    def advice(self) -> Advice:
        asked = [question for id in self.plan.cells if id in self.places for question in _questions(self.plan, id)]
        named: list[Recommendation] = []
        left_out: dict[tuple[Objective, str, str], LeftOut] = {}
        for objective in ORDER:
            questions = [question for question in asked if question.objective == objective]
            ratios = {question: self.gain(question) for question in questions if not self.doubt(question)}
            known = {question: ratio for question, ratio in ratios.items() if ratio}
            chosen, error = selection.selected([*known.values()], 1 + self.tolerance)
            found = [
                self.recommendation(question, at, error)
                for n, (question, at) in enumerate(known.items())
                if n in chosen
            ]
            named += sorted(found, key=lambda each: (-each.low, each.cell, each.metric))
            pairs = {(objective, each.cell, each.reference) for each in found}
            for question in (question for question in questions if question.pair not in pairs):
                left_out.setdefault(question.pair, self.left_out(question, known.get(question)))
        return Advice(tuple(named), tuple(left_out.values()))

    def doubt(self, question: _Question) -> str | None:
        """Why no number of it is to be trusted, or there is none."""
        own = self.cells[question.cell]
        if own.outcome != Outcome.OK:
            return f"{own.outcome}: {own.reason}" if own.reason else str(own.outcome)
        if promises_tokens(self.plan.cells[question.cell].cell) and own.tokens_match is False:
            return "it promises the plain run's tokens and gave others"
        if self.cells[question.to].outcome != Outcome.OK:
            return f"what it would be compared with ended as {self.cells[question.to].outcome}"
        if own.above_ceiling or self.cells[question.to].above_ceiling:
            return "a number above its ceiling: the measurement is in doubt"
        return None

    def lacking(self, question: _Question, found: Interval | None) -> str:
        """Why there is no interval."""
        void = comparing.void_rounds([self.frames[side] for side in (question.cell, question.to)], question.metric)
        return VOID if void and found is None else TOO_FEW

    def gain(self, question: _Question) -> IntervalAt | None:
        """How many times better than the reference, for any error; None: they have nothing in common."""
        is_higher = METRICS[question.metric].better == "higher"
        of, to = (question.cell, question.to) if is_higher else (question.to, question.cell)
        prior = comparing.prior_of([self.plan.cells[side].cell for side in (of, to)])
        try:
            return comparing.ratio_at([self.frames[of], self.frames[to]], question.metric, prior)
        except ValueError:  # a zero: nothing was counted, so there is nothing to compare
            return None

    def left_out(self, question: _Question, ratio: IntervalAt | None) -> LeftOut:
        found = ratio(ALPHA) if ratio else None
        low, high = (found.ends if found else None) or (None, None)
        reason = self.doubt(question) or (self.lacking(question, found) if low is None else None)
        return LeftOut(
            objective=question.objective,
            metric=question.metric,
            cell=question.cell,
            reference=question.to,
            shown_in=tuple(self.places[question.cell]),
            reason=reason,
            gain=found.estimate if found and low is not None else None,
            low=low,
            high=high,
        )

    def recommendation(self, question: _Question, ratio: IntervalAt, error: float) -> Recommendation:
        found, summary = ratio(error), self.cells[question.cell]
        assert found is not None
        assert found.ends is not None
        cost = self.cost(question.cell, question.to)
        places = self.places[question.cell]
        return Recommendation(
            objective=question.objective,
            metric=question.metric,
            cell=question.cell,
            reference=question.to,
            reference_batch=self.plan.cells[question.to].cell.workload.batch,
            shown_in=tuple(places),
            exact=summary.exact,
            gain=found.estimate,
            low=found.ends[0],
            high=found.ends[1],
            error=error,
            cost=cost,
            sentence=_sentence(question, summary, found, cost, places[0].title),
            backend=summary.backend,
            optimizations=summary.optimizations,
            checkpoint=summary.checkpoint,
            dtype=summary.dtype,
            batch=summary.batch,
            prompt_tokens=summary.prompt_tokens,
            new_tokens=summary.new_tokens,
        )

    def cost(self, cell: str, reference: str) -> Cost:
        ours, theirs = self.cells[cell], self.cells[reference]
        extra, their_extra = ours.value("compile_s_extra"), theirs.value("compile_s_extra")
        beyond = extra - their_extra if extra is not None and their_extra is not None else None
        return Cost(
            memory_ratio=self.ratio(cell, reference, "peak_bytes"),
            weights_ratio=self.ratio(cell, reference, "weights_bytes"),
            decode_ratio=self.ratio(cell, reference, "decode_tok_s"),
            step_ratio=self.ratio(cell, reference, "step_ms"),
            first_call_s=ours.value("first_call_s"),
            first_call_extra_s=beyond,
            break_even_tokens=break_even_tokens(beyond, theirs.value("ms_per_token"), ours.value("ms_per_token")),
            tokens_match=ours.tokens_match,
            token_agreement=ours.token_agreement,
            first_divergence=ours.first_divergence,
            kl_mean_nats=ours.kl_mean_nats,
            top1_agreement=ours.top1_agreement,
        )

    def ratio(self, of: str, to: str, metric: str) -> float | None:
        """None where it was not measured often enough for an interval."""
        try:
            found = comparing.ratio_at([self.frames[of], self.frames[to]], metric)(ALPHA)
        except ValueError:  # see `gain`
            return None
        return found.estimate if found and found.ends else None


def advise(plan: Plan, table: pd.DataFrame, cells: dict[str, CellSummary], tolerance: float) -> Advice:
    """What to switch on, and what was left out of it; `cells` is what `summarise` returned."""
    return _Adviser(plan, table, cells, tolerance).advice()


def compared_with(plan: Plan, id: str) -> list[str]:
    """Ids of the cells that `id` is compared with when it is said what to switch on."""
    return list(dict.fromkeys(question.to for question in _questions(plan, id)))


def _questions(plan: Plan, id: str) -> list[_Question]:
    """Batch 1 is asked about latency, larger ones about throughput (against the smallest too), all about memory."""
    found, planned = [], plan.cells[id]
    reference, smallest = planned.reference, id
    if reference not in (None, id):
        if planned.cell.workload.batch == 1:
            found += [_Question("latency", name, id, str(reference)) for name in ("decode_tok_s", "total_ms")]
        else:
            found.append(_Question("throughput", "tok_s", id, str(reference)))
        found.append(_Question("memory", "peak_bytes", id, str(reference)))
    while plan.cells[smallest].smaller is not None:
        smallest = str(plan.cells[smallest].smaller)
    if smallest != id:
        found.append(_Question("throughput", "tok_s", id, smallest))
    return found


def _places(plan: Plan) -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for study, planned in plan.studies.items():
        for experiment, rows in planned.rows.items():
            for address, row in rows.items():
                if row.cell is not None:
                    place = Place(study=study, address=f"{experiment}/{address}", title=row.title)
                    found.setdefault(row.cell, []).append(place)
    return found


def break_even_tokens(extra_s: float | None, slow_ms: float | None, fast_ms: float | None) -> float | None:
    """Tokens after which a slower first call is paid back; 0 where it is not slower, None where it never is."""
    if extra_s is None or slow_ms is None or fast_ms is None:
        return None
    if extra_s <= 0:
        return 0.0
    return extra_s * 1e3 / (slow_ms - fast_ms) if slow_ms > fast_ms else None


def _sentence(question: _Question, summary: CellSummary, gain: Interval, cost: Cost, title: str) -> str:
    metric = METRICS[question.metric]
    title += f" at batch {summary.batch}" if summary.batch > 1 else ""
    ends = gain.ends or (gain.estimate, gain.estimate)
    is_higher = metric.better == "higher"
    verb = "raises" if is_higher else "lowers"
    to, low, high = (gain.estimate, *ends) if is_higher else (1 / gain.estimate, 1 / ends[1], 1 / ends[0])
    text = f"{title} {verb} {metric.title} to {quantity(to)}x ({quantity(low)} to {quantity(high)})"
    costs = []
    if question.objective != "memory" and cost.memory_ratio is not None and cost.memory_ratio > 1.01:
        costs.append(f"{quantity(cost.memory_ratio)}x of the peak memory")
    if question.objective == "memory" and cost.decode_ratio is not None:
        costs.append(f"{quantity(cost.decode_ratio)}x of the decode speed")
    if cost.first_call_extra_s is not None and cost.first_call_extra_s > 1:
        paid = "never" if cost.break_even_tokens is None else f"after {cost.break_even_tokens:,.0f} tokens"
        costs.append(f"a first call {quantity(cost.first_call_extra_s, 's')} longer, paid back {paid}")
    if cost.tokens_match is False and cost.token_agreement is not None:
        costs.append(f"{cost.token_agreement:.0%} of the reference's tokens")
    return text + (f", at {', '.join(costs)}." if costs else ".")
