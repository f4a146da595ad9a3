"""Measures a plan's groups in rounds: first what every comparison needs, then what is still undecided.

1. Every cell of a group sits with the group's base in `LEAST` rounds; compiled and quantised ones, which differ more
   from process to process, in one more. Rounds that are there count: whoever raises the budget adds to them, and a cell
   whose code changed sits again with its base alone.
2. What is left of the budget goes to undecided claims, one round at a time: to the group that has had the fewest rounds
   of those that hold an undecided check, and in it only to the cells of such checks and their base.

A round is a sealed file as soon as it is over, so whoever is killed loses one. A verdict is judged at the first look
that settles it (analysis/paired.py), so later rounds of other claims do not undo it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from claimbench import backends
from claimbench.analysis import aggregate, comparing
from claimbench.errors import ResultError
from claimbench.formatting import duration
from claimbench.judging.checks import judge_check
from claimbench.judging.evidence import Evidence
from claimbench.measuring.arm import ArmRequest
from claimbench.measuring.block_request import BlockRequest
from claimbench.measuring.round_process import RoundRequest
from claimbench.measuring.rounds import measure_round
from claimbench.planning.groups import that_fit
from claimbench.planning.paths import CHECKPOINTS, folder_of, labels
from claimbench.schema import round as round_file
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.checks import Check, GainCheck, RatioCheck, ShapeCheck
from claimbench.schema.json_file import digest
from claimbench.schema.outcome import FITS, Outcome
from claimbench.schema.plan import Plan, PlannedGroup
from claimbench.schema.round import TWIN, Round
from claimbench.schema.verdicts import Verdict

LEAST = 2
PASSES = 6
"""Of a group's first round; later ones take as many as fill `TURNS_S`."""
TURNS_S = 40.0
FEWEST_PASSES, MOST_PASSES = 4, 16

Say = Callable[[str], None]


class Undecided(NamedTuple):
    """A check that no look has settled."""

    claim: str
    cells: tuple[str, ...]


class Progress(NamedTuple):
    """Of the checks that rounds can settle."""

    checks: int
    undecided: tuple[Undecided, ...]

    @property
    def text(self) -> str:
        """`12 of 16 decided`, by claim."""
        return f"{self.checks - len(self.undecided)} of {self.checks} comparisons decided"


class Decider:
    """A plan's rounds: those that are there, and the next one."""

    def __init__(self, plan: Plan, folder: Path, say: Say) -> None:
        self.plan, self.folder, self.say = plan, folder, say
        self.rounds = read_rounds(plan, folder, say)
        self.names = labels(plan)
        self.begun = time.monotonic()

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self.begun

    @property
    def budget_s(self) -> float:
        return self.plan.budget_minutes * 60

    def run(self) -> None:
        """Measure until nothing is undecided or the budget is spent; the least number of rounds comes in any case."""
        for group in self.plan.groups:
            while arms := self.lacking(group):
                for part in self.fitting(arms, group.base):
                    self.measure(group, part)
        while True:
            progress = self.progress()
            chosen = self.choose(progress.undecided)
            if chosen is None:
                return
            group, arms = chosen
            for part in self.fitting(arms, group.base):
                if self.spent_s + self.expected_s(part) > self.budget_s:
                    return
                self.measure(group, part, progress)

    def lacking(self, group: PlannedGroup) -> list[str]:
        """Cells of a group that have not sat with its base often enough; empty where all have."""
        return [id for id in group.cells if id != group.base and self.together(id, group.base) < self.least(id)]

    def least(self, id: str) -> int:
        cell = self.plan.cells[id].cell
        return LEAST + comparing.is_restless(cell) if self.is_worth_more(id) else 1

    def is_worth_more(self, id: str) -> bool:
        """Whether another round could tell anything new: what is unavailable or wrong stays so."""
        known = [arm.result.outcome for arm in self.arms_of(id)]
        return not known or Outcome.OK in known

    def arms_of(self, id: str) -> list[round_file.Arm]:
        key = self.plan.cells[id].key
        named = (arm for one in self.rounds.values() for arm in one.arms if arm.name != TWIN)
        return [arm for arm in named if arm.result.cell.id == id and arm.result.key == key]

    def together(self, *ids: str) -> int:
        """Rounds that all of `ids` sat in, under the keys of the plan."""
        wanted = {(id, self.plan.cells[id].key.id) for id in ids}
        return sum(
            wanted <= {(arm.result.cell.id, arm.result.key.id) for arm in one.arms} for one in self.rounds.values()
        )

    def choose(self, undecided: Iterable[Undecided]) -> tuple[PlannedGroup, list[str]] | None:
        """The group of an undecided check that has had the fewest rounds, and the cells to sit with its base."""
        wanted: dict[int, list[str]] = {}
        for check in undecided:
            for number, group in enumerate(self.plan.groups):
                if set(check.cells) <= set(group.cells) and all(map(self.is_worth_more, check.cells)):
                    wanted.setdefault(number, []).extend(check.cells)
                    break
        if not wanted:
            return None
        number = min(wanted, key=lambda each: (self.together(*wanted[each]), each))
        group = self.plan.groups[number]
        return group, [id for id in group.cells if id in wanted[number] and id != group.base]

    def fitting(self, arms: Sequence[str], base: str) -> list[list[str]]:
        memory = float((self.plan.machine.get("memory_gb") or 0) * 1e9)
        if self.plan.device == "cuda":
            memory = float(
                min((gpu.get("memory_bytes") or 0 for gpu in self.plan.machine.get("gpus") or []), default=0)
            )
        return that_fit(arms, base, self.plan.cells, memory)

    def expected_s(self, ids: Sequence[str]) -> float:
        """What a round of these cells takes: as long as earlier rounds of theirs, by the share of their arms."""
        seen = [one.duration_s / len(one.arms) for one in self.rounds.values() if self.is_of(one, ids)]
        return sum(seen) / len(seen) * (len(ids) + 1) if seen else 0.0

    def is_of(self, record: Round, ids: Sequence[str]) -> bool:
        return set(ids) <= {arm.result.cell.id for arm in record.arms}

    def passes(self, ids: Sequence[str]) -> int:
        """As many as fill `TURNS_S`, by earlier rounds of the same cells: fixed before the round."""
        earlier = [one for one in self.rounds.values() if self.is_of(one, ids)]
        if not earlier:
            return PASSES
        last = earlier[-1]
        turns = [arm.result.samples for arm in last.arms if arm.result.cell.id in ids and arm.turns]
        pass_s = sum(one.wall_ns for samples in turns for one in samples) / 1e9 / last.passes
        return max(FEWEST_PASSES, min(MOST_PASSES, round(TURNS_S / pass_s))) if pass_s else PASSES

    def measure(self, group: PlannedGroup, ids: Sequence[str], progress: Progress | None = None) -> None:
        number = sum(self.is_of(one, ids) for one in self.rounds.values())
        left = duration(max(0.0, self.budget_s - self.spent_s))
        so_far = f"{progress.text}, " if progress else ""
        self.say(f"{so_far}{left} of the budget left, now: {group.title}, {len(ids)} cells")
        arms = [self.request(id, self.names.get(id, id)) for id in ids]
        if len(ids) > 1:
            arms.append(self.request(group.base, TWIN).model_copy(update={"proves": False}))
        request = RoundRequest(
            arms=tuple(arms),
            passes=self.passes(ids),
            seed=int(digest([group.title, *ids, number, self.plan.params.measure.seed], 8), 16),
            number=number,
            group=group.title,
        )
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        path = self.folder / f"{stamp}.json"
        record = measure_round(request, path)
        self.rounds[str(path)] = record
        self.tell(record)
        for arm in record.arms:
            if len(record.arms) > 1 and arm.result.outcome == Outcome.OOM:
                self.measure(group, [arm.result.cell.id])  # beside others it may lack what it has alone

    def request(self, id: str, name: str) -> ArmRequest:
        planned = self.plan.cells[id]
        proven = any(arm.result.proof for arm in self.arms_of(id))
        reference = self.plan.cells[planned.reference].cell if planned.reference not in (None, id) else None
        needs = bool(backends.find(planned.cell.backend).LIBRARIES)
        block = BlockRequest(
            cell=planned.cell,
            checkpoint=CHECKPOINTS / folder_of(self.plan, planned.cell.checkpoint) if needs else None,
            draft=CHECKPOINTS / folder_of(self.plan, planned.cell.draft) if planned.cell.draft else None,
            reference=reference,
        )
        return ArmRequest(name=name, block=block, key=planned.key, proves=not proven)

    def tell(self, record: Round) -> None:
        ended = [f"{arm.name} {arm.result.outcome}: {arm.result.reason}" for arm in record.arms if is_odd(arm)]
        timed = f"{record.timed_s / record.duration_s:.0%} of it inside timed generations"
        for line in [f"{duration(record.duration_s)}, {timed}", *record.flags, *ended]:
            self.say(f"    {line}")

    def progress(self) -> Progress:
        """How the checks stand that rounds can settle."""
        table = aggregate.aggregate(in_groups(self.plan), Ceilings(), rounds=self.rounds)
        evidence = Evidence(self.plan, table, self.plan.params.measure.tolerance)
        checks, undecided = 0, []
        for study, planned in self.plan.studies.items():
            for claim in planned.study.claims:
                for check in claim.checks:
                    cells = cells_of(check, study, self.plan)
                    if not cells or not all(cell in evidence.frames for cell in cells):
                        continue
                    checks += 1
                    if judge_check(check, study, evidence).verdict == Verdict.UNDECIDED:
                        undecided.append(Undecided(claim.id, cells))
        return Progress(checks, tuple(undecided))


def sat_in(record: Round) -> set[tuple[str, str]]:
    """(cell, key) of every arm, its twin's among them."""
    return {(arm.result.cell.id, arm.result.key.id) for arm in record.arms}


def is_odd(arm: round_file.Arm) -> bool:
    return arm.result.outcome not in FITS or arm.result.outcome == Outcome.WRONG


def cells_of(check: Check, study: str, plan: Plan) -> tuple[str, ...]:
    """The cells that a check compares by a ratio or a curve; none where one of them cannot run, or for other kinds."""
    if isinstance(check, RatioCheck | GainCheck):
        sides = [getattr(check, side, None) for side in ("of", "to", "than_of", "than_to")]
        rows = [plan.row(study, address).cell for address in sides if address]
    elif isinstance(check, ShapeCheck):
        rows = [
            row.cell
            for address in filter(None, (check.of, check.to))
            for row in plan.studies[study].rows[address.partition("/")[0]].values()
            if row.label == address.partition("/")[2]
        ]
    else:
        return ()
    return tuple(dict.fromkeys(id for id in rows if id)) if all(rows) and len(set(rows)) > 1 else ()


def in_groups(plan: Plan) -> Plan:
    """The plan without what is measured in blocks."""
    ids = {id for group in plan.groups for id in group.cells}
    cells = {id: planned.model_copy(update={"blocks": 0}) for id, planned in plan.cells.items() if id in ids}
    known = {
        id: each.model_copy(update={"reference": None}) if each.reference not in ids else each
        for id, each in cells.items()
    }
    return plan.model_copy(update={"cells": known})


def read_rounds(plan: Plan, folder: Path, say: Say) -> dict[str, Round]:
    """The rounds in `folder` that a cell of the plan sat in under its key, by path; a damaged file is told of."""
    wanted = {(id, plan.cells[id].key.id) for group in plan.groups for id in group.cells}
    found: dict[str, Round] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = round_file.read(path)
        except ResultError as error:
            say(f"left out: {error}")
            continue
        if wanted & sat_in(record):
            found[str(path)] = record
    return found
