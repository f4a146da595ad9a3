"""Who is to sit together so that a report can say what to switch on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from claimbench.judging.recommend import compared_with
from claimbench.schema.plan import Plan, PlannedGroup


def groups_of_advice(plan: Plan, is_worth_more: Callable[[str], bool]) -> Iterator[PlannedGroup]:
    """Cells of each group with what they would replace, which is another cell than the group's base or of no group.

    `is_worth_more` says of an id whether another round could tell anything new. What takes no turns has no seat.
    """
    seated = {id for group in plan.groups for id in group.everyone if is_worth_more(id)}
    for group in plan.groups:
        by_other: dict[str, list[str]] = {}
        for id in group.cells:
            for other in compared_with(plan, id):
                if {id, other} <= seated and other != group.base:
                    by_other.setdefault(other, []).append(id)
        for other, ids in by_other.items():
            yield PlannedGroup(title=f"what to switch on ({group.title})", cells=(other, *ids), base=other)
