"""What to switch on here: every cell against its reference, ranked by what it gains, with what it costs.

A cell is compared with its reference: the plain run of the same checkpoint, workload and dtype; and for throughput with
itself at the smallest batch of the plan. Only cells that ended
well, gave no sign of a broken measurement, and whose interval clears the tolerance are named.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from claimbench.analysis import comparing
from claimbench.analysis.aggregate import by_cell, promises_tokens
from claimbench.formatting import quantity
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Plan, PlannedCell
from claimbench.schema.verdicts import CellSummary, Cost, Objective, Place, Recommendation


class _Question(NamedTuple):
    objective: Objective
    metric: str
    to: str
    """Id of the cell that this one is compared with."""


def recommendations(
    plan: Plan, table: pd.DataFrame, cells: dict[str, CellSummary], tolerance: float
) -> list[Recommendation]:
    """Recommendations by objective, the largest gain first; `cells` is what `summarise` returned."""
    places = _places(plan)
    frames = by_cell(table)
    found: list[Recommendation] = []
    for id, planned in plan.cells.items():
        if id not in places or _breaks_its_promise(planned, cells[id]):
            continue
        for question in _questions(plan, planned):
            if any(cells[side].outcome != Outcome.OK or cells[side].above_ceiling for side in (id, question.to)):
                continue
            gain = _gain(plan, frames, id, question.to, question.metric)
            if gain is None or gain.ends is None or gain.ends[0] <= 1 + tolerance:
                continue
            price = _cost(plan, frames, cells, id, question.to)
            found.append(
                _recommendation(question, plan, planned, cells[id], gain.estimate, gain.ends, price, places[id])
            )
    order = {"latency": 0, "throughput": 1, "memory": 2}
    return sorted(found, key=lambda each: (order[each.objective], -each.gain, each.cell, each.metric))


def _breaks_its_promise(planned: PlannedCell, summary: CellSummary) -> bool:
    return promises_tokens(planned.cell) and summary.tokens_match is False


def _questions(plan: Plan, planned: PlannedCell) -> list[_Question]:
    """Batch 1 is asked about latency, larger ones about throughput (against the smallest too), all about memory."""
    found = []
    reference, smallest = planned.reference, planned.cell.id
    if reference is not None and reference != planned.cell.id:
        if planned.cell.workload.batch == 1:
            found += [_Question("latency", name, reference) for name in ("decode_tok_s", "total_ms")]
        else:
            found.append(_Question("throughput", "tok_s", reference))
        found.append(_Question("memory", "peak_bytes", reference))
    while plan.cells[smallest].smaller is not None:
        smallest = str(plan.cells[smallest].smaller)
    if smallest != planned.cell.id:
        found.append(_Question("throughput", "tok_s", smallest))
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


def _ratio(plan: Plan, frames: dict[str, pd.DataFrame], of: str, to: str, metric: str) -> Interval | None:
    prior = comparing.prior_of([plan.cells[side].cell for side in (of, to)])
    try:
        found = comparing.ratio([frames[of], frames[to]], metric, prior).last
    except ValueError:  # a zero: nothing was counted, so there is nothing to compare
        return None
    return found if found and found.ends else None


def _gain(plan: Plan, frames: dict[str, pd.DataFrame], cell: str, reference: str, metric: str) -> Interval | None:
    """How many times better than the reference."""
    better_is_higher = METRICS[metric].better == "higher"
    of, to = (cell, reference) if better_is_higher else (reference, cell)
    return _ratio(plan, frames, of, to, metric)


def _cost(
    plan: Plan, frames: dict[str, pd.DataFrame], cells: dict[str, CellSummary], cell: str, reference: str
) -> Cost:
    ours, theirs = cells[cell], cells[reference]
    memory_ratio, decode_ratio, step_ratio = (
        _ratio(plan, frames, cell, reference, metric) for metric in ("peak_bytes", "decode_tok_s", "step_ms")
    )
    extra, their_extra = ours.value("compile_s_extra"), theirs.value("compile_s_extra")
    beyond = extra - their_extra if extra is not None and their_extra is not None else None
    return Cost(
        memory_ratio=memory_ratio.estimate if memory_ratio else None,
        decode_ratio=decode_ratio.estimate if decode_ratio else None,
        step_ratio=step_ratio.estimate if step_ratio else None,
        first_call_s=ours.value("first_call_s"),
        first_call_extra_s=beyond,
        break_even_tokens=break_even_tokens(beyond, theirs.value("ms_per_token"), ours.value("ms_per_token")),
        tokens_match=ours.tokens_match,
        token_agreement=ours.token_agreement,
        first_divergence=ours.first_divergence,
        kl_mean_nats=ours.kl_mean_nats,
        top1_agreement=ours.top1_agreement,
    )


def break_even_tokens(extra_s: float | None, slow_ms: float | None, fast_ms: float | None) -> float | None:
    """Tokens after which a slower first call is paid back; 0 where it is not slower, None where it never is."""
    if extra_s is None or slow_ms is None or fast_ms is None:
        return None
    if extra_s <= 0:
        return 0.0
    return extra_s * 1e3 / (slow_ms - fast_ms) if slow_ms > fast_ms else None


def _recommendation(
    question: _Question,
    plan: Plan,
    planned: PlannedCell,
    summary: CellSummary,
    gain: float,
    ends: tuple[float, float],
    price: Cost,
    places: list[Place],
) -> Recommendation:
    return Recommendation(
        objective=question.objective,
        metric=question.metric,
        cell=planned.cell.id,
        reference=question.to,
        reference_batch=plan.cells[question.to].cell.workload.batch,
        shown_in=tuple(places),
        exact=planned.exact,
        gain=gain,
        low=ends[0],
        high=ends[1],
        cost=price,
        sentence=_sentence(question, planned, gain, ends, price, places[0].title),
        backend=summary.backend,
        optimizations=summary.optimizations,
        checkpoint=summary.checkpoint,
        dtype=summary.dtype,
        batch=summary.batch,
        prompt_tokens=summary.prompt_tokens,
        new_tokens=summary.new_tokens,
    )


def _sentence(
    question: _Question, planned: PlannedCell, gain: float, ends: tuple[float, float], price: Cost, title: str
) -> str:
    metric = METRICS[question.metric]
    title += f" at batch {planned.cell.workload.batch}" if planned.cell.workload.batch > 1 else ""
    verb = "raises" if metric.better == "higher" else "lowers"
    text = f"{title} {verb} {metric.title} by {quantity(gain)}x ({quantity(ends[0])} to {quantity(ends[1])})"
    costs = []
    if question.objective != "memory" and price.memory_ratio is not None and price.memory_ratio > 1.01:
        costs.append(f"{quantity(price.memory_ratio)}x of the memory")
    if question.objective == "memory" and price.decode_ratio is not None:
        costs.append(f"{quantity(price.decode_ratio)}x of the decode speed")
    if price.first_call_extra_s is not None and price.first_call_extra_s > 1:
        paid = "never" if price.break_even_tokens is None else f"after {price.break_even_tokens:,.0f} tokens"
        costs.append(f"a first call {quantity(price.first_call_extra_s, 's')} longer, paid back {paid}")
    if not planned.exact and price.token_agreement is not None:
        costs.append(f"{price.token_agreement:.0%} of the reference's tokens")
    return text + (f", at {', '.join(costs)}." if costs else ".")
