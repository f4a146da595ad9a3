"""Which cells sit together in rounds: those of one experiment, and those that one claim compares across experiments.

What must be alone is measured in blocks, such as a load from a cold page cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from claimbench.planning.cell_cost import peak_bytes
from claimbench.schema.cell import Cell
from claimbench.schema.checks import SIDES, Check, GainCheck, RatioCheck, ShapeCheck
from claimbench.schema.metrics import METRICS
from claimbench.schema.plan import Plan, PlannedCell, PlannedGroup, PlannedStudy

MEMORY_SHARE = 0.7
"""Of the memory that is there, which the arms of a round may take together by their forecasts."""


def takes_turns(cell: Cell) -> bool:
    return cell.protocol.takes_turns


def groups_of(studies: Mapping[str, PlannedStudy], cells: Mapping[str, PlannedCell]) -> tuple[PlannedGroup, ...]:
    """A group for each experiment with two cells or more that take turns, and for each claim beyond experiments.

    An experiment that searches for the largest batch that fits has none: each of its cells is measured alone. What a
    claim compares of it sits all the same.
    """
    groups: list[PlannedGroup] = []
    for study, planned in studies.items():
        compared = list(comparisons(planned))
        for experiment, rows in planned.rows.items():
            ids = list(dict.fromkeys(row.cell for row in rows.values() if row.cell))
            members = tuple(id for id in ids if takes_turns(cells[id].cell))
            if len(members) > 1 and not planned.study.experiments[experiment].frontier:
                base = _base(members, compared)
                groups.append(PlannedGroup(title=f"{study}: {experiment}", cells=members, base=base))
        for sides in compared:
            members = tuple(dict.fromkeys(id for id in sides if takes_turns(cells[id].cell)))
            if len(members) == len(set(sides)) > 1 and not any(set(members) <= set(group.cells) for group in groups):
                groups.append(PlannedGroup(title=f"{study}: across experiments", cells=members, base=members[-1]))
    return tuple(_with_witnesses(groups, cells))


def _with_witnesses(groups: Sequence[PlannedGroup], cells: Mapping[str, PlannedCell]) -> Iterator[PlannedGroup]:
    """Each reference that sits nowhere yet gets a seat in the first group that is compared with its tokens."""
    seated = {id for group in groups for id in group.cells}
    for group in groups:
        references = dict.fromkeys(cells[id].reference for id in group.cells)
        own = tuple(id for id in references if id and id not in seated and takes_turns(cells[id].cell))
        seated.update(own)
        yield group.model_copy(update={"witnesses": own})


def comparisons(planned: PlannedStudy, of_start: bool = False) -> Iterator[tuple[str, ...]]:
    """The cells that each check of a claim compares; `of_start`: by how a process starts, which no round shows."""
    for claim in planned.study.claims:
        for check in claim.checks:
            cells = compared_by(check, planned, of_start)
            if cells:
                yield cells


def named_in_claims(planned: PlannedStudy) -> set[str]:
    """Every cell that a check names, whatever it asks of it."""
    return {id for claim in planned.study.claims for check in claim.checks for id in cells_named(check, planned)}


def compared_by(check: Check, planned: PlannedStudy, of_start: bool = False) -> tuple[str, ...]:
    """The cells that a check compares by a ratio or a curve; the last of a ratio is what it is compared with.

    None for other kinds, where a side cannot run, and where there is only one.
    """
    if not isinstance(check, RatioCheck | GainCheck | ShapeCheck) or METRICS[check.metric].is_of_start != of_start:
        return ()
    found = cells_named(check, planned)
    return found if len(set(found)) > 1 else ()


def cells_named(check: Check, planned: PlannedStudy) -> tuple[str, ...]:
    """Every cell that a check names; none where a side cannot run. Points that a curve lacks are left out."""
    addresses = [address for side in SIDES if (address := getattr(check, side, None))]
    if isinstance(check, ShapeCheck):
        curves = [address.partition("/")[::2] for address in addresses]
        rows = [row for name, label in curves for row in planned.rows[name].values() if row.label == label and row.cell]
        return tuple(row.cell for row in rows if row.cell)
    named = [address.partition("/")[::2] for address in addresses]
    sides = [planned.rows.get(experiment, {}).get(rest) for experiment, rest in named]
    return tuple(row.cell for row in sides if row and row.cell) if all(row and row.cell for row in sides) else ()


def _base(members: Sequence[str], compared: Sequence[tuple[str, ...]]) -> str:
    """What most claims compare with, or the first cell."""
    counts = Counter(sides[-1] for sides in compared if sides[-1] in members)
    return counts.most_common(1)[0][0] if counts else members[0]


def that_fit(members: Sequence[str], base: str, cells: Mapping[str, PlannedCell], memory: float) -> list[list[str]]:
    """`members` in parts that fit in memory with the base, which is in each, and once more as its twin.

    A part has two cells at least, whatever they take. `memory` 0 is not known, and taken for enough.
    """
    limit = MEMORY_SHARE * (memory or float("inf")) - 2 * peak_bytes(cells[base].cell)
    parts: list[list[str]] = []
    left = limit
    for id in members:
        if id == base:
            continue
        size = peak_bytes(cells[id].cell)
        if not parts or size > left:
            parts.append([base])
            left = limit
        parts[-1].append(id)
        left -= size
    return parts


def sits_with_the_base_alone(id: str, base: str, cells: Mapping[str, PlannedCell], memory: float) -> bool:
    """Whether the two, and the base's twin, do not fit in memory together: then each is measured by itself."""
    together = 2 * peak_bytes(cells[base].cell) + peak_bytes(cells[id].cell)
    return together > MEMORY_SHARE * (memory or float("inf"))


def peak_of(group: PlannedGroup, cells: Mapping[str, PlannedCell], memory: float) -> tuple[float, str]:
    """The most bytes that are held at a time in rounds of the group, and the largest cell that is loaded then."""
    base, others = group.base, [id for id in group.everyone if id != group.base]
    alone = [id for id in others if sits_with_the_base_alone(id, base, cells, memory)]
    parts = that_fit([id for id in others if id not in alone], base, cells, memory)
    loaded = [*([id] for id in (base, *alone)), *([base, *part] for part in parts)]
    sizes = {id: peak_bytes(cells[id].cell) for id in group.everyone}
    most = max(loaded, key=lambda ids: sum(sizes[id] for id in ids))
    return sum(sizes[id] for id in most), max(most, key=lambda id: sizes[id])


def memory_of(plan: Plan) -> float:
    """Bytes, of the machine or of its smallest GPU; 0: not known."""
    if plan.device == "cpu":
        return float(plan.machine.get("memory_gb") or 0) * 1e9
    return float(min((gpu.get("memory_bytes") or 0 for gpu in plan.machine.get("gpus") or []), default=0))
