"""One block of one cell -> one result, in a supervised fresh process, with the device to itself.

A failed experiment is a written result and a successful command; only Claimbench's own mistakes are raised.

Names in `Result.memory`, all bytes: `rss_before_load`, `rss_after_load`, `rss_peak` (while generating), `weights`,
`step_weights` (read by one decode step), `kv_cache` (at full length), and on a GPU `device_allocated_peak`,
`device_reserved_peak` (the allocator's) and `device_used` (the driver's, everyone's). Where a cell runs in several
processes they are sums over its ranks, and `Result.ranks` has each one's.
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

from claimbench.errors import ResultError, Unavailable
from claimbench.measuring.block_request import BlockRequest
from claimbench.measuring.device_lock import Beside, device_lock
from claimbench.measuring.messages import BlockFacts
from claimbench.measuring.supervisor import supervise
from claimbench.planning.availability import missing_requirement
from claimbench.planning.result_key import expect_unchanged
from claimbench.schema import durable, result
from claimbench.schema.cell import Cell
from claimbench.schema.outcome import OUT_OF_MEMORY, Outcome
from claimbench.schema.result import Key, Result
from claimbench.schema.set_aside import failures, set_aside
from claimbench.system import machine, page_cache
from claimbench.system.redaction import redacted_result
from claimbench.system.unread import Readings


def measure(
    cell: Cell,
    block: int,
    key: Key,
    output: Path,
    *,
    checkpoint: Path | None,
    draft: Path | None = None,
    reference: Cell | None = None,
    reference_checkpoint: Path | None = None,
    smaller: Path | None = None,
    python: str = sys.executable,
    side_by_side: bool = False,
) -> Result:
    """Measure block `block` of `cell` and write it to `output`; a valid result that is there already is kept.

    `checkpoint` and `draft` are folders with a manifest; `reference` is compared with in block 0, and is loaded from
    `reference_checkpoint` where its layout is another (that of several ranks); `smaller` is the result of the same cell
    at a smaller batch, which decides whether this one can fit.

    Raises:
        ResultError: what the cell runs was changed after `key` was made.
    """
    kept = _already_there(output, cell, block, key)
    if kept:
        return kept
    expect_unchanged([(cell, key)])
    started = datetime.now(UTC)
    clock = time.monotonic()
    facts: BlockFacts = {"machine": machine.identify()}
    refusal = _known_before(cell, smaller)
    # The device is held until the result is sealed: whoever has it next looks for one.
    with (
        device_lock(cell.device, cell.devices, side_by_side=side_by_side) if refusal is None else nullcontext(dict)
    ) as beside:
        kept = _already_there(output, cell, block, key)
        if kept:
            return kept
        request = BlockRequest(
            cell=cell,
            checkpoint=checkpoint,
            draft=draft,
            reference=reference if block == 0 else None,
            reference_checkpoint=reference_checkpoint,
        )
        facts |= _facts(request, python, beside) if refusal is None else refusal
        expect_unchanged([(cell, key)])
        failed = failures(output)
        if failed:
            times = "once" if len(failed) == 1 else f"{len(failed)} times"
            facts["flags"] = [*facts.get("flags", []), f"failed {times} before this try, in passing"]
        record = Result(
            cell=cell,
            block=block,
            key=key,
            started_at=started.isoformat(timespec="seconds"),
            duration_s=round(time.monotonic() - clock, 3),
            **redacted_result(facts),
        )
        return _written(output, record)


def _written(output: Path, record: Result) -> Result:
    """What is at `output` from now on: `record`, unless another run was faster."""
    try:
        result.write_new(output, record)
    except FileExistsError:
        kept = _already_there(output, record.cell, record.block, record.key)
        if kept:
            return kept
        result.write(output, record)
    return record


def _facts(request: BlockRequest, python: str, beside: Beside) -> BlockFacts:
    """What a fresh process found, with how the machine did before and after it."""
    device = request.cell.device
    facts = _checkpoint_facts(request.cell, request.checkpoint, request.draft)
    if "outcome" in facts:
        return facts
    known, before = facts["telemetry"], machine.telemetry(device)
    facts |= supervise(request, python)
    after = machine.telemetry(device)
    unread = known.get("unread", {}) | facts.get("telemetry", {}).get("unread", {})
    facts["telemetry"] = {**known, "before": before, "after": after}
    if unread:
        facts["telemetry"]["unread"] = unread
    facts["conditions"] = facts.get("conditions", {}) | beside()
    return facts


def _already_there(output: Path, cell: Cell, block: int, key: Key) -> Result | None:
    if not output.exists():
        return None
    with durable.alone_in(output.parent):
        try:
            found = result.read(output)
        except ResultError:
            if output.is_dir():
                raise
            if output.exists():
                set_aside(output, "damaged")
            return None
    return found if (found.cell, found.block, found.key) == (cell, block, key) else None


def _known_before(cell: Cell, smaller: Path | None) -> BlockFacts | None:
    """An outcome that needs no process: what this machine lacks, or a smaller batch that did not fit."""
    if smaller is not None:
        previous = result.read(smaller)
        if previous.outcome in OUT_OF_MEMORY:
            batch = previous.cell.workload.batch
            return {
                "outcome": Outcome.IMPLIED_OOM,
                "reason": f"batch {batch} of the same cell is already out of memory",
            }
    reason = missing_requirement(cell)
    return {"outcome": Outcome.UNAVAILABLE, "reason": reason} if reason else None


def _checkpoint_facts(cell: Cell, checkpoint: Path | None, draft: Path | None) -> BlockFacts:
    """What is to be loaded, and how much of it lies in the page cache: `telemetry["checkpoint"]`, in bytes."""
    from claimbench.checkpoints import loaded_model, manifest
    from claimbench.errors import CorruptCheckpoint

    facts: BlockFacts = {"telemetry": {}}
    try:
        if draft:
            manifest.verify(draft)
        if checkpoint:
            facts["checkpoint_sha256"] = manifest.verify(checkpoint).sha256
            card = loaded_model.unplanned_card(cell.checkpoint, checkpoint)
            facts["card"] = card.model_dump(mode="json") if card else None
    except CorruptCheckpoint as error:
        reason = str(error).splitlines()[0]
        return {"outcome": Outcome.ERROR, "passing": True, "reason": reason, "detail": str(error)}
    files = [file for folder in (checkpoint, draft) if folder for file in sorted(folder.glob("*.safetensors"))]
    readings, wanted = Readings(), cell.protocol.page_cache
    try:
        if wanted == "as_it_is":
            found = readings.read("checkpoint", lambda: page_cache.cached(files))
        else:
            found = page_cache.prepare(files, wanted)
    except Unavailable as error:
        return {"outcome": Outcome.UNAVAILABLE, "reason": str(error)}
    except OSError as error:
        return {"outcome": Outcome.UNAVAILABLE, "reason": f"a {wanted} page cache: the system refuses it ({error})"}
    if files and found:
        facts["telemetry"] = {"checkpoint": {"bytes": found.bytes, "cached_bytes": found.cached_bytes}}
    if readings.unread:
        facts["telemetry"] = {"unread": readings.unread}
    return facts
