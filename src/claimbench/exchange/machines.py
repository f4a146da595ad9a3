"""Folders of results of several machines -> one report, a column a machine. Pure.

Nothing is computed across columns: no ratio of one machine over another stands here (`claimbench compare` has those,
with what they do not carry). Each ratio inside a column is of cells that took turns on that machine. Cells share a row
only where everything but the device is the same, and the weights that were loaded are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from claimbench.exchange.compare import EXCLUDED, Side, named_by, settings_that_differ
from claimbench.formatting import count, interval, number
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.cell import Cell
from claimbench.schema.interval import Interval
from claimbench.schema.json_file import digest
from claimbench.schema.measured_elsewhere import MeasuredElsewhere
from claimbench.schema.metrics import METRICS
from claimbench.schema.outcome import Outcome
from claimbench.schema.verdicts import CheckVerdict, ClaimVerdict

NONE = "–"
LIBRARIES = ("torch", "transformers", "vllm", "triton")


class Grid(NamedTuple):
    """A table: what each row is about, and a text for each machine."""

    title: str
    head: str
    rows: list[tuple[str, list[str]]]


class Shown(NamedTuple):
    """One cell as one machine has it."""

    column: int
    cell: Cell
    weights: str | None
    text: str


def columns(sides: Sequence[Side]) -> list[str]:
    """What each machine is called: its device, and where two are called the same, the folder as well."""
    names = [side.folder.verdicts.device_name or side.folder.plan.device for side in sides]
    return [f"{name} ({side.name})" if names.count(name) > 1 else name for name, side in zip(names, sides, strict=True)]


def machines(sides: Sequence[Side]) -> Grid:
    """What each machine is, by which versions, and how much was measured there."""
    rows: list[tuple[str, list[str]]] = [
        ("folder", [side.name for side in sides]),
        ("device", [side.folder.plan.device for side in sides]),
        ("CPU", [_cpu(side) for side in sides]),
        ("GPUs", [_gpus(side) for side in sides]),
        ("machine's key", [str(side.folder.plan.machine["key"]) for side in sides]),
        ("plan", [side.folder.plan.seal[:12] for side in sides]),
        ("measured", [_measured(side) for side in sides]),
    ]
    for name in LIBRARIES:
        if any(name in side.libraries for side in sides):
            rows.append((name, [side.libraries.get(name, NONE) for side in sides]))
    return Grid("Machines", "", rows)


def _cpu(side: Side) -> str:
    cpu, memory = side.folder.plan.machine.get("cpu") or {}, side.folder.plan.machine.get("memory_gb")
    cores = count(cpu["cores"], "core") if "cores" in cpu else "cores unknown"
    return f"{cpu.get('model', 'unknown')}, {cores}{f', {memory} GB' if memory else ''}"


def _gpus(side: Side) -> str:
    names = [str(gpu.get("name")) for gpu in side.folder.plan.machine.get("gpus") or []]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"


def _measured(side: Side) -> str:
    blocks = sum(planned.blocks for planned in side.folder.plan.cells.values())
    rounds = count(len(side.folder.decided.seals), "round") if side.folder.decided else ""
    return ", ".join(filter(None, [rounds, count(blocks, "block") if blocks else ""])) or "nothing"


def ceilings(sides: Sequence[Side]) -> Grid:
    """What each machine can do, as the range over the rounds in which it was read, and alone."""
    found = [_rates(side) for side in sides]
    names = list(dict.fromkeys(name for each in found for name in each))
    return Grid("Ceilings", "limit", [(name, [each.get(name, NONE) for each in found]) for name in names])


def _rates(side: Side) -> dict[str, str]:
    texts = _alone(side.folder.ceilings)
    by_round: dict[str, list[float]] = {}
    for one in side.folder.rounds.values():
        best: dict[str, float] = {}
        for reading in one.rates:
            best |= {name: max(rate, best.get(name, 0.0)) for name, rate in reading.items()}
        for name, rate in best.items():
            by_round.setdefault(name, []).append(rate)
    return texts | {f"{_rate_name(name)}, in rounds": _range(name, rates) for name, rates in by_round.items()}


def _alone(found: Ceilings) -> dict[str, str]:
    rates = {"read": found.read_bytes_per_s, **found.matmul_flops_per_s}
    return {f"{_rate_name(name)}, alone": _range(name, [rate]) for name, rate in rates.items() if rate}


def _rate_name(name: str) -> str:
    return "memory read, GB/s" if name == "read" else f"products in {name}, GFLOP/s"


def _range(name: str, rates: Sequence[float]) -> str:
    """`70.6 to 74.7 (12 rounds)`; billions a second."""
    low, high = min(rates) / 1e9, max(rates) / 1e9
    if len(rates) == 1:
        return number(high)
    return f"{number(low)} to {number(high)} ({count(len(rates), 'round')})"


def claims(sides: Sequence[Side]) -> list[Grid]:
    """For each study a row for each claim; one that was edited, or is about other cells, has a row for each of them."""
    grids: dict[str, dict[tuple[str, str], list[str]]] = {}
    titles: dict[tuple[str, str], str] = {}
    for place, side in enumerate(sides):
        for (study, id), claim in side.claims.items():
            known = grids.setdefault(study, {})
            key = (id, _asks(claim, side))
            is_another = any(other[0] == id for other in known) and key not in known
            titles.setdefault(key, f"{id}. {claim.statement}{f' ({_models(claim, side)})' if is_another else ''}")
            known.setdefault(key, [NONE] * len(sides))[place] = _verdict(claim)
    return [
        Grid(f"Claims of {study}", "claim", [(titles[key], row) for key, row in rows.items()])
        for study, rows in grids.items()
    ]


def _asks(claim: ClaimVerdict, side: Side) -> str:
    """What must be the same of two claims for their verdicts to stand in one row."""
    checks = [(check.kind, check.metric, check.of, check.to, check.expect) for check in claim.checks]
    about = [side.cell(side.rows[address]) for address in named_by(claim, side)]
    return digest([claim.statement, checks, [identity(cell) if cell else None for cell in about]])


def identity(cell: Cell) -> str:
    """A hash of everything about a cell but the device, and how often it is measured."""
    return digest(cell.model_dump(mode="json", exclude=EXCLUDED))


def _models(claim: ClaimVerdict, side: Side) -> str:
    cells = [side.cell(side.rows[address]) for address in named_by(claim, side)]
    return "other cells, of " + ", ".join(dict.fromkeys(cell.checkpoint.name for cell in cells if cell))


def _verdict(claim: ClaimVerdict) -> str:
    numbers = [_check(check) for check in claim.checks if check.estimate is not None]
    return ": ".join([f"**{claim.verdict.value}**", *(["; ".join(numbers)] if numbers else [])])


def _check(check: CheckVerdict) -> str:
    assert check.estimate is not None
    found = Interval(check.estimate, check.low, check.high)
    if check.kind == "ratio":
        return interval(found, "x")
    in_gb = check.metric in METRICS and METRICS[check.metric].unit == "B"
    return f"{interval(found.scaled(1e-9))} GB" if in_gb else interval(found)


def cells(sides: Sequence[Side], metric: str) -> list[Grid]:
    """For each experiment a row for each cell that machines have in common, with `metric` in its own unit."""
    places = list(dict.fromkeys(address for side in sides for address in side.rows))
    grids: dict[str, list[tuple[str, list[str]]]] = {}
    for address in places:
        experiment = address.partition("/")[0]
        shown = [one for place, side in enumerate(sides) for one in _shown(place, side, address, metric)]
        grids.setdefault(experiment, []).extend(_rows(address, shown, sides))
    return [Grid(f"{METRICS[metric].column}: {name}", "cell", rows) for name, rows in grids.items()]


def _shown(place: int, side: Side, address: str, metric: str) -> Iterator[Shown]:
    row = side.rows.get(address)
    cell = side.cell(row) if row else None
    if row is None or cell is None:
        return
    summary = side.summary(row)
    if summary is None:
        text = NONE
    elif summary.outcome != Outcome.OK:
        text = f"{summary.outcome.value}: {summary.reason}"
    else:
        found = summary.metrics.get(metric)
        in_gb = METRICS[metric].unit == "B"
        text = interval(found.interval.scaled(1e-9 if in_gb else 1.0)) if found else NONE
    yield Shown(place, cell, side.weights.get(cell.id), text)


def _rows(address: str, shown: Sequence[Shown], sides: Sequence[Side]) -> Iterator[tuple[str, list[str]]]:
    """One row for the machines that measured the same cell, another for each that measured another."""
    groups: dict[tuple[str, str | None], list[Shown]] = {}
    for one in shown:
        key = identity(one.cell)
        alike = [known for known in groups if known[0] == key and _same(known[1], one.weights)]
        groups.setdefault(alike[0] if alike else (key, one.weights), []).append(one)
    first = shown[0].cell if shown else None
    for (_, weights), members in groups.items():
        texts = [NONE] * len(sides)
        for one in members:
            texts[one.column] = one.text
        yield _titled(address, first, members[0], weights), texts
    lacking = [side.rows[address].unavailable for side in sides if address in side.rows and not side.rows[address].cell]
    if lacking and not shown:
        yield (
            address.partition(": ")[2],
            [f"unavailable: {side.rows[address].unavailable}" if address in side.rows else NONE for side in sides],
        )


def _same(one: str | None, other: str | None) -> bool:
    """Weights that are not known are those that the cell names, which is the same."""
    return one is None or other is None or one == other


def _titled(address: str, first: Cell | None, one: Shown, weights: str | None) -> str:
    name = address.partition(": ")[2]
    if first is None or first is one.cell:
        return name
    said = [f"{key} {value}" for key, _, value in settings_that_differ(first, one.cell)]
    return f"{name}, with {'; '.join(said) if said else f'weights {str(weights)[:12]}'}"


def elsewhere(records: Sequence[MeasuredElsewhere]) -> list[Mapping[str, Any]]:
    """What others measured, by the figures that are near to a metric here."""
    return [
        {
            "tool": f"{record.tool} {record.tool_version or ''}".strip(),
            "model": record.model or NONE,
            "hardware": record.hardware or NONE,
            "figure": f"{one.name}, {one.statistic}",
            "value": f"{number(one.value)} {one.unit}",
            "source": f"{record.source} ({record.source_sha256[:12]})",
        }
        for record in records
        for one in record.figures
        if one.near
    ]
