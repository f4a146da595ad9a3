"""Folders of results beside each other: for each cell a ratio with its interval, or why there can be none.

Two folders were not measured in turns, so nothing pairs them: the interval of a ratio is put together from the two
intervals on the log scale by the method of variance estimates recovery (Zou and Donner, 2008, Statistics in Medicine
27:1693, "Construction of confidence limits about effect measures"). It covers what differs inside each of the two
measurements, and not what a machine is like on another day.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cached_property
from statistics import NormalDist
from typing import Any, NamedTuple

from claimbench.exchange.folder import ResultsFolder
from claimbench.schema import result, sealed
from claimbench.schema.cell import Cell
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Row
from claimbench.schema.verdicts import CellSummary, ClaimVerdict, Verdict

DECIDED = (Verdict.SUPPORTED, Verdict.REFUTED, Verdict.BOUNDED)
CONFIDENCE = 0.95
LONGEST, LEAD = 40, 10
"""Characters of a value that are shown, and how many of them stand before the first that differs."""
NOT_COMPARED = {"device", "protocol"}
"""Parts of a cell that may differ: what measures it, and how often."""


class State(StrEnum):
    SAME = "same"
    """The whole interval lies within the tolerance."""
    BETTER = "better"
    WORSE = "worse"
    OPEN = "open"
    """The interval reaches over the tolerance."""
    REFUSED = "refused"
    """There is nothing to compare."""


class CellComparison(NamedTuple):
    address: str
    """`study: experiment/label@...`"""
    metric: str
    base: Interval | None
    other: Interval | None
    ratio: Interval | None
    """The other over the base."""
    state: State
    reason: str


class ClaimComparison(NamedTuple):
    study: str
    id: str
    statement: str
    before: str
    after: str
    is_flip: bool
    """Both are decided, and not the same."""
    reason: str


class Side:
    """A folder with its cells by address."""

    def __init__(self, folder: ResultsFolder) -> None:
        """
        Raises:
            ResultError: it has no plan or no verdicts, or the verdicts are of another plan.
        """
        given = {"plan": folder.plan.seal}
        sealed.require_made_of(folder.path / "verdicts.json", folder.verdicts.made_of, given, "judge")
        self.folder = folder
        self.name = str(folder.asked)

    @cached_property
    def rows(self) -> dict[str, Row]:
        return {
            f"{study}: {experiment}/{address}": row
            for study, planned in self.folder.plan.studies.items()
            for experiment, rows in planned.rows.items()
            for address, row in rows.items()
        }

    def cell(self, row: Row) -> Cell | None:
        return self.folder.plan.cells[row.cell].cell if row.cell else None

    def summary(self, row: Row) -> CellSummary | None:
        return self.folder.verdicts.cells.get(row.cell) if row.cell else None

    @cached_property
    def weights(self) -> Mapping[str, str]:
        """By cell the sha256 of the weights that it loaded, as far as raw results are here."""
        records = [arm.result for one in self.folder.rounds.values() for arm in one.arms] if self._has_rounds else []
        places = [path for each in self.folder.plan.cells.values() for path in each.paths()]
        files = [self.folder.path / path.removeprefix("results/") for path in places]
        records += [result.read(path) for path in files if path.exists()]
        return {one.cell.id: one.checkpoint_sha256 for one in records if one.checkpoint_sha256}

    @property
    def _has_rounds(self) -> bool:
        listed = self.folder.decided.seals if self.folder.decided else {}
        return bool(listed) and all((self.folder.path / path.removeprefix("results/")).exists() for path in listed)

    @cached_property
    def claims(self) -> dict[tuple[str, str], ClaimVerdict]:
        return {(claim.study, claim.id): claim for claim in self.folder.verdicts.claims}

    @cached_property
    def libraries(self) -> dict[str, str]:
        seen: dict[str, set[str]] = {}
        for planned in self.folder.plan.cells.values():
            for name, version in planned.key.libraries.items():
                seen.setdefault(name, set()).add(version or "absent")
        return {name: ", ".join(sorted(versions)) for name, versions in seen.items()}


def compare(base: Side, other: Side, metrics: tuple[str, ...]) -> list[CellComparison]:
    """Every cell of either by every metric that one of them has, in the order of the base."""
    addresses = list(dict.fromkeys([*base.rows, *other.rows]))
    pairs = [(address, metric) for address in addresses for metric in metrics]
    found = [_compared(address, metric, base, other) for address, metric in pairs]
    number = sum(one.ratio is not None for one in found)
    tolerance = max(base.folder.verdicts.tolerance, other.folder.verdicts.tolerance)
    return [_judged(one, tolerance, number) for one in found]


def _compared(address: str, metric: str, base: Side, other: Side) -> CellComparison:
    why = incomparable(address, base, other)
    if why:
        return CellComparison(address, metric, None, None, None, State.REFUSED, why)
    sides = [(side, side.summary(side.rows[address])) for side in (base, other)]
    lost = _outcomes(sides[0][1], sides[1][1])
    if lost:
        return CellComparison(address, metric, None, None, None, *lost)
    one, two = (_number(summary, metric) for _, summary in sides)
    found = CellComparison(address, metric, one, two, None, State.REFUSED, "")
    if one is None or two is None:
        lacking = [side.name for (side, _), number in zip(sides, (one, two), strict=True) if number is None]
        return found._replace(reason=f"{metric} is not in {' and '.join(lacking)}")
    if min(one.estimate, two.estimate) <= 0:
        return found._replace(reason="a ratio needs numbers above 0")
    return found._replace(ratio=ratio(two, one), state=State.OPEN)


def incomparable(address: str, base: Side, other: Side) -> str | None:
    """Why the two rows at `address` are not the same cell."""
    for side in (base, other):
        if address not in side.rows:
            return f"not in {side.name}"
    rows = [base.rows[address], other.rows[address]]
    cells = [base.cell(rows[0]), other.cell(rows[1])]
    for side, row, cell in zip((base, other), rows, cells, strict=True):
        if cell is None:
            return f"not planned in {side.name}: {row.unavailable}"
    assert cells[0] is not None
    assert cells[1] is not None
    differing = differences(cells[0], cells[1])
    if differing:
        return f"another cell: {'; '.join(differing)}"
    loaded = [side.weights.get(cell.id) for side, cell in zip((base, other), cells, strict=True) if cell]
    if all(loaded) and loaded[0] != loaded[1]:
        return f"other weights were loaded ({str(loaded[0])[:12]} and {str(loaded[1])[:12]})"
    return None


def differences(one: Cell, other: Cell) -> list[str]:
    """What two cells differ in, as `workload.new_tokens 16 and 32`."""
    return [f"{name} {first} and {second}" for name, first, second in settings_that_differ(one, other)]


def settings_that_differ(one: Cell, other: Cell) -> list[tuple[str, str, str]]:
    """Name, and what each of the two has. Another model is told by its name alone, where it has another."""
    sides = [flat(cell.model_dump(mode="json", exclude=EXCLUDED)) for cell in (one, other)]
    names = [name for name in dict.fromkeys([*sides[0], *sides[1]]) if sides[0].get(name) != sides[1].get(name)]
    found = list[tuple[str, str, str]]()
    models = (one.checkpoint.name, other.checkpoint.name)
    if models[0] != models[1] and any(name.startswith("checkpoint.") for name in names):
        found.append(("model", *models))
        names = [name for name in names if not name.startswith("checkpoint.")]
    return found + [(name, *_told_apart(sides[0].get(name), sides[1].get(name))) for name in names]


EXCLUDED: Any = {**dict.fromkeys(NOT_COMPARED, True), "checkpoint": {"card", "name"}, "draft": {"card", "name"}}


def flat(value: Any, name: str = "") -> dict[str, object]:
    """A nested value as one level of dotted names."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {key: each for inner, one in value.items() for key, each in flat(one, f"{name}.{inner}".strip(".")).items()}


def _told_apart(one: object, other: object) -> tuple[str, str]:
    """Both values in words: techniques in full, and of long texts the place where they begin to differ."""
    texts = [_in_words(one), _in_words(other)]
    if _are_uses(one) and _are_uses(other):
        return texts[0], texts[1]
    differing = (place for place, (a, b) in enumerate(zip(*texts, strict=False)) if a != b)
    common = next(differing, min(map(len, texts)))
    begin = max(0, common - LEAD) if max(map(len, texts)) > LONGEST and common > LEAD else 0
    first, second = (_cut(text, begin) for text in texts)
    return first, second


def _cut(text: str, begin: int) -> str:
    shown = f"...{text[begin:]}" if begin else text
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."


def _are_uses(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, Mapping) and "name" in one for one in value)


def _in_words(value: object) -> str:
    if value in (None, [], ()):
        return "nothing"
    if isinstance(value, list | tuple) and _are_uses(value):
        return " + ".join(map(_use, value))
    return str(value)


def _use(use: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in (use.get("settings") or {}).items())
    return f"{use['name']} ({settings})" if settings else str(use["name"])


def _outcomes(base: CellSummary | None, other: CellSummary | None) -> tuple[State, str] | None:
    """What is to be said where one of them gave no number."""
    ends = [summary.outcome if summary else Outcome.UNAVAILABLE for summary in (base, other)]
    if ends == [Outcome.OK, Outcome.OK]:
        return None
    reason = (other if ends[1] != Outcome.OK else base) or None
    why = f"{ends[0].value} and {ends[1].value}: {reason.reason if reason else 'no result'}"
    if ends[0] == Outcome.OK:
        return State.WORSE, why
    return (State.BETTER if ends[1] == Outcome.OK else State.REFUSED), why


def _number(summary: CellSummary | None, metric: str) -> Interval | None:
    return summary.metrics[metric].interval if summary and metric in summary.metrics else None


def ratio(of: Interval, to: Interval, confidence: float = CONFIDENCE) -> Interval:
    """`of` / `to` of two measurements that share nothing; without ends where one of them has none, or one below 0."""
    estimate = of.estimate / to.estimate
    of_ends, to_ends = of.ends, to.ends
    if of_ends is None or to_ends is None or min(of_ends[0], to_ends[0]) <= 0:
        return Interval(estimate, rounds=min(of.rounds, to.rounds))
    wider = NormalDist().inv_cdf(0.5 + confidence / 2) / NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    a, (a_low, a_high) = math.log(of.estimate), map(math.log, of_ends)
    b, (b_low, b_high) = math.log(to.estimate), map(math.log, to_ends)
    below = wider * math.hypot(a - a_low, b_high - b)
    above = wider * math.hypot(a_high - a, b - b_low)
    return Interval(estimate, estimate * math.exp(-below), estimate * math.exp(above), min(of.rounds, to.rounds))


def _judged(found: CellComparison, tolerance: float, number: int) -> CellComparison:
    """With its state: better or worse only where an interval that is corrected for so many comparisons says so."""
    if found.ratio is None or found.base is None or found.other is None:
        return found
    metric = METRICS[found.metric]
    if metric.is_certain:
        is_same = abs(found.ratio.estimate - 1) <= tolerance
        return found._replace(state=State.SAME if is_same else _way(found, found.ratio.estimate))
    corrected = ratio(found.other, found.base, 1 - (1 - CONFIDENCE) / number)
    if corrected.ends is None:
        return found._replace(reason="one round alone: no interval")
    low, high = corrected.ends
    plain = found.ratio.ends or corrected.ends
    if low > 1 + tolerance or high < 1 - tolerance:
        return found._replace(state=_way(found, corrected.estimate))
    if 1 - tolerance <= plain[0] and plain[1] <= 1 + tolerance:
        return found._replace(state=State.SAME)
    return found


def _way(found: CellComparison, estimate: float) -> State:
    better = METRICS[found.metric].better
    if better == "none":
        return State.OPEN
    return State.BETTER if (estimate > 1) == (better == "higher") else State.WORSE


def compare_claims(base: Side, other: Side) -> Iterator[ClaimComparison]:
    """The claims whose verdict is another, and those that cannot be compared."""
    for study, id in dict.fromkeys([*base.claims, *other.claims]):
        before, after = base.claims.get((study, id)), other.claims.get((study, id))
        if before is None or after is None:
            side = base if before is None else other
            known = before or after
            assert known is not None
            absent, there = "not there", known.verdict.value
            words = (absent, there) if before is None else (there, absent)
            yield ClaimComparison(study, id, known.statement, *words, False, f"not in {side.name}")
        elif _asks(before) != _asks(after):
            words = (before.verdict.value, after.verdict.value)
            yield ClaimComparison(study, id, after.statement, *words, False, "the claim was edited: not compared")
        elif why := _other_cells(after, base, other):
            if before.verdict != after.verdict:
                words = (before.verdict.value, after.verdict.value)
                yield ClaimComparison(study, id, after.statement, *words, False, f"not compared: {why}")
        elif before.verdict != after.verdict:
            is_flip = before.verdict in DECIDED and after.verdict in DECIDED
            words = (before.verdict.value, after.verdict.value)
            yield ClaimComparison(study, id, after.statement, *words, is_flip, after.reason or "")


def _other_cells(claim: ClaimVerdict, base: Side, other: Side) -> str | None:
    """Why the claim is about other cells here than there."""
    for address in dict.fromkeys([*named_by(claim, base), *named_by(claim, other)]):
        why = incomparable(address, base, other)
        if why:
            return f"{address}: {why}"
    return None


def named_by(claim: ClaimVerdict, side: Side) -> list[str]:
    """The addresses of a folder that a claim is about; of a curve, each of its points."""
    named = {f"{claim.study}: {address}" for check in claim.checks for address in (check.of, check.to) if address}
    return [address for address in side.rows if address in named or address.partition("@")[0] in named]


def _asks(claim: ClaimVerdict) -> list[tuple[object, ...]]:
    return [(check.kind, check.metric, check.of, check.to, check.expect) for check in claim.checks]
