"""The fresh process of one block: load, warm up, time, prove, compare; it reports as it goes.

It reads one request (JSON) from standard input and writes one message (a JSON line) per event to the descriptor that
was its standard output; what libraries print goes to standard error. A worker that is killed leaves its last message.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil

from claimbench import backends, optimizations
from claimbench.backends import Column, Session
from claimbench.checkpoints.prompt import require_room
from claimbench.errors import CorruptCheckpoint, OutOfMemory, Refusal, ServerFailed, SourceError, WrongOutput
from claimbench.measuring.block_request import BlockRequest
from claimbench.measuring.clock import time_generation
from claimbench.measuring.coordinator import run_ranks
from claimbench.measuring.messages import Say
from claimbench.measuring.rank_protocol import LeaderSession, RankRequest, Record
from claimbench.schema.cell import Cell
from claimbench.schema.outcome import Outcome
from claimbench.schema.result import Fidelity, Sample
from claimbench.system import gpu_watch, gpus, machine, memory
from claimbench.system.gpu_watch import GpuWatch
from claimbench.system.machine import CpuTicks
from claimbench.system.processes import die_with_parent
from claimbench.system.unread import Readings

if TYPE_CHECKING:
    import torch


class Generates(Protocol):
    """A session, or what stands before one."""

    def generate(self) -> Iterator[Column]: ...

    @property
    def prompt_ids(self) -> Sequence[int]: ...


STEADY = 0.05  # a warm-up generation that is at most this much faster than the one before it


def main() -> int:
    """Serve one request. Exit status 0 when a message says how it ended, whatever the outcome."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    die_with_parent()
    request = BlockRequest.model_validate_json(sys.stdin.read())

    def say(event: str, **content: object) -> None:
        channel.write(json.dumps({"event": event, **content}) + "\n")

    def work() -> None:
        cell = request.cell
        if cell.device == "cpu":
            gpus.hide()
        command = backends.launch(cell)
        if command:
            run_ranks(RankRequest(block=request), command, say)
            return
        if cell.protocol.memory_limit:
            resource.setrlimit(resource.RLIMIT_AS, (cell.protocol.memory_limit, cell.protocol.memory_limit))
        run_block(request, say)

    guarded(work, say)
    return 0


def guarded(work: Callable[[], None], say: Say) -> None:
    """Do `work`; what it raises about the experiment is said, and what is a mistake of Claimbench's own is raised."""
    try:
        work()
    except Refusal as refusal:
        passing = isinstance(refusal, ServerFailed)
        say("refused", outcome=refusal.outcome, reason=str(refusal), passing=passing)
    except SourceError as error:
        passing = isinstance(error, CorruptCheckpoint)
        say("refused", outcome=Outcome.ERROR, reason=str(error), passing=passing)
    except (MemoryError, RuntimeError, OSError, ValueError) as error:
        traceback.print_exc()
        out_of_memory = is_out_of_memory(error)
        say("refused", outcome=Outcome.OOM if out_of_memory else Outcome.ERROR, reason=_one_line(error))


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:500]


def is_out_of_memory(error: BaseException) -> bool:
    """torch raises RuntimeError where its CPU allocator gives up, and a type of its own on a GPU."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError | OutOfMemory)
        or type(error).__name__ == "OutOfMemoryError"
        or any(
            sign in text for sign in ("can't allocate memory", "out of memory", "cannot allocate memory", "bad_alloc")
        )
    )


def run_block(request: BlockRequest, say: Say, lead: LeaderSession | None = None) -> None:
    """Measure one block; every finding is said as soon as it is known. `lead` is of rank 0 among several."""
    cell = request.cell
    backend = backends.find(cell.backend)
    say("phase", name="import")
    backends.import_libraries(cell, request.checkpoint)
    require_room(cell, request.checkpoint)
    say("phase", name="load")
    record = Record()
    session = backend.load(cell, request.checkpoint or Path(), request.draft)
    try:
        record.note_loaded()
        if lead:
            session = lead.share(session)
        say("loaded", load_ns=record.since_begun(), prompt_ids=list(session.prompt_ids))
        record.memory |= session.memory()
        memory.reset_peak()
        warm_up(cell, session, say)
        rows = _timed_samples(cell, session, say, lead)
        elsewhere = getattr(session, "peaks", dict[str, int])()  # of processes that the session started
        record.memory |= memory.total([memory.peaks(cell.device), elsewhere])
        if lead:
            everyone = [record.described(), *lead.records()]
            say("memory", memory=memory.total(each["memory"] for each in everyone), ranks=everyone)
        else:
            say("memory", memory=record.memory)
        prove(request, session, rows[0], say)
    except BaseException:
        if lead is None:  # the other ranks may be inside a collective call: they are ended, not waited for
            session.close()
        raise
    session.close()
    say("done")


def prove(request: BlockRequest, session: Session, tokens: list[int], say: Say) -> None:
    """Say what ran, and how far it is from the reference, where there is one to compare with; `tokens` are of row 0."""
    gc.freeze()  # nothing is timed from here on, and a collection takes a fifth of a second with torch in memory
    say("phase", name="proof")
    say("proof", proof=session.prove())
    if request.reference and tokens and optimizations.may_differ(request.cell, request.reference):
        checkpoint = request.reference_checkpoint or request.checkpoint or Path()
        _compare(session, request.reference, checkpoint, tokens, say)


def _compare(session: Session, reference: Cell, checkpoint: Path, tokens: list[int], say: Say) -> None:
    """Both models forced along `tokens`: how far apart are their distributions, and do they rank the same token first?

    Nothing is loaded for a system that gives no probabilities: its tokens alone are compared.
    """
    say("phase", name="fidelity")
    try:
        ours = session.log_probs(tokens)  # [len(tokens), vocabulary]
        fidelity = None if ours is None else _distance(ours, reference, checkpoint, tokens)
    except (OutOfMemory, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say("fidelity", fidelity=None)
        say("flag", flag="not compared with the reference model: it does not fit beside this one")
        return
    say("fidelity", fidelity=fidelity.model_dump(mode="json") if fidelity else None)


def _generate(cell: Cell, session: Generates) -> tuple[Sample, list[list[int]]]:
    return time_generation(session.generate(), cell.workload)


def warm_up(cell: Cell, session: Generates, say: Say) -> None:
    """Generate until a generation is no longer clearly faster than the one before it, within the protocol's bounds."""
    protocol = cell.protocol
    if protocol.warmup_tokens is not None:
        say("phase", name="warm-up")
        for _ in range(protocol.warmup_min):
            _begin(session, protocol.warmup_tokens - len(session.prompt_ids))
        return
    walls: list[int] = []
    steady = False
    while len(walls) < protocol.warmup_min or (not steady and len(walls) < protocol.warmup_max):
        say("phase", name="first call" if not walls else "warm-up")
        sample, _ = _generate(cell, session)
        walls.append(sample.wall_ns)
        say("warmup", sample=sample.model_dump(mode="json"))
        steady = len(walls) > 1 and walls[-1] > (1 - STEADY) * walls[-2]


def _begin(session: Generates, new_tokens: int) -> None:
    """The first `new_tokens` tokens of a generation, one at least."""
    steps, made = session.generate(), 0
    for column in steps:
        made += len(column[0])
        if made >= new_tokens:
            break
    if isinstance(steps, Generator):
        steps.close()


def _timed_samples(cell: Cell, session: Session, say: Say, lead: LeaderSession | None) -> list[list[int]]:
    rows: list[list[int]] = []
    energy = Energy(cell)
    energy.resume()
    watch = Readings().read("gpu", lambda: GpuWatch(_family())) if cell.device == "cuda" else None
    ticks_before, start = _ticks(lead), time.perf_counter()
    for number in range(cell.protocol.samples):
        say("phase", name=f"sample {number + 1} of {cell.protocol.samples}")
        sample, rows = _generate(cell, session)
        say("sample", sample=sample.model_dump(mode="json"))
    seconds, ticks = time.perf_counter() - start, _ticks(lead)
    energy.pause()
    energy.tell(say)
    conditions = neighbours(ticks_before, ticks, seconds) | (of_gpu(watch.end()) if watch else {})
    unread = ticks_before["unread"] | ticks["unread"]
    say("conditions", conditions={name: round(value, 4) for name, value in conditions.items()}, unread=unread)
    say("tokens", tokens=rows[0])
    return rows


class Energy:
    """What the GPUs of a cell take while it computes, between each `resume` and the next `pause`."""

    def __init__(self, cell: Cell) -> None:
        self.devices = cell.devices if cell.device == "cuda" else 0
        self.spent_mj: int | None = 0 if self.devices else None
        self._before: int | None = None

    def resume(self) -> None:
        self._before = gpus.energy_mj(self.devices) if self.devices else None

    def pause(self) -> None:
        after = gpus.energy_mj(self.devices) if self.devices else None
        known = None not in (self.spent_mj, self._before, after)
        self.spent_mj = self.spent_mj + after - self._before if known else None  # type: ignore[operator]

    def tell(self, say: Say) -> None:
        if self.spent_mj is not None:
            say("energy", energy_mj=self.spent_mj)


def _ticks(lead: LeaderSession | None) -> CpuTicks:
    """CPU time so far. What the other ranks took is our own."""
    ticks = machine.cpu_ticks()
    return {**ticks, "own": ticks["own"] + lead.cpu_seconds()} if lead and "own" in ticks else ticks


def neighbours(before: CpuTicks, after: CpuTicks, seconds: float) -> dict[str, float]:
    """What others did to this machine meanwhile. The kernel counts in ticks of 10 ms: short times say nothing."""
    if seconds < 0.5 or before["unread"] or after["unread"]:
        return {}
    cores, ours = machine.affinity_cores(), machine.cores_worth()
    foreign = (after["busy"] - before["busy"]) - (after["own"] - before["own"])
    in_our_way = foreign - (cores - ours) * seconds  # of a quota's cores those are free that it does not pay for
    steal = (after["steal"] - before["steal"]) / (cores * seconds)
    return {"foreign_cpu": max(0.0, in_our_way) / (ours * seconds), "steal": steal}


def of_gpu(seen: gpu_watch.Seen) -> dict[str, float]:
    """The conditions among what was seen of a GPU."""
    return {name: float(value) for name, value in seen.items()}  # type: ignore[arg-type]


def _family() -> list[int]:
    """This process and all that it started, servers among them."""
    own = psutil.Process()
    return [own.pid, *(child.pid for child in own.children(recursive=True))]


def _distance(ours: torch.Tensor, reference: Cell, checkpoint: Path, tokens: list[int]) -> Fidelity | None:
    """Of `ours`, log-probabilities of shape [len(tokens), vocabulary], from the reference's; None: it gives none."""
    other = backends.find(reference.backend).load(reference, checkpoint, None)
    try:
        theirs = other.log_probs(tokens)
    finally:
        other.close()
    if theirs is None:
        return None
    if not (bool(ours.isfinite().all()) and bool(theirs.isfinite().all())):
        raise WrongOutput("log-probabilities hold NaN or infinity")
    kl = (theirs.exp() * (theirs - ours)).sum(-1)  # [len(tokens)]
    agree = ours.argmax(-1) == theirs.argmax(-1)
    return Fidelity(
        positions=len(tokens),
        kl_mean_nats=float(kl.mean()),
        kl_max_nats=float(kl.max()),
        top1_agreement=float(agree.float().mean()),
    )


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # taking the libraries down in order takes a second, and everything has been said
