"""One arm of a round: a process that loads a cell and generates when it is its turn, and at no other time.

It is forked from the round's process, which has imported the libraries and computes nothing (see round_process.py),
answers one call at a time over its line, and waits without computing in between. What its libraries print goes to a
file.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import sys
import time
from collections.abc import Generator, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

from pydantic import Field

from claimbench import backends, optimizations
from claimbench.backends import Column, Session
from claimbench.checkpoints import loaded_model, manifest
from claimbench.checkpoints.prompt import require_room
from claimbench.errors import Unavailable
from claimbench.measuring.block_request import BlockRequest
from claimbench.measuring.clock import Waits, time_generation
from claimbench.measuring.coordinator import run_ranks
from claimbench.measuring.messages import Say
from claimbench.measuring.rank_protocol import LeaderSession, RankRequest, Record, receive, send
from claimbench.measuring.worker import Energy, guarded, prove
from claimbench.planning.availability import missing_requirement
from claimbench.schema.cell import Device
from claimbench.schema.frozen import Frozen
from claimbench.schema.result import Key
from claimbench.system import affinity, gpus, memory
from claimbench.system.processes import die_with_parent
from claimbench.technique import Optimization

WARM_S = 1.0
"""Warm-up generations go on until they have taken this long: one is enough for a slow cell."""
WARM_STEPS = 3


class ArmRequest(Frozen):
    name: str
    block: BlockRequest
    key: Key
    proves: bool = True
    """Whether it is to prove what ran, and to compare itself with the reference, once all turns are over."""
    times_first_call: bool = False
    """Whether its first call is a whole generation even where nothing is compiled."""
    turns: int | None = Field(default=None, ge=1)
    """Passes in which it has a turn, spread evenly; None: in all. A slow cell whose claims are clear needs few."""
    ready_s: float | None = None
    """What its start took in an earlier round."""
    generation_s: float | None = None
    """And a generation; None: as the warm-up says."""
    python: str | None = None
    """The interpreter of the environment that the backend runs in; None: the round's own, forked from its process."""
    slowdown: float = 0.0
    """Injected after each step, as a share of its time: what a comparison must find."""


class Slowed:
    """A session whose every step takes longer by a share of its time, spent in computing, as a slower kernel would."""

    def __init__(self, session: Session, share: float, device: Device) -> None:
        self.session, self.share, self.device = session, share, device

    def generate(self) -> Iterator[Column]:
        begun = time.perf_counter_ns()
        for column in self.session.generate():
            if self.device == "cuda":
                import torch

                torch.cuda.synchronize()
            now = time.perf_counter_ns()
            until = now + int((now - begun) * self.share)
            while time.perf_counter_ns() < until:
                pass
            yield column
            begun = time.perf_counter_ns()


def main(descriptor: str, log: str) -> None:
    """The life of an arm in an interpreter of its own, which inherits its end of the line."""
    line: Connection = Connection(int(descriptor))
    serve(line, receive(line)["request"], log)


def serve(line: Connection, request_json: str, log: str) -> None:
    """The whole life of an arm. It ends with its line, and with the process that holds the other end."""
    die_with_parent()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    request = ArmRequest.model_validate_json(request_json)

    def say(event: str, **content: object) -> None:
        send(line, {"event": event, **content})

    def work() -> None:
        cell = request.block.cell
        reason = missing_requirement(cell)
        if reason:
            raise Unavailable(reason)
        if cell.device == "cpu":
            gpus.hide()
        command = backends.launch(cell)
        if command:
            run_ranks(RankRequest(block=request.block, arm=request_json), command, say, line)
            return
        if cell.protocol.memory_limit:
            resource.setrlimit(resource.RLIMIT_AS, (cell.protocol.memory_limit, cell.protocol.memory_limit))
        answer(line, request, say)

    guarded(work, say)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def answer(line: Connection, request: ArmRequest, say: Say, lead: LeaderSession | None = None) -> None:
    """Load, and do what is asked over `line` until it is to end. `lead` is of rank 0 among several."""
    cell, checkpoint = request.block.cell, request.block.checkpoint
    if request.block.draft:
        manifest.verify(request.block.draft)
    if checkpoint:
        sha256, card = manifest.verify(checkpoint).sha256, loaded_model.unplanned_card(cell.checkpoint, checkpoint)
        say("checkpoint", sha256=sha256, card=card.model_dump(mode="json") if card else None)
    backends.import_libraries(cell, checkpoint)
    require_room(cell, checkpoint)
    record = Record()
    session: Session = backends.find(cell.backend).load(cell, checkpoint or Path(), request.block.draft)
    try:
        record.note_loaded()
        session = lead.share(session) if lead else session
        load_ns = record.since_begun() if lead else record.load_ns  # until the last rank had loaded
        say("loaded", load_ns=load_ns, prompt_ids=list(session.prompt_ids))
        record.memory |= session.memory()
        timed = Slowed(session, request.slowdown, cell.device) if request.slowdown else session
        say("ready")
        rows: list[list[int]] = []
        bound, cores = dict[int, int](), os.sched_getaffinity(0)
        energy = Energy(cell)
        while True:
            message = receive(line)
            if message["call"] == "warm up":
                memory.reset_peak()
                before = affinity.cpu_ns()
                _warm_up(request, timed, say)
                bound = affinity.spread(before) if cell.device == "cpu" else {}
                say("bound", count=len(bound))
                gc.collect()
                gc.freeze()  # a collection in the middle of a turn would go over what only loading made
            elif message["call"] == "turn":
                energy.resume()
                for _ in range(message["generations"]):
                    waits = _waits(line, cell.workload.new_tokens, message["parts"], say, energy)
                    sample, rows = time_generation(timed.generate(), cell.workload, waits)
                    say("sample", sample=sample.model_dump(mode="json"))
                energy.pause()
            else:
                break
            say("ready")
        affinity.release(bound, cores)
        elsewhere = getattr(session, "peaks", dict[str, int])()  # of processes that the session started
        record.memory |= memory.total([memory.peaks(cell.device), elsewhere])
        everyone = [record.described(), *lead.records()] if lead else []
        total = memory.total(each["memory"] for each in everyone) if everyone else record.memory
        say("memory", memory=total, ranks=everyone)
        if rows:
            energy.tell(say)
            say("tokens", tokens=rows[0])
        if request.proves:
            prove(request.block, session, rows[0] if rows else [], say)
    except BaseException:
        if lead is None:  # the other ranks may be inside a collective call: they are ended, not waited for
            session.close()
        raise
    session.close()
    say("done")


def _waits(line: Connection, new_tokens: int, parts: int, say: Say, energy: Energy) -> Waits | None:
    """Where a generation in `parts` ends a turn and waits for the next one."""

    def wait() -> None:
        energy.pause()
        say("ready")
        if receive(line)["call"] != "turn":
            raise RuntimeError("a generation was left in the middle")
        energy.resume()

    marks = [math.ceil(part * new_tokens / parts) for part in range(1, parts)]
    return Waits(marks, wait) if marks else None


def _warm_up(request: ArmRequest, session: Slowed | Session, say: Say) -> None:
    """A few steps; whole generations, two at least, where the first call compiles or sets up a device; one where asked.

    Whether a cell is steady by then shows in its passes; here nothing is waited for. The time of a whole generation is
    said as far as it is known, to fix the number of passes.
    """
    cell = request.block.cell
    protocol = cell.protocol
    sets_up = cell.device == "cuda" or any(_sets_up(optimizations.find(use.name)) for use in cell.optimizations)
    if (
        not (sets_up or request.times_first_call)
        and protocol.warmup_min < 2
        and cell.workload.new_tokens > 2 * WARM_STEPS
        and backends.stands_still(cell)
    ):
        say("phase", name="warm-up")
        say("warmed up", generation_s=_some_steps(session, cell.workload.new_tokens))
        return
    least = max(protocol.warmup_min, 2 if sets_up else 1)
    walls: list[int] = []
    while len(walls) < least or (sum(walls) < WARM_S * 1e9 and len(walls) < protocol.warmup_max):
        say("phase", name="warm-up" if walls else "first call")
        sample, _ = time_generation(session.generate(), cell.workload)
        walls.append(sample.wall_ns)
        say("warmup", sample=sample.model_dump(mode="json"))
    say("warmed up", generation_s=walls[-1] / 1e9)


def _some_steps(session: Slowed | Session, new_tokens: int) -> float:
    """Generate a little, and say how long a whole generation would take."""
    begun, stamps, tokens = time.perf_counter(), list[float](), list[int]()
    steps = session.generate()
    for column in islice(steps, WARM_STEPS):
        stamps.append(time.perf_counter())
        tokens.append(len(column[0]))
    if isinstance(steps, Generator):
        steps.close()
    step_s = (stamps[-1] - stamps[0]) / max(1, sum(tokens[1:]))
    return stamps[0] - begun + step_s * (new_tokens - tokens[0])


def _sets_up(technique: Optimization) -> bool:
    return technique.SEAM == "compile"


if __name__ == "__main__":
    main(*sys.argv[1:])
