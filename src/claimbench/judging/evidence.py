"""What checks are judged by: a plan and its table, the cells that a check names, and the shape of its verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from claimbench.analysis import comparing, stats
from claimbench.analysis.aggregate import blocks_in, by_cell
from claimbench.analysis.comparing import Comparison
from claimbench.analysis.paired import Prior
from claimbench.errors import ConfigError
from claimbench.formatting import count, duration
from claimbench.judging.expectations import Bounds, bounds, largest_difference, verdict
from claimbench.judging.summary import Ending, ending
from claimbench.schema.checks import SIDES, Check, Expectation, GainCheck, RatioCheck, ShapeCheck
from claimbench.schema.frontier import Frontier
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS, NOTHING_RAN, with_what_ran
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Plan, Row
from claimbench.schema.verdicts import CheckVerdict, Needed, Verdict

MOST_BOUNDED = 0.25
"""A ratio that may be further from 1 than this is undecided, and nothing else."""


class Evidence:
    """What checks are judged by: a plan, its table, and the tolerance."""

    def __init__(
        self,
        plan: Plan,
        table: pd.DataFrame,
        tolerance: float,
        frontiers: dict[str, Frontier] | None = None,
        *,
        only_planned_looks: bool = False,
    ) -> None:
        """`only_planned_looks`: whoever may go on measuring does not look in between, see analysis/paired.py."""
        self.plan, self.tolerance, self.frontiers = plan, tolerance, frontiers or {}
        self.only_planned_looks = only_planned_looks
        self.frames = by_cell(table)
        self._endings: dict[str, Ending] = {}

    def blocks(self, cell: str, metric: str) -> list[list[float]]:
        return blocks_in(self.frames[cell], metric)

    def ratio(self, sides: list[Side], metric: str) -> Comparison:
        """Of two sides, or of two ratios of four."""
        rows = [self.frames[side.cell] for side in sides]
        found = comparing.ratio(rows, metric, self.prior(sides))
        return found.of_counts() if METRICS[metric].is_certain else self._looked_at(found)

    def _looked_at(self, found: Comparison) -> Comparison:
        return found.at_planned_looks() if self.only_planned_looks else found

    def exponent(self, curves: list[list[tuple[float, Side]]], metric: str, groups: list[str]) -> Comparison:
        """Of a curve, or of the ratio of two; points of different `groups` have levels of their own."""
        slopes = stats.slope_weights([x for x, _ in curves[0]], groups)
        sides = [side for curve in curves for _, side in curve]
        weights = [*slopes, *(-weight for weight in slopes)][: len(sides)]
        rows = [self.frames[side.cell] for side in sides]
        in_rounds = self._looked_at(comparing.contrast(rows, weights, metric, self.prior(sides)))
        if in_rounds.looks:
            return in_rounds
        blocks = [[(x, self.blocks(side.cell, metric)) for x, side in curve] for curve in curves]
        found = stats.exponent_interval(blocks[0], *blocks[1:], groups=groups)
        return Comparison((found,) if found else ())

    def prior(self, sides: list[Side]) -> Prior:
        return comparing.prior_of([self.plan.cells[side.cell].cell for side in sides])

    def title(self, cell: str, title: str) -> str:
        """`title`, and that nothing was compiled or fused where the proof of `cell` says so."""
        frame = self.frames[cell]
        return with_what_ran(title, {name: frame[name].dropna().max() for name in NOTHING_RAN})

    def ending(self, cell: str) -> Ending:
        if cell not in self._endings:
            self._endings[cell] = ending(self.frames[cell])
        return self._endings[cell]

    def paths(self, cell: str) -> list[str]:
        return [str(path) for path in self.frames[cell]["path"].unique()]


class Side(NamedTuple):
    """One cell of a check: where it stands in its study, and how it ended."""

    address: str
    title: str
    row: Row
    cell: str
    end: Ending


class Missing(Exception):
    """A cell that gave no numbers; the text is the reason."""


class Basis(NamedTuple):
    """What a verdict rests on: files of results, and how their cells depart from the document's."""

    results: tuple[str, ...]
    deviations: tuple[str, ...]


NO_RESULTS = Basis((), ())


def verdict_on(
    check: Check,
    sentence: str,
    result: Verdict,
    *,
    reason: str | None = None,
    found: Interval | None = None,
    blocks: int = 0,
    basis: Basis = NO_RESULTS,
) -> CheckVerdict:
    metric = getattr(check, "metric", getattr(check, "quantity", None))
    return CheckVerdict(
        kind=check.kind,
        metric=metric,
        of=getattr(check, "of", None),
        to=getattr(check, "to", None),
        sentence=sentence,
        verdict=result,
        estimate=found.estimate if found else None,
        low=found.low if found else None,
        high=found.high if found else None,
        published=getattr(check, "published", None),
        reason=reason,
        blocks=blocks,
        results=basis.results,
        deviations=basis.deviations,
    )


def side_at(study: str, address: str, evidence: Evidence) -> Side:
    """The cell at `address`.

    Raises:
        Missing: it has no numbers.
    """
    row = evidence.plan.row(study, address)
    side = any_side_at(study, address, evidence)
    if side is None:
        raise Missing(f"{address} cannot be run: {row.unavailable}")
    if side.end.outcome == Outcome.WRONG:
        raise Missing(f"{address} ran, but its outputs were wrong: {side.end.reason}")
    if side.end.outcome != Outcome.OK:
        raise Missing(f"{address} ended {side.end.outcome}: {side.end.reason}")
    return side


def any_side_at(study: str, address: str, evidence: Evidence) -> Side | None:
    row = evidence.plan.row(study, address)
    if row.cell is None:
        return None
    suffix = ", ".join(f"{key} {value}" for key, value in row.sweep.items())
    title = evidence.title(row.cell, f"{row.title} ({suffix})" if suffix else row.title)
    return Side(address, title, row, row.cell, evidence.ending(row.cell))


def curve(study: str, address: str, over: str, evidence: Evidence) -> list[tuple[str, Row]]:
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


def sides_of(check: Check, study: str, evidence: Evidence) -> list[Side]:
    return [side_at(study, getattr(check, name), evidence) for name in SIDES if getattr(check, name, None)]


def basis_of(sides: list[Side], evidence: Evidence) -> Basis:
    return Basis(
        tuple(dict.fromkeys(path for side in sides for path in evidence.paths(side.cell))),
        tuple(dict.fromkeys(each.text for side in sides for each in side.row.deviations)),
    )


def doubts_about(sides: list[Side]) -> str | None:
    flags = list(dict.fromkeys(f"{side.address}: {flag}" for side in sides for flag in side.end.flags))
    return f"In doubt: {'; '.join(flags)}." if flags else None


def by_interval(
    check: Check,
    evidence: Evidence,
    sides: list[Side],
    compared: Comparison,
    region: Expectation,
    say: Callable[[Interval], str],
) -> CheckVerdict:
    """An interval against a region, at the first look that settles it, with the doubts about what lies behind it."""
    looks = compared.looks
    basis = basis_of(sides, evidence)
    doubts = doubts_about(sides)
    if not looks:
        named = " and ".join(dict.fromkeys(side.address for side in sides))
        reason, void = f"there is no round in which {named} gave this metric", 0
        if isinstance(check, RatioCheck | GainCheck | ShapeCheck):
            void = comparing.void_rounds([evidence.frames[side.cell] for side in sides], check.metric)
        if void:
            reason = f"{count(void, 'round')} in which {named} sat, each disturbed too much to count"
        return verdict_on(
            check, f"Not judged: {reason}.", Verdict.UNDECIDED, reason=joined(reason + ".", doubts), basis=basis
        )
    wanted = bounds(region, evidence.tolerance)
    found = next((look for look in looks if verdict(look, wanted) != Verdict.UNDECIDED), looks[-1])
    result = verdict(found, wanted)
    needed = _needed(compared, sides, evidence, wanted) if result == Verdict.UNDECIDED and compared.rounds else None
    is_of_ratio = check.kind in ("ratio", "gain")
    sentence, most = say(found), largest_difference(found, wanted) if is_of_ratio else None
    bounded = result == Verdict.UNDECIDED and most is not None and most <= MOST_BOUNDED
    if bounded:
        sentence = f"{sentence.rstrip('.')}; no difference larger than {most:.0%}."
    judged = verdict_on(
        check,
        sentence,
        Verdict.BOUNDED if bounded else result,
        found=found,
        reason=joined(_why(found, result, compared, needed), doubts),
        blocks=found.rounds,
        basis=basis,
    )
    return judged.model_copy(update={"needed": needed})


def _needed(compared: Comparison, sides: list[Side], evidence: Evidence, wanted: Bounds) -> Needed:
    rounds, passes = compared.rounds_needed(*wanted), compared.passes_needed(*wanted)
    minutes = None
    if rounds is not None:
        minutes = (rounds - len(compared.rounds)) * _round_s(sides, evidence) / 60
    return Needed(
        rounds=rounds,
        minutes=minutes,
        passes=None if math.isinf(passes) else math.ceil(passes),
        pass_to_round_sd=compared.pass_to_round_sd,
    )


def _round_s(sides: list[Side], evidence: Evidence) -> float:
    """Seconds of a round of these cells alone, by the last that all sat in."""
    frames = [evidence.frames[cell] for cell in {side.cell for side in sides}]
    last = max(set.intersection(*(set(frame["round"].dropna()) for frame in frames)))
    arms = [frame[frame["round"] == last].drop_duplicates("block") for frame in frames]
    return float(sum(arm["arm_s"].sum() for arm in arms))


def _why(found: Interval, result: Verdict, compared: Comparison, needed: Needed | None) -> str | None:
    """Why it is undecided, and what would decide it."""
    if result != Verdict.UNDECIDED:
        return None
    if needed is None:
        few = found.rounds < 2
        return (
            f"{found.rounds} block in common: at least 2 are needed for an interval."
            if few
            else "The interval reaches beyond the range that would decide: more blocks would narrow it."
        )
    if found.ends is None:
        reached = f"{count(found.rounds, 'round')} so far, and an interval needs {compared.prior.least}"
    else:
        reached = "The interval reaches beyond the range that would decide"
    if needed.minutes is None:
        return f"{reached}; its estimate lies so near the end of that range that no budget would."
    return f"{reached}: about {duration(needed.minutes * 60)} more would, if the estimate stays where it is."


def joined(*parts: str | None) -> str | None:
    return " ".join(part for part in parts if part) or None
