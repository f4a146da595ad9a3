"""The answer of a run as a table: ratio with interval, verdict, agreement and memory, a row for each cell."""

from __future__ import annotations

from collections.abc import Iterator

from claimbench.commands.output import Column
from claimbench.exchange.folder import ResultsFolder
from claimbench.formatting import duration, interval, number, percent
from claimbench.schema.interval import Interval
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Row
from claimbench.schema.verdicts import CellSummary, ClaimVerdict, Verdicts

METRIC = "decode_tok_s"
COLUMNS = (
    Column("tried"),
    Column("decode tok/s", is_number=True),
    Column("times plain", is_number=True),
    Column("faster?"),
    Column("tokens"),
    Column("peak GB", is_number=True),
    Column("", wraps=True),
)


def tables(folder: ResultsFolder) -> Iterator[tuple[str, list[list[str]]]]:
    """(question, rows) of each experiment."""
    verdicts = folder.verdicts
    for study, planned in folder.plan.studies.items():
        claims = [claim for claim in verdicts.claims if claim.study == study]
        for name, rows in planned.rows.items():
            shown = [_row(f"{name}/{address}", row, claims, verdicts) for address, row in rows.items()]
            yield planned.study.experiments[name].question, shown


def _row(address: str, row: Row, claims: list[ClaimVerdict], verdicts: Verdicts) -> list[str]:
    cell = verdicts.cells.get(row.cell) if row.cell else None
    if cell is None or cell.outcome != Outcome.OK:
        outcome = cell.outcome if cell else Outcome.UNAVAILABLE
        reason = cell.reason if cell else row.unavailable
        return [row.title, "", "", outcome.value, "", "", reason or "no reason was recorded"]
    found = next(((claim, check) for claim in claims for check in claim.checks if _is_about(check, address)), None)
    ratio, verdict, why = "", "", ""
    if found:
        claim, check = found
        ratio = interval(Interval(check.estimate, check.low, check.high), "x") if check.estimate is not None else ""
        verdict = claim.verdict.value
        needed = check.needed.minutes if check.needed else None
        why = check.reason or ""
        if needed is not None:
            why = f"about {duration(needed * 60)} more would decide"
    doubts = [*filter(None, [why]), *(flag for flag in cell.flags if flag not in why)]
    speed = interval(cell.metrics[METRIC].interval) if METRIC in cell.metrics else ""
    peak = cell.value("peak_bytes")
    return [
        row.title,
        speed,
        ratio,
        verdict,
        agreement(cell),
        number(peak / 1e9) if peak else "",
        "; ".join(doubts),
    ]


def _is_about(check: object, address: str) -> bool:
    return getattr(check, "of", None) == address and getattr(check, "metric", None) == METRIC


def agreement(cell: CellSummary) -> str:
    """Whether its tokens are the reference's; where not, how many were the same before the first that was another."""
    if cell.is_reference:
        return "reference"
    if cell.tokens_match is None:
        return "not compared"
    if cell.tokens_match:
        return "same"
    first = cell.first_divergence
    parts = ["differ" if first is None else f"first {first} of {cell.new_tokens} same"]
    if cell.top1_agreement is not None:
        parts.append(f"top-1 {percent(cell.top1_agreement)}")
    return ", ".join(parts)
