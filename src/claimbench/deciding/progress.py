"""How the claims of a plan stand after the rounds that were measured, and what is undecided still."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple

from claimbench.analysis import aggregate
from claimbench.judging.evidence import Evidence
from claimbench.judging.judge import check_of
from claimbench.planning.groups import cells_named, compared_by
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.metrics import METRICS
from claimbench.schema.plan import Plan
from claimbench.schema.round import Round
from claimbench.schema.verdicts import Needed, Verdict


class Undecided(NamedTuple):
    """A check that no look has settled."""

    claim: str
    cells: tuple[str, ...]
    needed: Needed | None


class Progress(NamedTuple):
    """Of the claims that rounds can settle."""

    claims: int
    undecided: tuple[Undecided, ...]

    @property
    def text(self) -> str:
        """`12 of 16 claims decided`."""
        return f"{self.claims - len({each.claim for each in self.undecided})} of {self.claims} claims decided"

    def about(self, ids: Container[str]) -> list[Undecided]:
        """The undecided checks that compare nothing but `ids`."""
        return [check for check in self.undecided if all(id in ids for id in check.cells)]


def progress_of(plan: Plan, rounds: Mapping[str, Round], is_over: bool = False) -> Progress:
    """How the claims stand that rounds can settle, by the looks that were planned, and at the end by the last.

    A claim that one check refutes is settled, whatever its other checks say.
    """
    table = aggregate.aggregate(in_groups(plan), Ceilings(), rounds=rounds)
    evidence = Evidence(plan, table, plan.params.measure.tolerance, only_planned_looks=not is_over)
    claims, undecided = set(), list[Undecided]()
    for study, planned in plan.studies.items():
        for claim in planned.study.claims:
            named = [(check, cells_named(check, planned)) for check in claim.checks]
            known = [check for check, ids in named if ids and all(id in evidence.frames for id in ids)]
            if not known:
                continue
            claims.add((study, claim.id))
            found = [(compared_by(check, planned), check_of(claim, check, study, evidence)) for check in known]
            if any(check.verdict == Verdict.REFUTED and not is_of_start(check.metric) for _, check in found):
                continue
            undecided += [
                Undecided(claim.id, cells, check.needed)
                for cells, check in found
                if cells and check.verdict in (Verdict.UNDECIDED, Verdict.BOUNDED)
            ]
    return Progress(len(claims), tuple(undecided))


def is_of_start(metric: str | None) -> bool:
    """Whether blocks have a say in it as well, which are measured after the rounds."""
    return metric is not None and METRICS[metric].is_of_start


def in_groups(plan: Plan) -> Plan:
    """The plan without what is measured in blocks."""
    ids = {id for group in plan.groups for id in group.everyone}
    cells = {id: planned.model_copy(update={"blocks": 0}) for id, planned in plan.cells.items() if id in ids}
    known = {
        id: each.model_copy(update={"reference": None}) if each.reference not in ids else each
        for id, each in cells.items()
    }
    return plan.model_copy(update={"cells": known})
