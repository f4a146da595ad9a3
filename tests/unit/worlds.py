"""Invented measurements under which a claim, or one of its checks, comes out as it is asked to.

A ratio, a gain and the exponent of a curve are linear in the logarithms of what is measured, so a world in which all of
a claim's checks hold is a point inside half-spaces, which linear programming finds or shows not to exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from claimbench.analysis.aggregate import COLUMNS
from claimbench.analysis.stats import slope_weights
from claimbench.judging.checks.ratio import region_of
from claimbench.judging.evidence import Evidence, Side, curve
from claimbench.judging.expectations import bounds
from claimbench.judging.judge import judge_claim
from claimbench.judging.summary import Ending
from claimbench.schema.checks import SIDES, Check
from claimbench.schema.metrics import METRICS
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Plan
from claimbench.schema.study import Claim
from claimbench.schema.verdicts import ClaimVerdict

BLOCKS = 3
MARGIN = 1e-3
"""Of a logarithm, between an invented number and the end of the range that is asked for."""
NO_ENDING = Ending(Outcome.OK, None, (), 0, 0)
COMPARED = ("ratio", "gain", "shape")
Cells = dict[str, dict[str, Any]]
"""Id -> what its rows of the table say."""


class Impossible(Exception):
    """No measurement would have it so."""


def imagined(claim: Claim, study: str, plan: Plan, refuted: int | None = None) -> ClaimVerdict:
    """The verdict of `claim` where all of its checks hold, but the one at `refuted`.

    Raises:
        Impossible: there are no such measurements.
    """
    empty = Evidence(plan, pd.DataFrame(columns=list(COLUMNS)), plan.params.measure.tolerance)
    wanted = [(check, number != refuted) for number, check in enumerate(claim.checks)]
    if refuted is not None:  # others may have to give way: one refuted check refutes the claim
        wanted = [wanted[refuted]]
    cells: Cells = {}
    for check in claim.checks:
        for id in _ids(check, study, empty):
            cells.setdefault(id, {"outcome": "ok", "tokens_sha256": "same"})
    for check, holds in wanted:
        _set_outright(check, holds, study, empty, cells)
    _solve([(check, holds) for check, holds in wanted if check.kind in COMPARED], study, empty, cells)
    table = pd.DataFrame([row for id, facts in cells.items() for row in _rows(id, facts)], columns=list(COLUMNS))
    numbers = [*METRICS, "round", "sample", "arm_s", "weight", "first_divergence"]
    table[numbers] = table[numbers].apply(pd.to_numeric)
    return judge_claim(claim, study, Evidence(plan, table, plan.params.measure.tolerance))


def _ids(check: Check, study: str, evidence: Evidence) -> Iterator[str]:
    for side in SIDES:
        address = getattr(check, side, None)
        if address is not None:
            for row in _rows_at(check, address, study, evidence):
                if row.cell is None:
                    raise Impossible(f"{address} cannot be planned: {row.unavailable}")
                yield row.cell


def _rows_at(check: Check, address: str, study: str, evidence: Evidence) -> list[Any]:
    if check.kind in ("shape", "frontier"):
        return [row for _, row in curve(study, address, check.over, evidence)]
    return [evidence.plan.row(study, address)]


def _set_outright(check: Check, holds: bool, study: str, evidence: Evidence, cells: Cells) -> None:
    """What no other check has a say in: outcomes, tokens, numbers of one cell."""
    if check.kind in (*COMPARED, "computed"):
        return
    rows = _rows_at(check, check.of, study, evidence)
    facts = cells[rows[0].cell]
    if check.kind == "outcome":
        other = "ok" if check.expect != "ok" else "oom"
        facts |= {"outcome": check.expect if holds else other, "reason": check.reason_contains or "said so"}
    elif check.kind == "identity":
        facts["tokens_sha256"] = "same" if holds else "other"
    elif check.kind == "absolute":
        most = check.expect.at_most if check.expect else check.published * (1 + check.within)
        facts[check.metric] = check.published if holds else 1.1 * most
    elif check.kind == "value":
        facts[check.metric] = _value(check, holds, evidence.tolerance)
    elif check.kind == "frontier":
        most = check.published if holds else 0
        for row in rows:
            if row.sweep[check.over] > most:
                cells[row.cell] |= {"outcome": "oom", "reason": "does not fit"}


def _value(check: Any, holds: bool, tolerance: float) -> float:
    low, high = bounds(check.expect, tolerance)
    metric = METRICS[check.metric]
    least, most = 0.0, 1.0 if metric.is_fraction else math.inf
    step = 1 if metric.is_certain and not metric.is_fraction else 1e-3
    if holds:
        return max(low, least) if math.isfinite(low) else min(high, most)
    for value in (high + step * max(1, abs(high)), low - step * max(1, abs(low))):
        if math.isfinite(value) and least <= value <= most:
            return value
    raise Impossible(f"{check.metric} of {check.of} cannot lie outside {low} to {high}")


def _solve(wanted: Sequence[tuple[Check, bool]], study: str, evidence: Evidence, cells: Cells) -> None:
    """Numbers for what is compared, near 10 ms where nothing says otherwise."""
    from scipy.optimize import linprog

    constraints = [(*_weighed(check, study, evidence), holds, check) for check, holds in wanted]
    names = sorted({name for weights, *_ in constraints for name in weights})
    place = {name: number for number, name in enumerate(names)}
    rows, limits = [], []
    for weights, (low, high), holds, check in constraints:
        row = np.zeros(len(names))
        for name, weight in weights.items():
            row[place[name]] += weight
        if not np.abs(row).sum():
            raise Impossible(f"{check.of}: what is compared is one and the same")
        if not holds:  # above its end, or below
            low, high = (high + 10 * MARGIN, math.inf) if math.isfinite(high) else (-math.inf, low - 10 * MARGIN)
        if math.isfinite(high):
            rows, limits = [*rows, row], [*limits, high - min(MARGIN, (high - low) / 4)]
        if math.isfinite(low):
            rows, limits = [*rows, -row], [*limits, -low - min(MARGIN, (high - low) / 4)]
    if not rows:
        return
    found = linprog(np.zeros(len(names)), A_ub=np.array(rows), b_ub=np.array(limits), bounds=(-20, 20), method="highs")
    if not found.success:
        raise Impossible(f"the checks contradict each other: {[check.of for *_, check in constraints]}")
    for (id, metric), number in zip(names, found.x, strict=True):
        cells[id][metric] = 10 * math.exp(number)


def _weighed(check: Any, study: str, evidence: Evidence) -> tuple[dict[tuple[str, str], float], tuple[float, float]]:
    """(cell, metric) -> weight of its logarithm, and where the sum must lie."""
    weights: dict[tuple[str, str], float] = {}
    low, high = bounds(_expect(check, study, evidence), evidence.tolerance)
    if check.kind == "shape":
        points = [_rows_at(check, address, study, evidence) for address in (check.of, check.to) if address]
        groups = [str({k: v for k, v in row.sweep.items() if k != check.over}) for row in points[0]]
        slopes = slope_weights([float(row.sweep[check.over]) for row in points[0]], groups)
        for sign, rows in zip((1, -1), points, strict=False):
            for slope, row in zip(slopes, rows, strict=True):
                weights[row.cell, check.metric] = weights.get((row.cell, check.metric), 0) + sign * slope
        return weights, (low, high)
    for sign, side in zip((1, -1, -1, 1), SIDES, strict=True):
        address = getattr(check, side, None)
        if address is not None:
            name = (evidence.plan.row(study, address).cell, check.metric)
            weights[name] = weights.get(name, 0) + sign
    log = tuple(math.log(end) if 0 < end < math.inf else math.copysign(math.inf, end or -1) for end in (low, high))
    return weights, (log[0], log[1])


def _expect(check: Any, study: str, evidence: Evidence) -> Any:
    if check.kind != "ratio":
        return check.expect
    rows = [evidence.plan.row(study, address) for address in (check.of, check.to)]
    sides = [Side("", "", row, str(row.cell), NO_ENDING) for row in rows]
    return region_of(check, sides, evidence)


def _rows(id: str, facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for block in range(BLOCKS):
        common = {"cell": id, "block": block, "flags": "", "path": f"results/{id}/{block}.json", "sample": 0}
        yield {**common, "above_ceiling": False, "above_reading": False, "tokens_match": None, **facts}
