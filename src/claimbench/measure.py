"""One block of one cell -> one result, in a supervised fresh process.

The supervisor holds the device's lock, watches the clock, and turns whatever happens to the worker into an outcome. A
failed experiment is a written result and a successful command; only Claimbench's own mistakes are raised.

Names in `Result.memory`, all bytes: `rss_before_load`, `rss_after_load`, `rss_peak` (while generating), `weights`,
`step_weights` (read by one decode step), `kv_cache` (at full length), and on a GPU `device_allocated_peak`,
`device_reserved_peak` (the allocator's) and `device_used` (the driver's, everyone's). Where a cell runs in several
processes they are sums over its ranks, and `Result.ranks` has each one's.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from claimbench import machine, page_cache, result
from claimbench.cell import Cell, Device
from claimbench.errors import ResultError, Unavailable
from claimbench.lacking import lacking
from claimbench.result import Key, Result
from claimbench.scratch import Scratch

GRACE_S = 5.0
KEPT_LINES = 40


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
) -> Result:
    """Measure block `block` of `cell` and write it to `output`; a valid result that is there already is kept.

    `checkpoint` and `draft` are folders with a manifest; `reference` is compared with in block 0, and is loaded from
    `reference_checkpoint` where its layout is another (that of several ranks); `smaller` is the result of the same cell
    at a smaller batch, which decides whether this one can fit.
    """
    kept = _already_there(output, cell, block, key)
    if kept:
        return kept
    started = datetime.now(UTC)
    clock = time.monotonic()
    facts: dict[str, Any] = {"machine": machine.identify()}
    refusal = _known_before(cell, smaller)
    if refusal:
        facts |= refusal
    else:
        with device_lock(cell.device):
            kept = _already_there(output, cell, block, key)
            if kept:
                return kept
            facts |= _checkpoint_facts(cell, checkpoint, draft)
            if "outcome" not in facts:
                request = {
                    "cell": cell.model_dump(mode="json"),
                    "checkpoint": str(checkpoint) if checkpoint else None,
                    "draft": str(draft) if draft else None,
                    "reference": reference.model_dump(mode="json") if reference and block == 0 else None,
                    "reference_checkpoint": str(reference_checkpoint) if reference_checkpoint else None,
                }
                before = machine.telemetry(cell.device)
                facts |= _supervise(cell, request, python)
                facts["telemetry"] |= {"before": before, "after": machine.telemetry(cell.device)}
    record = Result(
        cell=cell,
        block=block,
        key=key,
        started_at=started.isoformat(timespec="seconds"),
        duration_s=round(time.monotonic() - clock, 3),
        **facts,
    )
    result.write(output, record)
    return record


def _already_there(output: Path, cell: Cell, block: int, key: Key) -> Result | None:
    if not output.exists():
        return None
    try:
        found = result.read(output)
    except ResultError:
        return None
    return found if (found.cell, found.block, found.key) == (cell, block, key) else None


def _known_before(cell: Cell, smaller: Path | None) -> dict[str, Any] | None:
    """An outcome that needs no process: what this machine lacks, or a smaller batch that did not fit."""
    if smaller is not None:
        previous = result.read(smaller)
        if previous.outcome in ("oom", "implied-oom"):
            batch = previous.cell.workload.batch
            return {"outcome": "implied-oom", "reason": f"batch {batch} of the same cell is already out of memory"}
    reason = lacking(cell)
    return {"outcome": "unavailable", "reason": reason} if reason else None


def _checkpoint_facts(cell: Cell, checkpoint: Path | None, draft: Path | None) -> dict[str, Any]:
    """What is to be loaded, and how much of it lies in the page cache: `telemetry["checkpoint"]`, in bytes."""
    from claimbench.checkpoints import manifest
    from claimbench.errors import CorruptCheckpoint

    facts: dict[str, Any] = {"telemetry": {}}
    try:
        if draft:
            manifest.verify(draft)
        if checkpoint:
            facts["checkpoint_sha256"] = manifest.verify(checkpoint).sha256
    except CorruptCheckpoint as error:
        return {"outcome": "error", "reason": str(error).splitlines()[0], "detail": str(error)}
    files = [file for folder in (checkpoint, draft) if folder for file in sorted(folder.glob("*.safetensors"))]
    try:
        found = page_cache.prepare(files, cell.protocol.page_cache)
    except Unavailable as error:
        return {"outcome": "unavailable", "reason": str(error)}
    return facts | ({"telemetry": {"checkpoint": found._asdict()}} if files else {})


@contextmanager
def device_lock(device: Device) -> Iterator[None]:
    """One timing job at a time per device, across every checkout; the kernel frees it if its holder dies."""
    path = Path(tempfile.gettempdir()) / f"claimbench-{os.getuid()}-{device}.lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"claimbench: waiting for another measurement on {device}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _environment(cell: Cell, scratch: Path) -> dict[str, str]:
    """`scratch` is for whatever libraries leave behind: torchrun, for one, a folder of logs for each start."""
    threads = str(cell.protocol.threads or machine.usable_cores())
    cache = Path(os.environ.get("CLAIMBENCH_CACHE", ".claimbench")).resolve()
    return {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor")),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(scratch),
    }


def _supervise(cell: Cell, request: dict[str, Any], python: str) -> dict[str, Any]:
    """Start the worker, collect its messages until it ends or its time is up, and say how it ended."""
    with closing(Scratch(Path(tempfile.gettempdir()))) as scratch:
        environment = _environment(cell, scratch.folder)
        return _supervise_in(cell, request, [python, "-m", "claimbench.worker"], environment)


def _supervise_in(
    cell: Cell, request: dict[str, Any], command: list[str], environment: dict[str, str]
) -> dict[str, Any]:
    oom_kills = _kernel_oom_kills()
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    messages: list[dict[str, Any]] = []
    lines: list[str] = []
    readers = [
        threading.Thread(target=_collect_messages, args=(process.stdout, messages), daemon=True),
        threading.Thread(target=_collect_lines, args=(process.stderr, lines), daemon=True),
    ]
    for reader in readers:
        reader.start()
    timed_out = False
    try:
        try:
            process.stdin.write(json.dumps(request))
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.wait(timeout=cell.protocol.timeout_s)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        _end_group(process)
    for reader in readers:
        reader.join(timeout=GRACE_S)
    facts = _facts(messages)
    facts |= _ending(process.returncode, messages, timed_out, cell.protocol.timeout_s, _kernel_oom_kills() - oom_kills)
    if facts["outcome"] != "ok":
        of_its_rank = messages[-1].get("detail") if messages else None
        facts["detail"] = (of_its_rank or "".join(lines))[-4000:] or None
    return facts


def _collect_messages(stream: IO[str], messages: list[dict[str, Any]]) -> None:
    for line in stream:
        try:
            messages.append(json.loads(line))
        except ValueError:  # a line cut short by the death of the worker
            return


def _collect_lines(stream: IO[str], lines: list[str]) -> None:
    for line in stream:
        lines.append(line)
        del lines[:-KEPT_LINES]


def _end_group(process: subprocess.Popen[str]) -> None:
    """End the worker and what it started (compilers, say); the group is its own, so nothing else is hit."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(timeout=GRACE_S if sent == signal.SIGTERM else None)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _facts(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What the worker said, as fields of a result."""
    facts: dict[str, Any] = {"warmup": [], "samples": [], "flags": []}
    single = {"loaded", "memory", "proof", "fidelity", "energy", "tokens"}
    for message in messages:
        event = message["event"]
        if event == "warmup":
            facts["warmup"].append(message["sample"])
        elif event == "sample":
            facts["samples"].append(message["sample"])
        elif event == "flag":
            facts["flags"].append(message["flag"])
        elif event in single:
            facts |= {name: value for name, value in message.items() if name != "event"}
    if facts["warmup"]:
        facts["first_call_ns"] = facts["warmup"][0]["wall_ns"]
    return facts


def _ending(
    status: int | None, messages: list[dict[str, Any]], timed_out: bool, limit_s: float, oom_kills: int
) -> dict[str, Any]:
    phase = next((m["name"] for m in reversed(messages) if m["event"] == "phase"), "start")
    last = messages[-1] if messages else {"event": "none"}
    if last["event"] == "done":
        hashes = {m["sample"]["tokens_sha256"] for m in messages if m["event"] == "sample"}
        if len(hashes) > 1:
            return {"outcome": "wrong", "reason": "samples of one block differ in their tokens"}
        return {"outcome": "ok"}
    if last["event"] == "refused":
        if last.get("signal") == "SIGKILL" and oom_kills > 0:
            return {"outcome": "oom", "reason": f"{last['reason']} (by the kernel, for memory)"}
        return {"outcome": last["outcome"], "reason": last["reason"]}
    if timed_out:
        return {"outcome": "timeout", "reason": f"over {limit_s:g} s, during: {phase}"}
    if status == -signal.SIGKILL and oom_kills > 0:
        return {"outcome": "oom", "reason": f"killed by the kernel for memory, during: {phase}"}
    how = f"killed by {signal.Signals(-status).name}" if status and status < 0 else f"ended with status {status}"
    return {"outcome": "error", "reason": f"the worker was {how}, during: {phase}"}


def _kernel_oom_kills() -> int:
    """Processes that the kernel has killed for memory, in this control group and on this machine."""
    count = 0
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        try:
            for line in path.read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    count += int(value)
        except OSError:
            continue
    return count
