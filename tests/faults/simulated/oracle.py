"""What the table and the verdicts must be, worked out from what was simulated, in plain Python.

Nothing here is shared with the product but the names of fields, and the quantile of t. The rules are those of the
docstring of analysis/paired.py, written down a second time."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from scipy.special import stdtrit

from claimbench.schema import result as result_file
from claimbench.schema import round as round_file
from claimbench.schema.plan import Plan
from claimbench.schema.round import Round

if TYPE_CHECKING:
    from tests.faults.simulated.world import World

LOOKS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
INFLATION, FLOOR, FREEDOM = 1.3, 0.02, 5.0
TOLERANCE = 0.02
SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "undecided"


def on_disk(world: World) -> list[tuple[str, Round]]:
    """The rounds that are there, in the order in which they were measured, with their files."""
    there = {path: round_file.read(path) for path in sorted((world.root / "results/rounds").glob("*.json"))}
    found = []
    for produced in world.produced:
        paths = [path for path, record in there.items() if record == produced]
        if paths:
            found.append((str(paths[0].relative_to(world.root)), produced))
    assert len(found) == len(there), "a round is there that nobody measured"
    return found


def rows(plan: Plan, world: World) -> Counter[tuple[str, str]]:
    """How many rows the table has of each cell and file."""
    found: Counter[tuple[str, str]] = Counter()
    for id, planned in plan.cells.items():
        for path in planned.paths():
            record = result_file.read(world.root / path)
            found[id, path] += len(record.samples) or 1
    there = on_disk(world)
    alone = {arm.result.cell.id for _, one in there if not one.in_company for arm in one.arms}
    for path, record in there:
        for arm in record.arms:
            if record.in_company and arm.result.outcome == "oom" and arm.result.cell.id in alone:
                continue
            found[arm.result.cell.id, path] += len(arm.result.samples) or 1
    return found


def verdict(plan: Plan, world: World, id: str) -> set[str]:
    """What the verdict on a claim may be."""
    (claim,) = (each for each in plan.studies["study"].study.claims if each.id == id)
    (check,) = claim.checks
    ids = [str(plan.row("study", side).cell) for side in (check.of, getattr(check, "to", None)) if side]
    if not all(ended_well(plan, world, each) for each in ids) and check.kind != "outcome":
        return {"not runnable here"}
    if check.kind == "identity":
        same = len({str(plan.cells[each].cell.options.get("token", 1)) for each in ids}) == 1
        return {SUPPORTED if same else REFUTED}
    if check.kind == "outcome":
        return of_outcome(plan, world, ids[0], check.expect)
    if plan.cells[ids[0]].blocks:
        return of_blocks(plan, world, ids, check.expect)
    return of_rounds(plan, world, ids, check.expect)


def endings(plan: Plan, world: World, id: str) -> list[str]:
    found = [str(result_file.read(world.root / path).outcome) for path in plan.cells[id].paths()]
    there = on_disk(world)
    alone = any(arm.result.cell.id == id for _, one in there if not one.in_company for arm in one.arms)
    for _, record in there:
        own = [str(arm.result.outcome) for arm in record.arms if arm.result.cell.id == id]
        found += [each for each in own if not (each == "oom" and record.in_company and alone)]
    return found


def ended_well(plan: Plan, world: World, id: str) -> bool:
    return "ok" in endings(plan, world, id)


def of_outcome(plan: Plan, world: World, id: str, expected: str) -> set[str]:
    outcomes = set(endings(plan, world, id))
    if len(outcomes) > 1:
        return {UNDECIDED}
    if outcomes == {expected}:
        return {SUPPORTED}
    return {"not runnable here"} if outcomes <= {"unavailable", "timeout", "error"} else {REFUTED}


def truth(plan: Plan, world: World, ids: list[str], expected: str) -> str:
    """Of a ratio of speeds, by the paces that the study does not know."""
    of, to = (world.truth.step_ms(plan.cells[id].cell) for id in ids)
    return SUPPORTED if (to / of < 1 - TOLERANCE) == (expected == "below") else REFUTED


def of_blocks(plan: Plan, world: World, ids: list[str], expected: str) -> set[str]:
    """Where both of a pair of blocks ended well it is the truth; the noise is a hundredth of what is claimed."""
    pairs = [[result_file.read(world.root / path).outcome == "ok" for path in plan.cells[id].paths()] for id in ids]
    common = sum(all(each) for each in zip(*pairs, strict=True))
    return {truth(plan, world, ids, expected)} if common >= 2 else {UNDECIDED}


def of_rounds(plan: Plan, world: World, ids: list[str], expected: str) -> set[str]:
    rounds = [found for _, record in on_disk(world) if (found := logs_of(record, ids))]
    low, high = (-math.inf, math.log(1 - TOLERANCE)) if expected == "below" else (math.log(1 + TOLERANCE), math.inf)
    for count in sorted({look for look in LOOKS if look < len(rounds)} | ({len(rounds)} if rounds else set())):
        left, right = interval(rounds[:count])
        if low <= left and right <= high:
            assert truth(plan, world, ids, expected) == SUPPORTED, "a chance of a millionth, or a wrong rule"
            return {SUPPORTED}
        if right < low or left > high:
            assert truth(plan, world, ids, expected) == REFUTED, "a chance of a millionth, or a wrong rule"
            return {REFUTED}
    return {UNDECIDED, "bounded"}


def logs_of(record: Round, ids: list[str]) -> tuple[list[float], float] | None:
    """The logarithm of the ratio at each pass, and the weight of the round; None: it has no say."""
    weight = weight_of(record)
    sides = [speeds(record, id) for id in ids]
    passes = sorted(set(sides[0]) & set(sides[1]))
    if not passes or not weight:
        return None
    return [math.log(sides[0][number] / sides[1][number]) for number in passes], weight


def weight_of(record: Round) -> float:
    foreign, slept = record.conditions["foreign_cpu"], record.conditions["slept_s"]
    if foreign > 0.5 or slept > 1:
        return 0.0
    return 0.5 if foreign > 0.15 else 1.0


def speeds(record: Round, id: str) -> dict[int, float]:
    """The mean speed of a cell, its twin's among them, at each pass."""
    found: dict[int, list[float]] = {}
    for arm in record.arms:
        if arm.result.cell.id == id and arm.result.outcome == "ok":
            for number, sample in enumerate(arm.result.samples):
                found.setdefault(number, []).append((len(sample.step_ns) - 1) / sum(sample.step_ns[1:]))
    return {number: sum(values) / len(values) for number, values in found.items()}


def interval(rounds: list[Any]) -> tuple[float, float]:
    """Of the contrast over rounds, at the look after them."""
    if len(rounds) < 2:
        return -math.inf, math.inf
    places = [trimmed(logs) for logs, _ in rounds]
    weights = [weight for _, weight in rounds]
    total, mean_weight = sum(weights), sum(weights) / len(weights)
    centre = sum(weight * place for weight, (place, _) in zip(weights, places, strict=True)) / total
    between = (
        sum(weight * (place - centre) ** 2 for weight, (place, _) in zip(weights, places, strict=True)) / mean_weight
    )
    explained = sum(weight * variance for weight, (_, variance) in zip(weights, places, strict=True)) / total
    told = min(FREEDOM, sum(len(logs) - 1 for logs, _ in rounds))
    within = INFLATION * explained
    known = within + FLOOR**2
    known_freedom = known**2 / (within**2 / told + FLOOR**4 / FREEDOM)
    freedom = known_freedom + len(rounds) - 1
    variance = (known_freedom * known + between) / freedom
    error = math.sqrt(variance * sum(weight**2 for weight in weights)) / total
    look = 1 + sum(1 for each in LOOKS if each < len(rounds))
    half = float(stdtrit(freedom, 1 - 0.05 / 2**look / 2)) * error
    return centre - half, centre + half


def trimmed(logs: list[float]) -> tuple[float, float]:
    """Mean without the fifth at either end, and its variance by Winsorised values."""
    ordered = sorted(logs)
    cut = int(0.2 * len(ordered))
    kept = ordered[cut : len(ordered) - cut]
    pulled = [min(max(value, kept[0]), kept[-1]) for value in ordered]
    mean = sum(pulled) / len(pulled)
    return sum(kept) / len(kept), sum((value - mean) ** 2 for value in pulled) / (len(kept) * (len(kept) - 1))
