"""What the report asks of the plan, the table and the verdicts: one row's number, ceiling, memory, tokens, doubts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.analysis import aggregate, comparing
from claimbench.formatting import interval, number, percent
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS, NOTHING_RAN, with_what_ran
from claimbench.schema.outcome import FITS, Outcome
from claimbench.schema.plan import Plan, PlannedGroup, Row
from claimbench.schema.verdicts import CellSummary, Verdicts

if TYPE_CHECKING:
    import pandas as pd


def head(metric: str) -> str:
    return METRICS[metric].column if metric in METRICS else metric


def shown(metric: str, found: Interval) -> str:
    """An interval in the unit of `head(metric)`: bytes as GB (1e9), shares as per cent, the rest as it is."""
    known = METRICS.get(metric)
    if known and known.is_fraction:
        return percent(found.estimate)
    if known and known.is_certain:
        return f"{in_unit(metric, found).estimate:.4g}"
    return interval(in_unit(metric, found))


def in_unit(metric: str, found: Interval) -> Interval:
    return found.scaled(1e-9) if metric in METRICS and METRICS[metric].unit == "B" else found


class ReportData:
    """Look-ups over the inputs of a report; holds no state of its own."""

    def __init__(self, plan: Plan, table: pd.DataFrame, verdicts: Verdicts, ceilings: Ceilings) -> None:
        self.plan = plan
        self.table = table
        self.verdicts = verdicts
        self.ceilings = ceilings
        self.cells = verdicts.cells
        self._frames = aggregate.by_cell(table)

    def samples(self, cell: str) -> pd.DataFrame:
        """The cell's rows of the table, one a sample; none of a cell that is not in it."""
        return self._frames[cell] if cell in self._frames else self.table.iloc[:0]

    def summary(self, row: Row) -> CellSummary | None:
        return self.cells.get(row.cell) if row.cell else None

    def title(self, row: Row) -> str:
        """The row's title, and that nothing was compiled or fused where its proof says so."""
        summary = self.summary(row)
        return with_what_ran(row.title, {name: summary.value(name) if summary else None for name in NOTHING_RAN})

    def outcome(self, row: Row) -> Outcome:
        summary = self.summary(row)
        return summary.outcome if summary else Outcome.UNAVAILABLE

    def reason(self, row: Row) -> str:
        summary = self.summary(row)
        if summary is None:
            return row.unavailable or "there is no result of this cell"
        return summary.reason or "no reason was recorded"

    def interval(self, row: Row, metric: str) -> Interval | None:
        """The metric where the cell ended well, else None."""
        summary = self.summary(row)
        if summary is None or summary.outcome != Outcome.OK or metric not in summary.metrics:
            return None
        return summary.metrics[metric].interval

    def times_better(self, row: Row, base: Row, metric: str) -> Interval | None:
        """How many times better `row` is than `base`: above 1 is better, whichever way the metric counts."""
        if self.interval(row, metric) is None or self.interval(base, metric) is None:
            return None
        if row.cell == base.cell:
            return Interval(1.0)
        sides = (
            [str(base.cell), str(row.cell)] if METRICS[metric].better == "lower" else [str(row.cell), str(base.cell)]
        )
        prior = comparing.prior_of([self.plan.cells[side].cell for side in sides])
        try:
            return comparing.ratio(
                [self._frames[side] for side in sides], metric, prior, self.plan.params.measure.seed
            ).last
        except ValueError:
            return None

    def floor(self, group: PlannedGroup) -> Interval | None:
        """The base of `group` against itself, by the wall time of a generation; None where it never sat twice."""
        rows = self._frames[group.base]
        return comparing.twins(rows[rows["round"].notna()], "total_ms").last if len(rows) else None

    def rounds(self, row: Row) -> int:
        """In which the row's cell generated."""
        return int(self._frames[row.cell]["round"].nunique()) if row.cell in self._frames else 0

    def ceiling(self, row: Row, metric: str) -> float | None:
        """The machine's limit for `metric` of this cell, in the metric's own unit; None where it has none."""
        summary = self.summary(row)
        if summary is None:
            return None
        step, prefill = summary.ceiling_ms, summary.value("prefill_ceiling_ms")
        per_step = summary.value("tokens_per_step") or 1.0
        batch, new_tokens = summary.batch, summary.new_tokens
        if metric in ("prefill_ms", "prefill_tok_s"):
            if not prefill:
                return None
            return prefill if metric == "prefill_ms" else batch * (summary.prompt_tokens or 1) * 1e3 / prefill
        if not step:
            return None
        if metric in ("step_ms", "tpot_ms", "decode_tok_s"):
            per_token = step / per_step
            return {"step_ms": step, "tpot_ms": per_token, "decode_tok_s": batch * 1e3 / per_token}[metric]
        if metric in ("total_ms", "ms_per_token", "tok_s") and prefill:
            total = prefill + step * (new_tokens - 1) / per_step
            tokens = batch * new_tokens
            return {"total_ms": total, "ms_per_token": total / tokens, "tok_s": tokens * 1e3 / total}[metric]
        return None

    def ceiling_share(self, row: Row, metric: str) -> float | None:
        """How much of its ceiling `metric` reaches."""
        found, limit = self.interval(row, metric), self.ceiling(row, metric)
        if found is None or not limit or not found.estimate:
            return None
        return limit / found.estimate if METRICS[metric].better == "lower" else found.estimate / limit

    def tokens(self, row: Row) -> str:
        """Whether the outputs were the reference's; how far they were not."""
        summary = self.summary(row)
        if summary is None or summary.outcome not in FITS:
            return "–"
        if summary.is_reference:
            return "the reference"
        if summary.tokens_match is None:
            return "not compared"
        parts = ["same" if summary.tokens_match else "differ"]
        if not summary.tokens_match and summary.token_agreement is not None:
            where = summary.first_divergence
            parts.append(
                f"{percent(summary.token_agreement)} agree"
                + (f", up to the first difference at {where}" if where is not None else "")
            )
        if summary.kl_mean_nats is not None:
            parts.append(f"KL {number(summary.kl_mean_nats)} nats" if summary.kl_mean_nats else "KL 0 nats")
        if summary.top1_agreement is not None:
            parts.append(f"top-1 {percent(summary.top1_agreement)}")
        return "; ".join(parts)

    def doubts(self, row: Row) -> tuple[str, ...]:
        summary = self.summary(row)
        return summary.flags if summary else ()
