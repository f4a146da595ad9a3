"""Each cell in a few numbers, for tables and for people: medians with intervals, outcome, doubts, agreement."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from claimbench.analysis import stats
from claimbench.analysis.aggregate import blocks_in, by_cell
from claimbench.formatting import with_ranges
from claimbench.schema.metrics import METRICS
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Plan, PlannedCell
from claimbench.schema.verdicts import CellSummary, MetricSummary


class Ending(NamedTuple):
    """How a cell's blocks ended, taken together."""

    outcome: Outcome
    reason: str | None
    flags: tuple[str, ...]
    blocks: int
    blocks_ok: int


def ending(rows: pd.DataFrame) -> Ending:
    """The ending of a cell from its rows of the table.

    One block with wrong outputs makes the cell wrong: its other blocks ran the same code. A cell of which some blocks
    ended well is ok, and the blocks that did not are a doubt.
    """
    blocks = dict[int, tuple[str, Any, Any]]()
    for block, *said in zip(rows["block"], rows["outcome"], rows["reason"], rows["flags"], strict=True):
        blocks.setdefault(block, (said[0], said[1], said[2]))
    ends = [blocks[block] for block in sorted(blocks)]
    outcomes = [Outcome(said) for said, _, _ in ends]
    ok = outcomes.count(Outcome.OK)
    if Outcome.WRONG in outcomes:
        outcome = Outcome.WRONG
    elif ok:
        outcome = Outcome.OK
    else:
        outcome = outcomes[0]
    reasons = [reason for said, reason, _ in ends if said == outcome and not pd.isna(reason)]
    flags = [flag for _, _, text in ends if not pd.isna(text) for flag in str(text).split("; ") if flag]
    if outcome == Outcome.OK:
        failed = [name for name in outcomes if name != Outcome.OK]
        flags += [f"{failed.count(name)} of {len(outcomes)} blocks ended {name}" for name in dict.fromkeys(failed)]
    if rows["above_ceiling"].any():
        flags.append("above its ceiling, the best that this machine was ever seen to do: the number is in doubt")
    if rows["above_reading"].any():
        flags.append(
            "above its ceiling as read in the same round, not above this machine's best: the reading is in doubt"
        )
    reason = str(reasons[0]) if outcome != Outcome.OK and len(reasons) else None
    return Ending(outcome, reason, with_ranges(flags), len(outcomes), ok)


def summarise(plan: Plan, table: pd.DataFrame) -> dict[str, CellSummary]:
    """Every cell of the plan by id."""
    frames = by_cell(table)
    return {id: _summary(planned, frames[id]) for id, planned in plan.cells.items()}


def _metric(rows: pd.DataFrame, metric: str) -> MetricSummary | None:
    blocks = blocks_in(rows, metric)
    found = stats.interval(blocks) if any(blocks) else None
    if found is None:
        return None
    medians = tuple(float(np.median(block)) for block in blocks if block)
    return MetricSummary(value=found.estimate, low=found.low, high=found.high, blocks=medians)


def _summary(planned: PlannedCell, rows: pd.DataFrame) -> CellSummary:
    cell, end = planned.cell, ending(rows)
    metrics = {name: found for name in METRICS if (found := _metric(rows, name))}
    matches = rows["tokens_match"].dropna()
    prompts = rows["prompt_tokens"].dropna()

    def value(metric: str) -> float | None:
        return metrics[metric].value if metric in metrics else None

    return CellSummary(
        outcome=end.outcome,
        reason=end.reason,
        flags=end.flags,
        blocks=end.blocks,
        blocks_ok=end.blocks_ok,
        reference=planned.reference,
        is_reference=planned.reference == cell.id,
        exact=planned.exact,
        backend=cell.backend,
        optimizations=tuple(use.name for use in cell.optimizations),
        checkpoint=cell.checkpoint.name,
        dtype=cell.dtype,
        device=cell.device,
        batch=cell.workload.batch,
        prompt_tokens=int(prompts.iloc[0]) if len(prompts) else None,
        new_tokens=cell.workload.new_tokens,
        metrics=metrics,
        tokens_match=bool(matches.all()) if len(matches) else None,
        token_agreement=_extreme(rows, "token_agreement", "min"),
        first_divergence=_first_divergence(rows),
        kl_mean_nats=_extreme(rows, "kl_mean_nats", "max"),
        top1_agreement=_extreme(rows, "top1_agreement", "min"),
        ceiling_ms=value("ceiling_ms"),
        ceiling_fraction=value("ceiling_fraction"),
        prefill_ceiling_fraction=value("prefill_ceiling_fraction"),
        above_ceiling=bool(rows["above_ceiling"].any()),
        results=tuple(str(path) for path in rows["path"].unique()),
    )


def _extreme(rows: pd.DataFrame, column: str, which: Literal["min", "max"]) -> float | None:
    values = rows[column].dropna()
    return float(getattr(values, which)()) if len(values) else None


def _first_divergence(rows: pd.DataFrame) -> int | None:
    smallest = _extreme(rows, "first_divergence", "min")
    return None if smallest is None else int(smallest)
