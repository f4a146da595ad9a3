"""What a run will take, said before it starts: which blocks are missing, how long, how much memory, how much disk.

Blocks that were measured before, here or on an earlier version of the code, are the best forecast; the others are
estimated from their bytes and operations and from this machine's ceilings, or from guesses where none are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from claimbench.checkpoints import headers
from claimbench.checkpoints.headers import Header
from claimbench.cost_model import cost
from claimbench.cost_model.hardware import HARDWARE
from claimbench.cost_model.parallelism import device_bytes, largest_batch
from claimbench.cost_model.weight_bytes import expected_weight_bytes, held_bytes, stored_precision
from claimbench.errors import ResultError, SourceError
from claimbench.formatting import quantity
from claimbench.planning import cell_cost, groups
from claimbench.planning.cell_cost import load_of, peak_bytes
from claimbench.planning.paths import CHECKPOINTS, folder_of
from claimbench.schema import result
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.cell import DTYPE_BYTES, Cell, Checkpoint
from claimbench.schema.load import InferenceLoad
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import RESULTS, Plan, PlannedCell, Row

# Guesses for a machine whose ceilings are not measured yet.
CAUTIOUS = {
    "cpu": {"read_bytes_per_s": 20e9, "flops_per_s": 1.2e11},
    "cuda": {"read_bytes_per_s": 500e9, "flops_per_s": 3e13},
}
START_S = {"cpu": 6.0, "cuda": 15.0}
COMPILE_S = 15.0
USUAL_WARMUPS = 2
"""Generations before the timed ones of a block, until their time is steady."""
SEAT_S = 2.5
"""To load an arm of a round and warm it up."""
LEAST_ROUNDS = 2
USUAL_SPREAD = 0.15
"""Of the logarithm of a ratio from pass to pass on two shared cores, the spread between rounds included."""
QUANTILE = 3.0
UNKNOWN_S = 5.0
"""For a generation of a model of which nothing is known before it is fetched."""
BELOW_CEILING = 2.0
"""Plain implementations take about twice their ceiling's time."""


class Forecast(NamedTuple):
    blocks_total: int
    blocks_missing: int
    seconds: float
    peak_bytes: float
    """Of the hungriest cell that is still to be measured, with what sits beside it in a round."""
    hungriest: str
    disk_bytes: float
    """Checkpoints that are not there yet, fetched and sharded."""
    missing_by_cell: dict[str, int]
    measured_share: float
    """Share of the missing blocks whose time is known from an earlier measurement."""


def missing_blocks(plan: Plan, root: Path = Path()) -> dict[str, int]:
    """Blocks without a result file, by cell id."""
    counts = {id: sum(not (root / path).exists() for path in planned.paths()) for id, planned in plan.cells.items()}
    return {id: count for id, count in counts.items() if count}


def older_results(plan: Plan) -> int:
    """Results of the plan's cells that another version of the code or of a library, or another machine, made."""
    planned = plan.cells.values()
    there = {path for each in planned for path in _results_of(each)}
    return len(there - {Path(path) for each in planned for path in each.paths()})


def _results_of(planned: PlannedCell) -> list[Path]:
    """The result files of a cell, under any key."""
    return sorted((RESULTS / "measure" / planned.cell.id).glob("*/*.json"))


def block_seconds(planned: PlannedCell, ceilings: Ceilings) -> tuple[float, bool]:
    """Seconds that one block will take, and whether that was seen (under any key) rather than estimated."""
    seen = []
    for path in _results_of(planned):
        try:
            seen.append(result.read(path).duration_s)
        except ResultError:
            continue
    return (median(seen), True) if seen else (estimate_seconds(planned.cell, ceilings), False)


def estimate_seconds(cell: Cell, ceilings: Ceilings) -> float:
    """Of one block."""
    if cell.backend == "null_model":
        return 1.0
    compiling = COMPILE_S if any("compile" in use.name for use in cell.optimizations) else 0.0
    generations = cell.protocol.samples + max(USUAL_WARMUPS, cell.protocol.warmup_min)
    return START_S[cell.device] + compiling + generation_seconds(cell, ceilings) * generations


def generation_seconds(cell: Cell, ceilings: Ceilings) -> float:
    """A guess where nothing is known of the model."""
    model = cost.decoder_of(cell.checkpoint)
    if model is None:
        return UNKNOWN_S
    guess = CAUTIOUS[cell.device]
    bandwidth = ceilings.read_bytes_per_s or guess["read_bytes_per_s"]
    rate = ceilings.matmul_flops_per_s.get(cell.dtype) or guess["flops_per_s"]
    load = cell.workload
    prompt, size = load.prompt_tokens or 64, DTYPE_BYTES[cell.dtype]
    length = prompt + load.new_tokens // 2

    def seconds(new: int, past: int) -> float:
        read = expected_weight_bytes(model, load.batch * new, stored_precision(model, size))
        read += cost.kv_bytes(model, load.batch, past, size)
        return max(read / bandwidth, cost.pass_flops(model, load.batch, new, past) / rate)

    step = seconds(length, 0) if cell_cost.recomputes(cell) else seconds(1, length - 1)
    return BELOW_CEILING * (seconds(prompt, 0) + (load.new_tokens - 1) * step)


def forecast(plan: Plan, ceilings: Ceilings) -> Forecast:
    missing = missing_blocks(plan)
    seconds, seen_blocks = 0.0, 0
    for id, count in missing.items():
        each, seen = block_seconds(plan.cells[id], ceilings)
        seconds += each * count
        seen_blocks += count if seen else 0
    in_rounds = {id for group in plan.groups for id in group.everyone}
    peaks = {id: peak_bytes(plan.cells[id].cell) for id in missing}
    memory = groups.memory_of(plan)
    for group in plan.groups:
        at_once, hungriest = groups.peak_of(group, plan.cells, memory)
        peaks[hungriest] = max(at_once, peaks.get(hungriest, 0.0))
    hungriest = max(peaks, key=lambda id: peaks[id], default="")
    return Forecast(
        blocks_total=sum(planned.blocks for planned in plan.cells.values()),
        blocks_missing=sum(missing.values()),
        seconds=seconds,
        peak_bytes=peaks.get(hungriest, 0.0),
        hungriest=hungriest,
        disk_bytes=_disk_bytes(plan, [*missing, *in_rounds]),
        missing_by_cell=missing,
        measured_share=seen_blocks / sum(missing.values()) if missing else 1.0,
    )


class Resolution(NamedTuple):
    """What a group's share of the budget will probably tell apart."""

    title: str
    cells: int
    passes: float
    """Over all of its rounds."""
    difference: float
    """A ratio further from 1 than this will probably be seen."""


def resolutions(plan: Plan, ceilings: Ceilings) -> list[Resolution]:
    """Of each group, if the budget goes to all of them alike, on a machine as noisy as shared ones are."""
    arms = sum(len(group.cells) + 1 for group in plan.groups)
    found = []
    for group in plan.groups:
        cells = [plan.cells[id].cell for id in (group.base, *group.cells)]
        share_s = plan.budget_minutes * 60 * len(cells) / arms
        turns_s = max(0.0, share_s - LEAST_ROUNDS * SEAT_S * len(cells))
        passes = turns_s / sum(generation_seconds(cell, ceilings) for cell in cells)
        half = QUANTILE * USUAL_SPREAD / math.sqrt(passes) if passes >= LEAST_ROUNDS else math.inf
        found.append(Resolution(group.title, len(group.cells), passes, math.expm1(half)))
    return found


class BatchBound(NamedTuple):
    """The largest batch that could fit: what weights, cache and activations need at least of each device, by row.

    An upper bound, since `device_bytes` is a lower one: a larger batch cannot fit, and this one may not.
    """

    name: str
    """The experiment's row of batches, as `study: experiment/label`."""
    load: InferenceLoad
    device: str
    memory_bytes: float
    """Of each device."""
    fixed_bytes: float
    """On each device, whatever the batch."""
    row_bytes: float
    """On each device, for each row of the batch."""
    batch: int
    """0 where the weights alone do not fit."""
    published: str | None = None
    """The document's own frontier, in words."""


def batch_bounds(plan: Plan) -> list[BatchBound]:
    """One for every row of batches of an experiment: on this machine, and the document's own on its own hardware."""
    found: list[BatchBound] = []
    for study, planned in plan.studies.items():
        named = planned.study.document.hardware
        for experiment, rows in planned.rows.items():
            swept = [row for row in rows.values() if "batch" in row.sweep]
            for label in dict.fromkeys(row.label for row in swept):
                line, name = [row for row in swept if row.label == label], f"{study}: {experiment}/{label}"
                here = next((plan.cells[row.cell].cell for row in line if row.cell), None)
                load = load_of(here) if here else None
                if load and here:
                    found.append(_batch_bound(name, load, f"this {here.device}", device_memory(plan, here)))
                asked = next((row.asked for row in line if row.asked), None)
                if asked and named:
                    bound = _batch_bound(name, asked, named, HARDWARE[named].memory_bytes)
                    found.append(bound._replace(published=_published_frontier(line)))
    return found


def _batch_bound(name: str, load: InferenceLoad, device: str, memory_bytes: float) -> BatchBound:
    one, two = (device_bytes(load.model_copy(update={"batch": batch})).total for batch in (1, 2))
    batch = largest_batch(load, memory_bytes)
    return BatchBound(name, load, device, memory_bytes, one - (two - one), two - one, batch)


def bound_text(bound: BatchBound) -> str:
    """`bloom: throughput/ds_fp16 on 8 x NVIDIA A100: 783 (44.1 GB + 53.4 MB a row, of 85.9 GB each); published 128`."""
    fixed, row, of = (quantity(size, "B") for size in (bound.fixed_bytes, bound.row_bytes, bound.memory_bytes))
    published = f"; {bound.published}" if bound.published else ""
    where = f"{bound.name} on {bound.load.devices} x {bound.device}"
    return f"{where}: {bound.batch} ({fixed} + {row} a row, of {of} each){published}"


def device_memory(plan: Plan, cell: Cell) -> float:
    """Bytes that each device of the cell may take: a GPU's own, or a share of the host's for each process."""
    if cell.device == "cuda":
        sizes = [gpu.get("memory_bytes") for gpu in plan.machine.get("gpus") or []]
        return float(min(filter(None, sizes), default=0))
    limit = cell.protocol.memory_limit or float("inf")
    return min(limit, (plan.machine.get("memory_gb") or 0) * 1e9 / cell.devices)


def _published_frontier(line: list[Row]) -> str | None:
    """The largest batch that the document has a figure for, and the first that it calls out of memory."""
    figures = {row.asked.batch: row.published.get("ms_per_token") for row in line if row.asked}
    fitted = max((batch for batch, figure in figures.items() if isinstance(figure, int | float)), default=None)
    failed = min((batch for batch, figure in figures.items() if figure == Outcome.OOM), default=None)
    if fitted is None:
        return None
    return f"published {fitted}" + (f", and {failed} out of memory" if failed else "")


def _disk_bytes(plan: Plan, missing: Iterable[str]) -> float:
    wanted = {}
    for id in missing:
        cell = plan.cells[id].cell
        for checkpoint in filter(None, (cell.checkpoint, cell.draft)):
            if not (CHECKPOINTS / folder_of(plan, checkpoint) / "manifest.json").exists():
                wanted[checkpoint.name] = checkpoint
    return sum(map(_disk_bytes_of, wanted.values()))


def _disk_bytes_of(checkpoint: Checkpoint) -> float:
    """A GGUF lies beside its shards, in float32 at most; safetensors are linked; random values are 16-bit numbers."""
    header = header_of(checkpoint)[0]
    model, fetched = cost.decoder_of(checkpoint) or header.card, sum(header.bytes_by_dtype.values())
    if checkpoint.source.endswith(".gguf"):
        shards = 4 * model.weights if model else 0
        return (fetched or shards) + shards
    return fetched or (held_bytes(model, 2) if model else 0)


def header_of(checkpoint: Checkpoint) -> tuple[Header, str | None]:
    """What the headers of its files say, or why they say nothing: a forecast goes on without them."""
    try:
        return headers.of(checkpoint), None
    except SourceError as error:
        return Header(), str(error)
