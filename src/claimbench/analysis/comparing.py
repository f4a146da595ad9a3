"""Cells compared by their rows of the table: pass by pass where they sat together in rounds, by blocks where not.

Blocks are paired by their number, which pairs nothing on a machine that drifts; they are for what cannot take turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd

from claimbench import optimizations
from claimbench.analysis import paired, stats
from claimbench.analysis.aggregate import blocks_in
from claimbench.analysis.paired import RESTLESS, STEADY, PairedRound, Prior
from claimbench.schema.cell import Cell
from claimbench.schema.interval import Interval

Scale = Callable[[float], float]


def ratio(rows: Sequence[pd.DataFrame], metric: str, prior: Prior = STEADY, seed: int = 0) -> list[Interval]:
    """(of / to), or with four cells (of / to) / (than_of / than_to): its interval at every look, the last one last.

    Empty where no round, or no block, is common to all.

    Raises:
        ValueError: a value is not positive, so a ratio means nothing.
    """
    signs = [1.0, -1.0, -1.0, 1.0][: len(rows)]
    looks = contrast(rows, signs, metric, prior, math.exp)
    if looks:
        return looks
    series = [blocks_in(each, metric) for each in rows]
    found = stats.ratio_interval(*series, seed=seed) if len(series) == 2 else stats.gain_interval(*series, seed=seed)
    return [found] if found else []


def contrast(
    rows: Sequence[pd.DataFrame], weights: Sequence[float], metric: str, prior: Prior, back: Scale
) -> list[Interval]:
    """The sum of weights x log(metric) over the rounds that all cells sat in, at every look, put through `back`."""
    rounds = paired_rounds(rows, weights, metric)
    return [_interval(look, back) for look in paired.looks(rounds, prior)]


def _interval(look: paired.Contrast, back: Scale) -> Interval:
    if look.rounds < 2:
        return Interval(back(look.centre))
    low, high = look.ends
    return Interval(back(look.centre), back(low), back(high), look.rounds)


def paired_rounds(rows: Sequence[pd.DataFrame], weights: Sequence[float], metric: str) -> list[PairedRound]:
    """The contrast at every pass that all cells have, by round, in the order in which rounds were measured.

    Raises:
        ValueError: a value is not positive.
    """
    by_turn = [_turns(each, metric) for each in rows]
    common = sorted(set.intersection(*(set(each) for each in by_turn))) if by_turn else []
    rounds: dict[str, list[float]] = {}
    for place in common:
        values = [each[place] for each in by_turn]
        if min(values) <= 0:
            raise ValueError("expected positive values: the logarithm of zero does not exist")
        found = sum(weight * math.log(value) for weight, value in zip(weights, values, strict=True))
        rounds.setdefault(place[0], []).append(found)
    return [PairedRound(tuple(logs)) for logs in rounds.values()]


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
    modules = [optimizations.find(use.name) for use in cell.optimizations]
    return any(module.SEAM == "compile" or not module.EXACT for module in modules)
