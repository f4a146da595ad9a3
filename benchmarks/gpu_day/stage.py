"""A stage: a table of checks, what became of each, and a runner that loses at most one of them.

Checks run in a child process, one after the other. The parent keeps the record, a JSON file that is written after each
check, and ends the child where a check takes longer than it may, or where the stage does. A child that dies, by a
kernel that broke the CUDA context say, costs the check that it was at: the next child goes on behind it. So does a
second call of the stage with the same folder, which keeps what is known.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from gpu_day.record import FAIL, LATE, PASS, SKIP, Json, Record, described, line_of

ENTRY = Path(__file__).parents[1] / "gpu_day.py"
PATHS = ("scratch", "out", "work", "bundle")
"""Of a context."""


class Skip(Exception):
    """What a check needs is not here; its text says what."""


@dataclass(frozen=True)
class Context:
    """What every check of a stage is handed."""

    device: str
    tiny: bool
    """Shapes that a CPU runs in seconds."""
    scratch: Path
    """A folder of this call's own."""
    out: Path
    """Where results stay."""
    work: Path
    """Where the product keeps what it makes, from one call to the next."""
    bundle: Path | None = None
    """A folder with checkpoints that were brought along."""
    minutes: float = 3.0
    """For the rounds of the stage `product`."""

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"


@dataclass(frozen=True)
class Check:
    name: str
    run: Callable[[Context], Json]
    """What it found, as values of JSON; raises where the check does not hold, and `Skip` where it cannot be made."""
    needs: tuple[str, ...] = ()
    """`cuda`, an importable module, or `check:<name>` for one that has to have passed."""
    limit_s: float = 120.0


def checks_of(stage: str, context: Context) -> list[Check]:
    """The checks of a stage, in order, as its module says them: one of this package, or by its full name another."""
    module = importlib.import_module(stage if "." in stage else f"gpu_day.{stage}")
    found: list[Check] = module.checks(context)
    names = [check.name for check in found]
    assert len(set(names)) == len(names), "two checks of one name"
    return found


def first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:400]


def missing(check: Check, context: Context, record: dict[str, Json]) -> str | None:
    """What `check` needs and is not here, or None."""
    for need in check.needs:
        if need == "cuda":
            if not context.cuda:
                return "needs a GPU"
        elif need.startswith("check:"):
            if record.get(need[6:], {}).get("verdict") != PASS:
                return f"needs that {need[6:]} passed"
        elif importlib.util.find_spec(need) is None:
            return f"needs the module {need}, which is not installed"
    return None


def run_check(check: Check, context: Context, record: dict[str, Json]) -> Json:
    """One message: what became of it."""
    start = time.perf_counter()
    found: Json = {}
    verdict, reason, broken = PASS, "", False
    lacks = missing(check, context, record)
    try:
        if lacks:
            raise Skip(lacks)
        found = check.run(context)
        json.dumps(found, allow_nan=False)
        if context.cuda:
            _wait_for_device()
    except Skip as why:
        verdict, reason = SKIP, str(why)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        traceback.print_exc()
        verdict, reason, found = FAIL, first_line(error), {}
        broken = context.cuda and _is_broken()
    said = {"name": check.name, "verdict": verdict, "seconds": time.perf_counter() - start}
    return {**said, "reason": reason, "found": found, "broken": broken}


def _wait_for_device() -> None:
    """An error of a kernel is raised where the device is next waited for: in the check that made it."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _is_broken() -> bool:
    """Whether the CUDA context answers no more: this process can then check nothing."""
    try:
        _wait_for_device()
    except Exception:
        return True
    return False


def serve(stage: str, request: Json) -> None:
    """The child: runs the checks that it is asked for and says what became of each, a JSON line each."""
    from claimbench.system.processes import die_with_parent

    die_with_parent()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    paths = {name: Path(request[name]) if request[name] else None for name in PATHS}
    context = Context(**{**request["context"], **paths})
    table = {check.name: check for check in checks_of(stage, context)}
    known: dict[str, Json] = request["known"]
    for name in request["names"]:
        channel.write(json.dumps({"begun": name}) + "\n")
        said = run_check(table[name], context, known)
        known[name] = said
        channel.write(json.dumps(said) + "\n")
        if said["broken"]:
            os._exit(3)  # a broken context may hang on its way out


def run_stage(stage: str, context: Context, deadline_s: float, again: bool = False, only: str = "") -> Record:
    """Run what has not passed or failed yet, and keep the record in the folder `out`. With `again`, failures too.

    `only` is a pattern for names of checks: the others stay as they are.
    """
    ends = time.monotonic() + deadline_s
    table = checks_of(stage, context)
    record = Record(context.out / f"{stage.rpartition('.')[2]}.json", stage)
    anew = (SKIP, FAIL) if again else (SKIP,)  # what was lacking may be here now, and costs nothing where it is not
    for name in [name for name, row in record.rows.items() if row["verdict"] in anew]:
        del record.rows[name]
    record.content["calls"].append(described(context.device, context.tiny))
    record.write()
    todo = [check for check in table if not record.is_known(check.name) and re.search(only, check.name)]
    while todo and time.monotonic() < ends:
        _run_child(stage, context, todo, record, ends)
        todo = [check for check in todo if not record.is_known(check.name)]
    for check in todo:
        record.note(check.name, LATE, 0.0, f"the stage was over after {deadline_s:.0f} s")
    record.content["rows"] = {check.name: record.rows[check.name] for check in table if check.name in record.rows}
    record.write()
    return record


def _run_child(stage: str, context: Context, todo: list[Check], record: Record, ends: float) -> None:
    """One child, until it is done, dead, or too late; every check that it began is then known."""
    settings = {"device": context.device, "tiny": context.tiny, "minutes": context.minutes}
    words = record.path.with_suffix(".log").open("a", encoding="utf-8")  # of libraries, and tracebacks
    with words as log, tempfile.TemporaryDirectory(prefix="gpu-day-", ignore_cleanup_errors=True) as scratch:
        request = {
            "context": settings,
            "scratch": scratch,
            "out": str(context.out),
            "work": str(context.work),
            "bundle": str(context.bundle) if context.bundle else None,
            "names": [check.name for check in todo],
            "known": record.rows,
        }
        child = subprocess.Popen(
            [sys.executable, str(ENTRY), "--serve", stage],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            assert child.stdin is not None
            child.stdin.write(json.dumps(request))
            child.stdin.close()
            _listen(child, {check.name: check for check in todo}, record, ends)
        finally:
            _end(child)


def _listen(child: subprocess.Popen[str], table: dict[str, Check], record: Record, ends: float) -> None:
    lines: Queue[str | None] = Queue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    current, begun = None, time.monotonic()
    while True:
        until = min(ends, begun + table[current].limit_s) if current else ends
        try:
            line = lines.get(timeout=max(0.01, until - time.monotonic()))
        except Empty:
            if current and time.monotonic() < ends:
                record.note(current, FAIL, time.monotonic() - begun, f"over its {table[current].limit_s:g} s")
            return
        if line is None:
            status = child.wait()
            if current:
                record.note(current, FAIL, time.monotonic() - begun, f"the process {_how(status)}")
            elif status not in (0, 3):
                raise SystemExit(f"the stage's process {_how(status)} outside of any check")
            return
        said = json.loads(line)
        if "begun" in said:
            current, begun = said["begun"], time.monotonic()
            print(f"  {current} ...", file=sys.stderr, flush=True)
        else:
            record.note(said["name"], said["verdict"], said["seconds"], said["reason"], said["found"])
            print(f"  {line_of(said['name'], said)}", file=sys.stderr, flush=True)
            current = None


def _how(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _end(child: subprocess.Popen[str]) -> None:
    """The child and what it started, whether it lives or not."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
