"""The record of one round, and the only reader and writer of it.

A round is what is measured together: its arms, each a cell in a process of its own, are loaded one after the other and
generate in turn. Its file is sealed like a result, and says nothing that was not observed in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from claimbench.schema import sealed
from claimbench.schema.cell import Cell, Frozen
from claimbench.schema.outcome import Outcome
from claimbench.schema.result import Sample


class Turn(Frozen):
    """What an arm generated when it was its turn."""

    number: int = Field(ge=0, description="of the pass, from 0")
    place: int = Field(ge=0, description="in the order of this pass, from 0")
    begun_ns: int = Field(ge=0, description="since the round began, host clock")
    samples: tuple[Sample, ...]
    others_cpu_s: float = Field(
        default=0.0, description="CPU time that the other arms took meanwhile: they are to be idle"
    )


class Arm(Frozen):
    """A cell as one round had it."""

    name: str
    cell: Cell
    slowdown: float = Field(default=0.0, ge=0, description="injected after each step, as a share of its time")
    outcome: Outcome
    reason: str | None = Field(default=None, description="one line; set whenever the outcome is not ok")
    detail: str | None = Field(default=None, description="the last lines of its process, for a person to read")
    load_ns: int | None = None
    prompt_tokens: int | None = None
    warmup: tuple[Sample, ...] = ()
    turns: tuple[Turn, ...] = ()
    memory: dict[str, int] = Field(default={}, description="bytes; see measuring/measure.py for the names")


class Round(Frozen):
    schema_version: Literal[1] = 1
    started_at: str = Field(description="UTC, ISO 8601")
    duration_s: float = Field(ge=0, description="the whole round, from the start of its process to its end")
    machine: str = Field(description="fingerprint of the machine")
    seed: int = Field(description="of the orders")
    passes: int = Field(ge=1, description="fixed before the round began")
    arms: tuple[Arm, ...]
    flags: tuple[str, ...] = Field(default=(), description="doubts about validity")

    @property
    def timed_s(self) -> float:
        """Seconds inside timed generations."""
        return sum(one.wall_ns for arm in self.arms for turn in arm.turns for one in turn.samples) / 1e9


def write(path: Path, record: Round) -> None:
    sealed.write(path, "round", record)


def read(path: Path) -> Round:
    """The round at `path`.

    Raises:
        ResultError: the file is missing, cut short, edited by hand, or of another schema.
    """
    return sealed.read(path, "round", Round, "Delete it: the next run measures another round")
