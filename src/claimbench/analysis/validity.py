"""What makes a measurement doubtful, as one table: a new rule is one row, and a condition that somebody records.

Conditions are numbers: of the machine, recorded while something was timed, and of how the arms behaved. Those by which
a round is left out or weighs less are of the whole round, and none tells one arm from another, so no rule can favour a
result. Rules are not part of what a result depends on: a threshold that is changed measures nothing anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from statistics import fmean, median
from typing import NamedTuple

from claimbench.analysis import derive
from claimbench.schema.result import Result, Sample
from claimbench.schema.round import TWIN, Arm, Round


class Effect(StrEnum):
    VOID = "void"
    """The round is in no comparison."""
    WEIGH = "weigh"
    """It counts for half in every comparison."""
    NOTE = "note"
    """It counts as it is, and what rests on it is said to be in doubt."""


class Rule(NamedTuple):
    condition: str
    above: float
    effect: Effect
    sentence: str
    """With a place for the number."""


HALF = 0.5
WORST_FIRST = (Effect.VOID, Effect.WEIGH, Effect.NOTE)

FOREIGN = "other processes took {:.0%} of the cores"
STEAL = "the hypervisor took {:.0%} of the cores"
WAITING = "arms that waited took {:.0%} of a core while others generated"
SWAPPED = "{:.0f} MB were read back from swap"
BESIDE = "while others measured on other GPUs, a cell differed from itself by {:.1%}"

RULES = (
    Rule("foreign_cpu", 0.05, Effect.NOTE, FOREIGN),
    Rule("foreign_cpu", 0.15, Effect.WEIGH, FOREIGN),
    Rule("foreign_cpu", 0.50, Effect.VOID, FOREIGN),
    Rule("steal", 0.02, Effect.NOTE, STEAL),
    Rule("steal", 0.10, Effect.WEIGH, STEAL),
    Rule("steal", 0.40, Effect.VOID, STEAL),
    Rule("waiting_cpu", 0.02, Effect.WEIGH, WAITING),
    Rule("waiting_cpu", 0.25, Effect.VOID, WAITING),
    Rule("swapped_mb", 1.0, Effect.WEIGH, SWAPPED),
    Rule("swapped_mb", 500.0, Effect.VOID, SWAPPED),
    Rule("throttled", 0.0, Effect.WEIGH, "the GPU throttled its clocks (seen {:.0f} times)"),
    Rule("foreign_gpu", 0.0, Effect.NOTE, "other processes had the GPU open ({:.0f} of them)"),
    Rule("beside_gap", 0.02, Effect.WEIGH, BESIDE),
    Rule("beside_gap", 0.05, Effect.VOID, BESIDE),
    Rule("slept_s", 1.0, Effect.VOID, "the machine slept for {:.0f} s"),
    Rule("clock_gap", 0.1, Effect.NOTE, "host and device clock differ by {:.0%} of a generation"),
    Rule("first_pass", 0.25, Effect.NOTE, "the first pass took {:.0%} longer than the later ones"),
    Rule("resumed", 0.05, Effect.NOTE, "the first steps after a wait made its generations {:.0%} longer"),
    Rule("unsteady_warmup", 0.05, Effect.NOTE, "the last warm-up was {:.0%} faster than the one before it"),
)


class Doubt(NamedTuple):
    effect: Effect
    sentence: str


def of_block(record: Result) -> dict[str, float]:
    """Of one that was measured alone, and warmed up until it was steady."""
    found = record.conditions | of_arm(record)
    walls = [sample.wall_ns for sample in record.warmup]
    return found | ({"unsteady_warmup": 1 - walls[-1] / walls[-2]} if len(walls) > 1 else {})


def of_arm(record: Result) -> dict[str, float]:
    """Of one that sat in a round, beside those of the round."""
    gaps = [derive.wall_event_gap(sample) or 0.0 for sample in record.samples if sample.clock == "device"]
    resumed = [share for sample in record.samples if (share := _resumed_share(sample)) is not None]
    return ({"clock_gap": max(gaps)} if gaps else {}) | ({"resumed": median(resumed)} if resumed else {})


def _resumed_share(sample: Sample) -> float | None:
    """How much longer a generation took for its steps that came first after a wait; None: most of them did.

    Steps that speculate are left out: they take as long as they accept tokens.
    """
    firsts = [sample.step_ns[step] for step in sample.resumed]
    others = [took for step, took in enumerate(sample.step_ns) if step and step not in sample.resumed]
    if not firsts or len(others) < len(firsts) or len(set(sample.step_tokens)) > 1:
        return None
    return len(firsts) * (median(firsts) - median(others)) / sample.wall_ns


def of_round(record: Round) -> dict[str, float]:
    """Of a round, for all of its arms."""
    excess = list(_first_excess(record.arms))
    found = record.conditions | {"waiting_cpu": sum(arm.waiting_cpu for arm in record.arms)}
    gap = _twin_gap(record.arms) if found.get("beside") else None
    return found | ({"first_pass": median(excess)} if excess else {}) | ({} if gap is None else {"beside_gap": gap})


def was_disturbed_beside(record: Round) -> bool:
    """Whether others on other GPUs did harm: a cell differed from itself by more than the rules bear."""
    return bool(doubts({name: value for name, value in of_round(record).items() if name == "beside_gap"}))


def _twin_gap(arms: Iterable[Arm]) -> float | None:
    """By how much the base differed from itself, whichever way: the median over the passes that both sat in."""
    twin = next((arm for arm in arms if arm.name == TWIN), None)
    base = next((arm for arm in arms if twin and arm is not twin and arm.result.cell == twin.result.cell), None)
    if twin is None or base is None:
        return None
    here, again = ({n: fmean(one.wall_ns for one in made) for n, made in arm.by_pass().items()} for arm in (base, twin))
    ratios = [again[number] / here[number] for number in here.keys() & again.keys()]
    return abs(median(ratios) - 1) if ratios else None


def _first_excess(arms: Iterable[Arm]) -> Iterable[float]:
    """Of each arm with three passes or more: by how much its first generation took longer than the median one."""
    for arm in arms:
        walls = [sample.wall_ns for sample in arm.result.samples]
        if len(arm.turns) > 2:
            yield walls[0] / median(walls) - 1


def doubts(conditions: Mapping[str, float]) -> list[Doubt]:
    """What the rules say: of the rules about one condition, the one with the gravest effect."""
    found: dict[str, Doubt] = {}
    for effect in WORST_FIRST:
        for rule in RULES:
            value = conditions.get(rule.condition)
            if rule.effect == effect and value is not None and value > rule.above:
                found.setdefault(rule.condition, Doubt(effect, rule.sentence.format(value)))
    return list(found.values())


def sentences(conditions: Mapping[str, float]) -> list[str]:
    return [doubt.sentence for doubt in doubts(conditions)]


def weight(conditions: Mapping[str, float]) -> float:
    """Of a round in a comparison: 1, a half, or 0 where it is void."""
    effects = {doubt.effect for doubt in doubts(conditions)}
    if Effect.VOID in effects:
        return 0.0
    return HALF if Effect.WEIGH in effects else 1.0
