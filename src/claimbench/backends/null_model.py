"""A backend without a model: it steps at a set pace with set tokens, or fails in a set way.

Every rule, outcome and verdict is tested with it in seconds; it is also what the clock is checked against. With
several `devices` it runs as that many processes, as a system with tensor parallelism does. Its one seam, `pace`, is
there for tests of how a technique is added: `apply` changes a `Pace`, `prove` reads a `NullEvidence`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from claimbench import optimizations
from claimbench.errors import OutOfMemory, Unavailable, WrongOutput
from claimbench.proof import Findings
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen
from claimbench.system import launchers
from claimbench.technique import Technique

REFERENCE = "null_model"
ENVIRONMENT = "core"
LIBRARIES: tuple[str, ...] = ()
SEAMS = frozenset({"pace"})

Failure = Literal["oom", "allocate", "eat", "kill", "hang", "nan", "short", "unavailable", "unproven", "error"]


class Options(Frozen):
    """A decode step takes `step_ms` + `row_ms` x batch; prefill takes `prefill_ms`."""

    load_ms: float = Field(default=0, ge=0)
    prefill_ms: float = Field(default=0, ge=0)
    step_ms: float = Field(default=0, ge=0)
    row_ms: float = Field(default=0, ge=0)
    first_call_ms: float = Field(default=0, ge=0, description="added to the first generation, as compiling would be")
    token: int = Field(default=1, ge=0, description="the token that every step emits")
    fits_batch: int | None = Field(default=None, description="out of memory above this batch")
    fails: Failure | None = None
    fails_step: int = Field(default=0, ge=0, description="before which token it fails")
    devices: int = Field(default=1, ge=1, description="processes")
    nodes: int = Field(default=1, ge=1, description="machines of a SLURM job that the processes are spread over")
    oversubscribe: bool = Field(default=False, description="more processes than cores are fine")
    fails_rank: int | None = Field(default=None, description="only this one fails; the others wait for it for ever")
    strays_rank: int | None = Field(default=None, description="this one emits other tokens than the others")
    strays_call: int | None = Field(default=None, description="this generation and later ones emit other tokens")
    launcher: Literal["processes", "torchrun", "srun", "missing"] = "processes"


def unavailable(cell: Cell) -> str | None:
    options = Options.model_validate(cell.options)
    return launchers.too_many(options.devices, cell.device, nodes=options.nodes, oversubscribe=options.oversubscribe)


def launch(cell: Cell) -> list[str] | None:
    options = Options.model_validate(cell.options)
    if options.devices == 1:
        return None
    known = {"processes": launchers.processes, "torchrun": launchers.torchrun, "srun": launchers.srun}
    return known[options.launcher](options.devices) if options.launcher in known else ["no-such-launcher"]


def _pass_time(milliseconds: float) -> None:
    """Busy, not asleep: the clock is checked against this, and a sleep overshoots by the timer's slack."""
    end = time.perf_counter_ns() + int(milliseconds * 1e6)
    while time.perf_counter_ns() < end:
        pass


@dataclass
class Pace:
    """Milliseconds that a pass takes."""

    prefill_ms: float
    step_ms: float


@dataclass(frozen=True)
class NullEvidence:
    passed_ms: list[float]
    """What each pass of the last generation took."""


class NullSession:
    prompt_ids = (0, 1, 2, 3)

    def __init__(self, cell: Cell, techniques: tuple[Technique, ...]) -> None:
        self.cell, self.techniques = cell, techniques
        self.options = options = Options.model_validate(cell.options)
        self.calls = 0
        self.passed_ms: list[float] = []
        self.pace = Pace(options.prefill_ms, options.step_ms + options.row_ms * cell.workload.batch)
        for technique in techniques:
            technique.apply(self.pace)
        _pass_time(self.options.load_ms)

    def generate(self) -> Iterator[list[list[int]]]:
        options, workload = self.options, self.cell.workload
        self.calls += 1
        if options.fits_batch is not None and workload.batch > options.fits_batch:
            raise OutOfMemory(f"batch {workload.batch} does not fit: at most {options.fits_batch}")
        self._fail_at(0)
        self.passed_ms = []
        self._pass_time(self.pace.prefill_ms + (options.first_call_ms if self.calls == 1 else 0))
        count = workload.new_tokens - (1 if options.fails == "short" else 0)
        strays = options.strays_rank == launchers.rank() or self.calls >= (options.strays_call or self.calls + 1)
        for step in range(count):
            if step:
                self._fail_at(step)
                self._pass_time(self.pace.step_ms)
            yield [[options.token + strays]] * workload.batch

    def _pass_time(self, milliseconds: float) -> None:
        _pass_time(milliseconds)
        self.passed_ms.append(milliseconds)

    def _fail_at(self, step: int) -> None:
        options = self.options
        if step != options.fails_step or options.fails is None:
            return
        elsewhere = options.fails_rank not in (None, launchers.rank())
        self._fail("hang" if elsewhere else options.fails)

    @staticmethod
    def _fail(failure: Failure | None) -> None:
        if failure == "oom":
            raise OutOfMemory("asked to run out of memory")
        if failure == "allocate":
            bytearray(1 << 62)
        if failure == "eat":
            held = []
            while True:
                held.append(bytearray(b"x" * (1 << 24)))
        if failure == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if failure == "hang":
            while True:
                time.sleep(3600)
        if failure == "nan":
            raise WrongOutput("the logits hold NaN")
        if failure == "unavailable":
            raise Unavailable("asked to be unavailable")
        if failure == "error":
            raise RuntimeError("asked to fail")

    def memory(self) -> dict[str, int]:
        return {"weights": 0, "step_weights": 0, "kv_cache": 0}

    def prove(self) -> Findings:
        if self.options.fails == "unproven":
            raise WrongOutput("asked to run something else")
        seen = NullEvidence(self.passed_ms)
        proven = {technique.name: technique.prove(seen) for technique in self.techniques}
        return {"calls": self.calls, "optimizations": proven} if proven else {"calls": self.calls}

    def log_probs(self, tokens: list[int]) -> None:
        return None

    def close(self) -> None:
        self.calls = 0


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> NullSession:
    return NullSession(cell, optimizations.used_by(cell))
