"""Measures a plan's groups in rounds: first what every comparison needs, then what is still undecided.

1. Every cell of a group sits with the group's base once, group after group, and then again until no verdict lacks a
   round: compiled and quantised cells, which differ more from process to process, need one more. Cells that no claim
   names and that take long, such as a server's start, wait for step 3. What is there counts: whoever raises the budget
   adds rounds, and a cell whose code changed sits again with its base alone.
2. What is left of the budget goes to undecided claims, one round at a time: to the group of the one that should be
   settled soonest, and in it only to the cells of undecided claims and their base. Claims that the budget will hardly
   settle wait for the next step.
3. Who waited sits with its group's base, and cells with what they would replace in "what to switch on", in as many
   rounds as an interval needs: whatever takes least time first.
4. What is left then goes to the claims that are undecided still.

The first rounds have few passes. From then on a cell gets as many as should settle its claims, from `FEWEST` to `MOST`,
as far as the budget goes: who is far from every limit makes room for who is near one. Where one round cannot settle a
claim it gets as many as narrow its interval most for their time. How many is fixed before a round.

A round is a sealed file as soon as it is over, so whoever is killed loses one. A verdict is judged at the first look
that settles it (analysis/paired.py), so later rounds of other claims do not undo it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from claimbench import backends
from claimbench.analysis import comparing, validity
from claimbench.analysis.paired import RESTLESS, STEADY
from claimbench.analysis.protocol import protocol_of
from claimbench.deciding.advised import groups_of_advice
from claimbench.deciding.progress import Progress, Undecided, progress_of
from claimbench.deciding.round_files import Say, next_path, read_rounds, sat_in
from claimbench.formatting import count, duration
from claimbench.measuring.arm import ArmRequest
from claimbench.measuring.block_request import BlockRequest
from claimbench.measuring.round_process import RoundRequest
from claimbench.measuring.rounds import RoundServer
from claimbench.planning.groups import comparisons, memory_of, named_in_claims, sits_with_the_base_alone, that_fit
from claimbench.planning.paths import CHECKPOINTS, ENVIRONMENTS, folder_of, labels
from claimbench.schema import round as round_file
from claimbench.schema.cell import Checkpoint
from claimbench.schema.json_file import digest
from claimbench.schema.outcome import FITS, Outcome
from claimbench.schema.plan import Plan, PlannedGroup
from claimbench.schema.round import TWIN, Round

MOST_ROUNDS = max(STEADY.least, RESTLESS.least)
"""That any interval needs."""
FIRST_SHARE = 0.2
"""Of the budget, for the turns of the first round of every group."""
FIRST_PASSES = 4
CHEAP_SHARE = 0.02
"""Of the budget, for a round of a cell that no claim names: who takes longer waits for the claims."""
FEWEST, MOST = 2, 4
"""Passes of a round. What no number of them explains is about as large as the spread of a pass (paired.STEADY), and a
start takes about as long as a pass: whoever needs more is settled sooner by another round."""
SPARE = 1.5
"""Passes asked for, over those that should settle a claim: that number is an estimate itself."""
TURNS_S = 60.0
"""For the turns of one round beyond the first ones: another round tells more than another minute of the same."""

RESTLESS_CPU = 0.1
"""Of a core. A server that polls, say, takes time from whoever has the turn."""

SLOWER = 1.1
"""Than the last round, in which a shared machine may have been faster: a budget is a limit."""


class Decider:
    """A plan's rounds: those that are there, and the next one."""

    def __init__(self, plan: Plan, folder: Path, say: Say) -> None:
        self.plan, self.folder, self.say = plan, folder, say
        self.rounds = read_rounds(plan, folder, say)
        self.names = labels(plan)
        self.compared = [sides for planned in plan.studies.values() for sides in comparisons(planned)]
        self.claimed = {id for planned in plan.studies.values() for id in named_in_claims(planned)}
        self.protocol = protocol_of(plan)
        self.memory = memory_of(plan)
        self.begun = time.monotonic()
        self.server = RoundServer()

    @property
    def left_s(self) -> float:
        """Of the budget. What another study measures meanwhile on the same device is not spent."""
        return self.plan.budget_minutes * 60 - (time.monotonic() - self.begun - self.server.waited_s)

    def run(self) -> None:
        """Measure until all is decided or the budget is spent; each group's first round comes in any case."""
        with self.server:
            for depth in range(1, MOST_ROUNDS + 1):
                self.sit_all(depth)
            while self.go_on(self.progress(), in_time=True):
                pass
            self.complete()
            while self.go_on(self.progress()):
                pass

    def sit_all(self, depth: int) -> None:
        """See to it that cells have sat with their base `depth` times, or as often as their verdicts need.

        Every cell has its first round; cells that no claim names have the others here if they are cheap.
        """
        waiting = [(group, part) for group in self.plan.groups for part in self.lacking(group, depth)]
        arms = sum(len(part) + 1 for _, part in waiting)
        for number, (group, part) in enumerate(waiting):
            if depth == 1:
                share = FIRST_SHARE * self.plan.budget_minutes * 60 * (len(part) + 1) / arms
                self.measure(group, [*part, *self.unseen(group)], {}, FIRST_PASSES, share)
                continue
            progress = self.progress()
            reserved = sum(self.expected_s(cells, FEWEST) for _, cells in waiting[number + 1 :]) + self.later_s(depth)
            least_s = self.expected_s(part, FEWEST)
            spare_s = self.left_s - least_s - reserved
            if self.left_s < least_s:
                self.say(f"left out for lack of time: round {depth} of {group.title}")
                continue
            turns = self.turns(part, progress)
            turns_s = self.turns_s(part, FEWEST) + max(0.0, spare_s) / (len(waiting) - number)
            self.measure(group, part, turns, max(turns.values()), turns_s, progress)

    def later_s(self, depth: int) -> float:
        """What the rounds take that verdicts need beyond `depth`."""
        found = 0.0
        for later in range(depth + 1, MOST_ROUNDS + 1):
            for group in self.plan.groups:
                sides = [each for each in self.sides_in(group, self.asked(group)) if self.least(*each) >= later]
                ids = {id for each in sides for id in each} - {group.base}
                found += self.expected_s([group.base, *ids], FEWEST) if ids else 0.0
        return found

    def sides_in(self, group: PlannedGroup, ids: Container[str]) -> list[tuple[str, ...]]:
        """What is compared in a group: each cell of `ids` with the base, and the sides of every claim."""
        compared: list[tuple[str, ...]] = [(id, group.base) for id in group.cells if id in ids and id != group.base]
        return compared + [sides for sides in self.compared if set(sides) <= set(group.cells)]

    def asked(self, group: PlannedGroup) -> set[str]:
        """Its cells that claims name, and those that cost them little."""
        limit_s = CHEAP_SHARE * 60 * self.plan.budget_minutes
        return {id for id in group.cells if id in self.claimed or self.cost_s(id) <= limit_s}

    def cost_s(self, id: str) -> float:
        """What a round takes for this cell."""
        return self.seat_s(id) + FEWEST * self.turn_s(id)

    def lacking(self, group: PlannedGroup, depth: int) -> list[list[str]]:
        """Cells of a group that have not sat with what they are compared with often enough, in parts that fit."""
        compared = self.sides_in(group, group.cells if depth == 1 else self.asked(group))
        wanted = {id for sides in compared if self.together(*sides) < min(depth, self.least(*sides)) for id in sides}
        arms = [id for id in group.cells if id in wanted and id != group.base]
        return self.fitting(arms, group.base) if arms else []

    def unseen(self, group: PlannedGroup) -> list[str]:
        """Its witnesses that have not sat yet."""
        return [id for id in group.witnesses if not self.together(id)]

    def least(self, *ids: str) -> int:
        """Rounds that a verdict about these cells needs; of what is unavailable or wrong, one is enough."""
        if not all(map(self.is_worth_more, ids)):
            return 1
        return comparing.prior_of([self.plan.cells[id].cell for id in ids]).least

    def go_on(self, progress: Progress, in_time: bool = False) -> bool:
        """Measure one more round for what is undecided; False where nothing is, or no round fits in the budget.

        `in_time`: only for what the budget should settle.
        """
        chosen = self.choose(progress, self.left_s if in_time else math.inf)
        if chosen is None:
            return False
        group, arms = chosen
        return all(
            self.sit(group, part, self.turns(part, progress), progress) for part in self.fitting(arms, group.base)
        )

    def sit(self, group: PlannedGroup, part: Sequence[str], turns: Mapping[str, int], progress: Progress) -> bool:
        """Measure a round of cells of a group; False where it does not fit in what is left of the budget."""
        least_s = self.expected_s(part, FEWEST)
        if self.left_s < least_s:
            return False
        free_s = self.left_s - least_s + self.turns_s(part, FEWEST)
        self.measure(group, part, turns, max(turns.values()), min(TURNS_S, free_s), progress)
        return True

    def choose(self, progress: Progress, within_s: float) -> tuple[PlannedGroup, list[str]] | None:
        """The group of the check that should be settled soonest, and the cells to sit with its base.

        None where nothing is undecided that should be settled `within_s` seconds.
        """

        def soonness(check: Undecided) -> tuple[float, int]:
            minutes = check.needed.minutes if check.needed else None
            return math.inf if minutes is None else minutes, self.together(*check.cells)

        for check in sorted(progress.undecided, key=soonness):
            group = next((each for each in self.plan.groups if set(check.cells) <= set(each.cells)), None)
            if group is None or not all(map(self.is_worth_more, check.cells)):
                continue
            if soonness(check)[0] * 60 > within_s:
                return None
            within = [one for one in progress.about(group.cells) if soonness(one)[0] * 60 <= self.left_s] or [check]
            wanted = {id for one in within for id in one.cells}
            arms = [id for id in group.cells if id in wanted and id != group.base]
            return group, arms or [id for id in group.cells if id != group.base][:1]
        return None

    def complete(self) -> None:
        """Seat cells with their base, and with what they would replace, as often as an interval needs."""
        groups = [*self.plan.groups, *groups_of_advice(self.plan, self.is_worth_more)]
        for group in sorted(filter(self.rest_s, groups), key=self.rest_s):
            fitting = self.that_fits_in_time(group)
            for _ in range(MOST_ROUNDS):
                for part in self.incomplete(fitting, rounds=1):
                    if not self.sit(fitting, part, dict.fromkeys(part, MOST), self.progress()):
                        return

    def that_fits_in_time(self, group: PlannedGroup) -> PlannedGroup:
        """The base and its incomplete cells, without the dearest ones whose rounds do not fit in what is left."""
        kept = [id for part in self.incomplete(group, rounds=1) for id in part[1:]]
        kept.sort(key=self.cost_s)
        left_out: list[str] = []
        while kept and self.rest_s(group.model_copy(update={"cells": (group.base, *kept)})) > self.left_s:
            left_out.append(kept.pop())
        if left_out:
            names = ", ".join(self.names.get(id, id) for id in left_out)
            self.say(f"left out for lack of time: {names} ({group.title})")
        return group.model_copy(update={"cells": (group.base, *kept)})

    def rest_s(self, group: PlannedGroup) -> float:
        """What the rounds take that its cells lack beside its base."""
        parts = (part for rounds in range(1, MOST_ROUNDS + 1) for part in self.incomplete(group, rounds))
        return sum(self.expected_s(part, FEWEST) for part in parts)

    def incomplete(self, group: PlannedGroup, rounds: int) -> list[list[str]]:
        """Cells that lack so many rounds with the group's base for an interval, or more, in parts that fit."""
        base, others = group.base, [id for id in group.cells if id != group.base]
        return self.fitting([id for id in others if self.least(id, base) - self.together(id, base) >= rounds], base)

    @property
    def may_sit_beside(self) -> bool:
        """Whether others may measure on other GPUs meanwhile: not once a cell differed from itself beside them."""
        allowed = self.plan.params.measure.side_by_side
        return allowed and not any(map(validity.was_disturbed_beside, self.rounds.values()))

    def turns(self, ids: Sequence[str], progress: Progress) -> dict[str, int]:
        """For each cell the passes that should settle the claims about `ids`, or that are worth their time."""
        found = dict.fromkeys(ids, FEWEST)
        for check in progress.about(ids):
            settling = SPARE * check.needed.passes if check.needed and check.needed.passes else math.inf
            passes = math.ceil(settling) if settling <= MOST else round(self.passes_worth(check))
            for id in check.cells:
                found[id] = max(found[id], min(MOST, passes))
        return found

    def passes_worth(self, check: Undecided) -> float:
        """How many passes of a round narrow the interval most for their time, starts included."""
        start_s, pass_s = (sum(map(each, check.cells)) for each in (self.seat_s, self.turn_s))
        if check.needed is None or not pass_s:
            return MOST
        return check.needed.pass_to_round_sd * math.sqrt(start_s / pass_s)

    def is_worth_more(self, id: str) -> bool:
        """Whether another round could tell anything new: what is unavailable or wrong stays so."""
        arms = self.arms_of(id)
        return not arms or self.is_due(id) or any(arm.result.outcome == Outcome.OK for arm in arms)

    def is_due(self, id: str) -> bool:
        """Whether it failed in passing, and has another try."""
        return round_file.is_another_try_due(self.arms_of(id))

    def arms_of(self, id: str) -> list[round_file.Arm]:
        key = self.plan.cells[id].key
        named = (arm for one in self.rounds.values() for arm in one.arms if arm.name != TWIN)
        return [arm for arm in named if arm.result.cell.id == id and arm.result.key == key]

    def together(self, *ids: str) -> int:
        """Rounds that all of `ids` sat in, under the keys of the plan, and that no rule of validity voids."""
        if any(map(self.is_due, ids)):
            return 0
        wanted = {(id, self.plan.cells[id].key.id) for id in ids}
        return sum(wanted <= sat_in(one) for one in self.rounds.values() if validity.weight(validity.of_round(one)))

    def fitting(self, arms: Sequence[str], base: str) -> list[list[str]]:
        """`arms` in parts that fit in memory beside `base`, which is the first of each.

        Who does not fit beside it, or ran out of memory in company, sits with the base alone.
        """
        pairs = [[base, id] for id in arms if id != base and self.is_crowded(id, base)]
        others = [id for id in arms if [base, id] not in pairs]
        return [*(that_fit(others, base, self.plan.cells, self.memory) if others else []), *pairs]

    def is_crowded(self, id: str, base: str) -> bool:
        """Whether the two are measured back to back, each with the machine to itself.

        Who lacked memory in company is, and who computed there while others had their turn.
        """
        arms = [arm for one in self.rounds.values() if one.in_company for arm in one.arms]
        alone = {arm.result.cell.id for arm in arms if arm.result.outcome == Outcome.OOM}
        alone |= {arm.result.cell.id for arm in arms if arm.waiting_cpu > RESTLESS_CPU}
        return bool(alone & {id, base}) or sits_with_the_base_alone(id, base, self.plan.cells, self.memory)

    def expected_s(self, ids: Sequence[str], passes: int) -> float:
        """What a round of `ids`, the first of them twice, takes at most, by the last that each sat in."""
        return SLOWER * (sum(self.seat_s(id) for id in (ids[0], *ids)) + self.turns_s(ids, passes))

    def turns_s(self, ids: Sequence[str], passes: int) -> float:
        return passes * sum(self.turn_s(id) for id in (ids[0], *ids))

    def seat_s(self, id: str) -> float:
        """Until it is ready to generate."""
        return next((arm.ready_s for arm in reversed(self.arms_of(id)) if arm.turns), 0.0)

    def generation_s(self, id: str) -> float | None:
        """The median of its last round; None: it has not sat yet."""
        last = next((arm for arm in reversed(self.arms_of(id)) if arm.turns), None)
        return statistics.median(one.wall_ns for one in last.result.samples) / 1e9 if last else None

    def turn_s(self, id: str) -> float:
        last = next((arm for arm in reversed(self.arms_of(id)) if arm.turns), None)
        return sum(one.wall_ns for one in last.result.samples) / 1e9 / len(last.turns) if last else 0.0

    def measure(
        self,
        group: PlannedGroup,
        ids: Sequence[str],
        turns: Mapping[str, int],
        passes: int,
        turns_s: float,
        progress: Progress | None = None,
    ) -> None:
        """Measure a round of `ids`; who is not in `turns` has one in every pass."""
        self.server.side_by_side = self.may_sit_beside
        earlier = sum(set(ids) <= {arm.result.cell.id for arm in one.arms} for one in self.rounds.values())
        claims = list(dict.fromkeys(check.claim for check in progress.about(ids))) if progress else []
        so_far = f"{progress.text}, " if progress else ""
        left = f"{duration(max(0.0, self.left_s))} left"
        what = f"{', '.join(claims)} ({group.title})" if claims else group.title
        self.say(f"{so_far}{left}, now: {what}, {count(len(ids), 'cell')}")
        wanted = {**turns, **dict.fromkeys(group.witnesses, 1)}
        wanted.pop(group.base, None)
        shown = set(group.cells)
        arms = [
            self.request(id, self.names.get(id, id), wanted.get(id), proves=id in shown, is_base=id == group.base)
            for id in ids
        ]
        arms.append(self.request(group.base, TWIN, proves=False))
        request = RoundRequest(
            arms=tuple(arms),
            passes=passes,
            fewest=FEWEST,
            spares_slow=not turns,
            in_company=not any(self.is_crowded(id, group.base) for id in ids if id in shown - {group.base}),
            turns_s=max(turns_s, 1e-3),
            seed=int(digest([group.title, *ids, earlier, self.plan.params.measure.seed], 8), 16),
            number=earlier,
            group=group.title,
            protocol=self.protocol,
        )
        path = next_path(self.folder)
        record = self.server.measure(request, path)
        self.rounds[str(path)] = record
        self.tell(record)
        for arm in record.arms:
            id = arm.result.cell.id
            if record.in_company and arm.result.outcome == Outcome.OOM and id != group.base:
                self.measure(group, [group.base, id], {}, FEWEST, turns_s)  # it may lack what it has alone

    def request(
        self, id: str, name: str, turns: int | None = None, proves: bool = True, is_base: bool = False
    ) -> ArmRequest:
        """An arm. What a first call costs is compared with that of the base, which is timed once."""
        planned = self.plan.cells[id]
        proven = any(arm.result.proof for arm in self.arms_of(id))
        reference = self.plan.cells[planned.reference].cell if planned.reference not in (None, id) else None
        backend, environment = backends.find(planned.cell.backend), backends.find(planned.cell.backend).ENVIRONMENT
        is_cut = bool(planned.cell.checkpoint.tensor_parallel)
        block = BlockRequest(
            cell=planned.cell,
            checkpoint=self.checkpoint(planned.cell.checkpoint) if backend.LIBRARIES else None,
            draft=self.checkpoint(planned.cell.draft) if planned.cell.draft else None,
            reference=reference,
            reference_checkpoint=self.checkpoint(reference.checkpoint) if is_cut and reference else None,
        )
        return ArmRequest(
            name=name,
            block=block,
            key=planned.key,
            proves=proves and not proven,
            times_first_call=is_base and not proven,
            turns=turns,
            ready_s=self.seat_s(id) or None,
            generation_s=self.generation_s(id),
            python=None if environment == "core" else str(ENVIRONMENTS / environment / "bin" / "python"),
        )

    def checkpoint(self, of: Checkpoint) -> Path:
        return CHECKPOINTS / folder_of(self.plan, of)

    def progress(self, is_over: bool = False) -> Progress:
        return progress_of(self.plan, self.rounds, is_over)

    def tell(self, record: Round) -> None:
        ended = [f"{arm.name} {arm.result.outcome}: {arm.result.reason}" for arm in record.arms if is_odd(arm)]
        doubts = validity.sentences(validity.of_round(record))
        timed = f"{record.timed_s / record.duration_s:.0%} of it inside timed generations"
        for line in [f"{duration(record.duration_s)}, passes: {record.passes}, {timed}", *doubts, *ended]:
            self.say(f"    {line}")


def is_odd(arm: round_file.Arm) -> bool:
    return arm.result.outcome not in FITS or arm.result.outcome == Outcome.WRONG
