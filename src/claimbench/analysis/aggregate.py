"""Every result of a plan -> one tidy table: a row per cell, block and sample. Nothing is averaged here.

A block that did not end well has one row, with its outcome and no metrics. A result that does not belong to the plan,
is missing, or was edited is an error: a table never mixes in a number whose settings are not those it is shown under.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from claimbench import optimizations
from claimbench.analysis import derive, roofline, validity
from claimbench.errors import ResultError
from claimbench.schema import result
from claimbench.schema.ceilings import Ceilings, as_read, best_of, of_rates
from claimbench.schema.cell import Cell, row_lengths
from claimbench.schema.metrics import METRICS
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Plan, PlannedCell
from claimbench.schema.result import Result, Sample
from claimbench.schema.round import Arm, Round

ABOVE_CEILING = 1.05
"""Fraction of a physical limit beyond which the number or the limit must be wrong; 5 % is left to the limit's noise."""

SETTINGS = ("backend", "checkpoint", "dtype", "batch", "new_tokens", "device")
COLUMNS = (
    *("cell", "block", "sample", "outcome", "reason", "flags", "path", *SETTINGS, "prompt_tokens", "tokens_sha256"),
    *("tokens_match", "first_divergence", "above_ceiling", "above_reading", "round", "pass", "arm_s", "weight"),
    *METRICS,
)

TableRow = dict[str, object]
"""Of the table, by column: what is known of one sample, or of a block without one."""

Read = Callable[[Path], Result]


class Measured(NamedTuple):
    """A result, with the round that it is of."""

    record: Result
    path: str
    turns: Mapping[int, int] = {}
    """The pass that each sample is of."""
    round: str | None = None
    arm_s: float | None = None
    """What the cell itself took of the round's time."""
    weight: float | None = None
    """Of the round in comparisons."""
    doubts: tuple[str, ...] = ()
    """About the round."""
    ceilings: Ceilings | None = None
    """As they were read in the round."""


class Limits(NamedTuple):
    """What this machine can do: in the minutes of a measurement, and the best that it was ever seen to do."""

    now: Ceilings
    best: Ceilings


def aggregate(
    plan: Plan, ceilings: Ceilings, read: Read = result.read, rounds: Mapping[str, Round] | None = None
) -> pd.DataFrame:
    """The table of `plan`, with what `rounds`, by the path of their files, say of its cells; its columns are `COLUMNS`.

    Raises:
        ResultError: a result is missing, edited, not the one that the plan asks for at its path, or was fed another
            prompt, or had other weights, than the cell's others.
    """
    _check_all_there(plan)
    found = {
        id: [Measured(_belonging(planned, block, read), path) for block, path in enumerate(planned.paths())]
        for id, planned in plan.cells.items()
    }
    for id, measured in in_rounds(plan, rounds or {}).items():
        found[id] += measured
    read_in_rounds = [each.ceilings for measured in found.values() for each in measured if each.ceilings]
    best = best_of([ceilings, *read_in_rounds])
    rows: list[TableRow] = []
    for id, planned in plan.cells.items():
        reference = _reference(found, planned)
        _require_same_weights(id, found[id])
        _require_same_prompt(id, [*found[id], *(found[planned.reference] if planned.reference else [])])
        for number, each in enumerate(found[id]):
            limits = Limits(as_read(ceilings, each.ceilings) if each.ceilings else ceilings, best)
            rows += _rows(id, number, each, reference, limits)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = [*METRICS, "sample", "prompt_tokens", "first_divergence", "pass", "arm_s", "weight"]
    mixed = [name for name in numbers if table[name].dtype == object]
    table[mixed] = table[mixed].apply(pd.to_numeric)
    for column in ("above_ceiling", "above_reading"):
        table[column] = table[column].astype(bool)
    table["tokens_match"] = table["tokens_match"].astype("boolean")
    return table


def in_rounds(plan: Plan, rounds: Mapping[str, Round]) -> dict[str, list[Measured]]:
    """What rounds say of the plan's cells under their keys, in the order in which they were measured.

    The twin of a base is the same cell: it halves the noise of whatever is compared with it.
    Out of memory beside others is no outcome of a cell that sat alone as well.
    """
    found: dict[str, list[Measured]] = {id: [] for id in plan.cells}
    alone = {arm.result.cell.id for one in rounds.values() if not one.in_company for arm in one.arms}
    for path, record in sorted(rounds.items()):
        shared = validity.of_round(record)
        weight, doubts = validity.weight(shared), tuple(validity.sentences(shared))
        limits = of_rates(record.rates) if record.rates else None
        for arm in record.arms:
            id = arm.result.cell.id
            if id not in found or arm.result.key != plan.cells[id].key:
                continue
            if record.in_company and arm.result.outcome == Outcome.OOM and id in alone:
                continue
            places = [number for number, samples in arm.by_pass().items() for _ in samples]
            passes = dict(enumerate(places))
            found[id].append(Measured(arm.result, path, passes, path, _seconds(arm), weight, doubts, limits))
    return found


def _seconds(arm: Arm) -> float:
    """What a seat costs: loading, warming up and its turns."""
    return arm.ready_s + sum(sample.wall_ns for sample in arm.result.samples) / 1e9


def _require_same_weights(id: str, measured: list[Measured]) -> None:
    """Raises ResultError where two blocks of a cell loaded other bytes: a source that moved, or was read otherwise."""
    loaded = [(each.record.checkpoint_sha256, each.path) for each in measured if each.record.checkpoint_sha256]
    for sha256, path in loaded[1:]:
        first, other = loaded[0]
        if sha256 != first:
            raise ResultError(
                f"{other} and {path}: expected the same weights for cell {id}, and the checkpoints that they loaded "
                f"differ ({first[:12]} and {sha256[:12]}): delete the one that is not meant and measure again"
            )


def _require_same_prompt(id: str, measured: list[Measured]) -> None:
    """Raises ResultError where two blocks of a cell, or one of its reference, were fed other tokens than the others."""
    fed = [each for each in measured if each.record.prompt_ids]
    for each in fed[1:]:
        if each.record.prompt_ids != fed[0].record.prompt_ids:
            raise ResultError(
                f"{fed[0].path} and {each.path}: expected the same prompt for cell {id} and its reference, and other "
                f"tokens were fed ({fed[0].record.prompt_tokens} and {each.record.prompt_tokens} of them): delete both "
                "and measure again"
            )


def _reference(found: Mapping[str, list[Measured]], planned: PlannedCell) -> Result | None:
    """The first result of the reference that ended well, or its first one."""
    records = [measured.record for measured in found[planned.reference]] if planned.reference else []
    return next((record for record in records if record.outcome == Outcome.OK), next(iter(records), None))


def promises_tokens(cell: Cell) -> bool:
    """Whether another token than the reference's would break a promise: exact, greedy, and not rounded to 16 bits."""
    return optimizations.is_exact(cell) and cell.workload.sampling is None and cell.dtype == "float32"


def by_cell(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(cell): rows for cell, rows in table.groupby("cell")}


def blocks_of(table: pd.DataFrame, cell: str, metric: str) -> list[list[float]]:
    """The samples of `metric`, by block; a block without a number is an empty list, so that rounds stay paired."""
    return blocks_in(table[table["cell"] == cell], metric)


def blocks_in(rows: pd.DataFrame, metric: str) -> list[list[float]]:
    """`blocks_of`, from the rows of one cell; a round is one block, though a cell may have sat in it twice.

    How a process starts is that of blocks alone, where there are any.
    """
    if METRICS[metric].is_of_start and rows["round"].isna().any():
        rows = rows[rows["round"].isna()]
    blocks: dict[object, list[float]] = {}
    for name, block, value in zip(rows["round"], rows["block"], rows[metric], strict=True):
        values = blocks.setdefault(name if isinstance(name, str) else block, [])
        if value is not None and not math.isnan(value):
            values.append(float(value))
    return list(blocks.values())


def _check_all_there(plan: Plan) -> None:
    paths = [path for planned in plan.cells.values() for path in planned.paths()]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise ResultError(
            f"{len(missing)} of {len(paths)} results are missing; the first is {missing[0]}. Measure them first."
        )


def _belonging(planned: PlannedCell, block: int, read: Read) -> Result:
    path = Path(planned.paths()[block])
    found = read(path)
    for name, expected, arrived in (
        ("cell", planned.cell.id, found.cell.id),
        ("block", block, found.block),
        ("key", planned.key.id, found.key.id),
    ):
        if expected != arrived:
            raise ResultError(
                f"{path}: expected the result of {name} {expected}, got {name} {arrived}. Delete it and measure again."
            )
    return found


def _rows(id: str, number: int, measured: Measured, reference: Result | None, limits: Limits) -> list[TableRow]:
    record, path, cell = measured.record, measured.path, measured.record.cell
    own = validity.of_arm(record) if measured.round else validity.of_block(record)
    flags = [*record.flags, *validity.sentences(own), *measured.doubts]
    settings = {
        "backend": cell.backend,
        "checkpoint": cell.checkpoint.name,
        "dtype": cell.dtype,
        "batch": cell.workload.batch,
        "new_tokens": cell.workload.new_tokens,
        "device": cell.device,
    }
    common: TableRow = {
        "cell": id,
        "block": number,
        "round": measured.round,
        "arm_s": measured.arm_s,
        "weight": measured.weight,
        "outcome": record.outcome.value,
        "reason": record.reason,
        "flags": "; ".join(flags),
        "path": path,
        "above_ceiling": False,
        "above_reading": False,
        "prompt_tokens": record.prompt_tokens or cell.workload.prompt_tokens,
        **settings,
    }
    if record.outcome != Outcome.OK:
        return [common]
    if not record.samples:
        raise ResultError(f"{path}: the outcome is ok but there is no sample. Delete it and measure again.")
    common |= derive.of_block(record)
    if reference is not None and reference.outcome == Outcome.OK:
        share, first = derive.agreement(record.tokens, reference.tokens)
        common |= {"token_agreement": share, "first_divergence": first}
        if first is not None and promises_tokens(cell):
            doubt = f"an exact technique, yet its tokens differ from the reference's from position {first} on"
            common["flags"] = "; ".join([*flags, doubt])
    return [
        {**common, "sample": n, "pass": measured.turns.get(n), **_of_sample(record, sample, reference, limits)}
        for n, sample in enumerate(record.samples)
    ]


def _of_sample(record: Result, sample: Sample, reference: Result | None, limits: Limits) -> TableRow:
    rows, workload = record.cell.rows, record.cell.workload
    streams = rows // workload.batch
    read_tokens = streams * sum(row_lengths(workload, record.prompt_tokens)) if record.prompt_tokens else None
    numbers = derive.of_sample(sample, rows, read_tokens)
    columns: TableRow = {"tokens_sha256": sample.tokens_sha256}
    if reference is not None and reference.outcome == Outcome.OK:
        columns["tokens_match"] = sample.tokens_sha256 == reference.samples[0].tokens_sha256
    if record.prompt_tokens:
        numbers |= _against(record, sample, record.prompt_tokens, limits.now)
        columns["above_ceiling"] = _is_above(_against(record, sample, record.prompt_tokens, limits.best))
        columns["above_reading"] = _is_above(numbers) and not columns["above_ceiling"]
    return {**numbers, **columns}


def _against(record: Result, sample: Sample, prompt_tokens: int, ceilings: Ceilings) -> derive.Numbers:
    """How near a generation comes to physical limits."""
    step_limit = roofline.step_ms(record.known_cell, ceilings, prompt_tokens, record.memory)
    prefill_limit = roofline.prefill_ms(record.known_cell, ceilings, prompt_tokens, record.memory)
    steps = sample.step_ns[1:]
    mean_step_ms = sum(steps) / len(steps) / 1e6 if steps else 0.0
    return {
        "ceiling_ms": step_limit,
        "prefill_ceiling_ms": prefill_limit,
        "ceiling_fraction": _fraction(step_limit, mean_step_ms),
        "prefill_ceiling_fraction": _fraction(prefill_limit, sample.step_ns[0] / 1e6),
    }


def _is_above(numbers: derive.Numbers) -> bool:
    fractions = (numbers["ceiling_fraction"], numbers["prefill_ceiling_fraction"])
    return any(fraction is not None and fraction > ABOVE_CEILING for fraction in fractions)


def _fraction(limit_ms: float | None, measured_ms: float) -> float | None:
    return limit_ms / measured_ms if limit_ms is not None and measured_ms > 0 else None
