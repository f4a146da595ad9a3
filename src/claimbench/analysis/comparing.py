"""Cells compared by their rows of the table: pass by pass where they sat together in rounds, by blocks where not.

Blocks are paired by their number, which pairs nothing on a machine that drifts; they are for what cannot take turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from claimbench import optimizations
from claimbench.analysis import paired, stats
from claimbench.analysis.aggregate import blocks_in
from claimbench.analysis.paired import RESTLESS, STEADY, PairedRound, Prior
from claimbench.schema.cell import Cell, OptimizationUse
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS

Scale = Callable[[float], float]


class Comparison(NamedTuple):
    """Cells compared: the interval at every look, the last one last, and what it rests on where it is of rounds."""

    looks: tuple[Interval, ...]
    """Empty where no round, or no block, is common to all."""
    rounds: tuple[PairedRound, ...] = ()
    prior: Prior = STEADY
    scale: Scale = math.log
    """From a number to where rounds are averaged."""

    @property
    def last(self) -> Interval | None:
        return self.looks[-1] if self.looks else None

    def at_planned_looks(self) -> Comparison:
        """Without what a last round shows that is no planned look: as if it had not been looked at yet."""
        planned = tuple(each for each in self.looks if each.rounds in paired.LOOKS or each.ends is None)
        return self._replace(looks=planned or self.looks[-1:])

    def of_counts(self) -> Comparison:
        """A count that was the same whenever it was taken has no spread, and one round shows it."""
        last, found = self.last, {round(log, 12) for each in self.rounds for log in each.logs}
        if last is None or len(found) != 1:
            return self
        return self._replace(looks=(Interval(last.estimate, last.estimate, last.estimate, max(2, last.rounds)),))

    def rounds_needed(self, low: float, high: float) -> int | None:
        """Rounds in all that would settle whether it is within [low, high], if the estimate stayed; None: too many."""
        return paired.rounds_to_settle(self.rounds, self.prior, *self._ends(low, high))

    def passes_needed(self, low: float, high: float) -> float:
        """Passes of one more round that would settle it, likewise; infinite where one round cannot."""
        return paired.passes_to_settle(self.rounds, self.prior, *self._ends(low, high))

    @property
    def pass_to_round_sd(self) -> float:
        """Of the passes of its rounds, over what rounds differ by."""
        return paired.pass_to_round_sd(self.rounds, self.prior)

    def _ends(self, low: float, high: float) -> tuple[float, float]:
        return _at(self.scale, low), _at(self.scale, high)


def _at(scale: Scale, value: float) -> float:
    if math.isinf(value) or (scale is math.log and value <= 0):
        return math.copysign(math.inf, value if math.isinf(value) else -1)
    return scale(value)


def ratio(rows: Sequence[pd.DataFrame], metric: str, prior: Prior = STEADY, seed: int = 0) -> Comparison:
    """(of / to), or with four cells (of / to) / (than_of / than_to).

    Raises:
        ValueError: a value is not positive, so a ratio means nothing.
    """
    signs = [1.0, -1.0, -1.0, 1.0][: len(rows)]
    found = [] if METRICS[metric].is_of_start else paired_rounds(rows, signs, metric)
    if found:
        return Comparison(tuple(_interval(look, math.exp) for look in paired.looks(found, prior)), tuple(found), prior)
    series = [blocks_in(each[each["round"].isna()], metric) for each in rows]
    whole = stats.ratio_interval(*series, seed=seed) if len(series) == 2 else stats.gain_interval(*series, seed=seed)
    return Comparison((whole,) if whole else ())


def ratio_at(rows: Sequence[pd.DataFrame], metric: str, prior: Prior = STEADY) -> Callable[[float], Interval | None]:
    """(of / to) at the last look, for any error that its interval may have; None: no round and no block is common.

    Raises:
        ValueError: a value is not positive, so a ratio means nothing.
    """
    found = [] if METRICS[metric].is_of_start else paired_rounds(rows, [1.0, -1.0], metric)
    if found:
        return lambda error: _interval(paired.contrast(found, prior, error), math.exp)
    of, to = (blocks_in(each[each["round"].isna()], metric) for each in rows)
    stats.ratio_interval(of, to, resamples=2)
    return lambda error: stats.ratio_interval(of, to, confidence=1 - error)


def twins(rows: pd.DataFrame, metric: str) -> Comparison:
    """A cell against itself, over the rounds in which it sat twice: what no difference looks like here.

    Raises:
        ValueError: a value is not positive.
    """
    first = rows.groupby("round")["block"].transform("min")
    sides = [rows[rows["block"] == first], rows[rows["block"] > first]]
    return ratio(sides, metric) if len(sides[1]) else Comparison(())


def contrast(rows: Sequence[pd.DataFrame], weights: Sequence[float], metric: str, prior: Prior) -> Comparison:
    """The sum of weights x log(metric) over the rounds that all cells sat in; of how a process starts no round says."""
    found = [] if METRICS[metric].is_of_start else paired_rounds(rows, weights, metric)
    looks = tuple(_interval(look, _same) for look in paired.looks(found, prior))
    return Comparison(looks, tuple(found), prior, _same)


def _same(value: float) -> float:
    return value


def _interval(look: paired.Contrast, back: Scale) -> Interval:
    if math.isinf(look.half_width):
        return Interval(back(look.centre), rounds=look.rounds)
    low, high = look.ends
    return Interval(back(look.centre), back(low), back(high), look.rounds)


def paired_rounds(rows: Sequence[pd.DataFrame], weights: Sequence[float], metric: str) -> list[PairedRound]:
    """The contrast at every pass that all cells have, by round, in the order in which rounds were measured.

    A round that a rule of validity voids is left out.

    Raises:
        ValueError: a value is not positive.
    """
    by_turn = [_turns(each, metric) for each in rows]
    common = sorted(set.intersection(*(set(each) for each in by_turn))) if by_turn else []
    known = {name: weight for each in rows for name, weight in zip(each["round"], each["weight"], strict=True)}
    rounds: dict[str, list[float]] = {}
    for place in (place for place in common if known[place[0]] > 0):
        values = [each[place] for each in by_turn]
        if min(values) <= 0:
            raise ValueError("expected positive values: the logarithm of zero does not exist")
        found = sum(weight * math.log(value) for weight, value in zip(weights, values, strict=True))
        rounds.setdefault(place[0], []).append(found)
    return [PairedRound(tuple(logs), known[name]) for name, logs in rounds.items()]


def void_rounds(rows: Sequence[pd.DataFrame], metric: str) -> int:
    """How many rounds all cells sat in, where each of them is void; 0 where `metric` is compared by blocks."""
    sat = set.intersection(*(set(each["round"].dropna()) for each in rows))
    void = set.union(*(set(each.loc[each["weight"] == 0, "round"].dropna()) for each in rows))
    return len(sat) if sat <= void and not METRICS[metric].is_of_start else 0


def _turns(rows: pd.DataFrame, metric: str) -> dict[tuple[str, int], float]:
    """(round, pass) -> the mean of what was generated there."""
    known = rows.dropna(subset=["round", "pass", metric])
    found: dict[tuple[str, int], list[float]] = {}
    for name, number, value in zip(known["round"], known["pass"], known[metric], strict=True):
        found.setdefault((str(name), int(number)), []).append(float(value))
    return {place: sum(values) / len(values) for place, values in found.items()}


def prior_of(cells: Sequence[Cell]) -> Prior:
    """Compiled and quantised cells differ more from process to process."""
    return RESTLESS if any(is_restless(cell) for cell in cells) else STEADY


def is_restless(cell: Cell) -> bool:
    return any(_compiles(use) or not optimizations.find(use.name).EXACT for use in cell.optimizations)


def _compiles(use: OptimizationUse) -> bool:
    module = optimizations.find(use.name)
    ask = getattr(module, "compiles", None)
    return bool(ask(optimizations.settings_of(use.name, use.settings))) if ask else module.SEAM == "compile"
