"""The record of one block, and the only reader and writer of it.

A result holds what was observed and nothing derived: raw nanoseconds, token ids, bytes, versions, and the settings that
asked for them. It is sealed with a hash of its own content, so that an edited file is refused rather than believed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, with_config
from typing_extensions import TypedDict

from claimbench.schema import sealed
from claimbench.schema.card import Card
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen
from claimbench.schema.json_file import digest
from claimbench.schema.machine import KEEPS_OTHERS, MachineIdentity, Telemetry
from claimbench.schema.outcome import Outcome

TRIES = 3
"""Of what fails in passing, in all: then it counts as a property of the cell on this machine."""


class Sample(Frozen):
    """One generation. `step_ns[0]` runs from the call to the first new token (prefill); the rest are decode steps."""

    wall_ns: int = Field(ge=0, description="host clock around the whole generation, device idle at both ends")
    step_ns: tuple[int, ...]
    step_tokens: tuple[int, ...] = Field(description="new tokens per row at each step; above 1 where steps speculate")
    tokens_sha256: str = Field(description="of all rows' new token ids")
    clock: Literal["host", "device"] = "host"
    resumed: tuple[int, ...] = Field(
        default=(), description="steps before which it waited while other arms had their turns; no time counts that"
    )


class Fidelity(Frozen):
    """A lossy cell against the reference model, teacher-forced on the cell's own tokens (prompt excluded)."""

    positions: int
    kl_mean_nats: float = Field(description="KL(reference || cell), mean over positions")
    kl_max_nats: float
    top1_agreement: float = Field(ge=0, le=1)


@with_config(KEEPS_OTHERS)
class RankRecord(TypedDict, total=False):
    """One process of a cell that ran in several, sizes in bytes; as in machine.py, every key may be absent."""

    rank: int
    host: str
    pid: int
    threads: int
    load_ns: int
    memory: dict[str, int]


class Key(Frozen):
    """Everything outside the settings that a result depends on."""

    code: str = Field(description="hash of the import closure that the cell executes, comments and docstrings left out")
    libraries: dict[str, str | None] = Field(description="version of each library that the cell executes; null: absent")
    outside: dict[str, str | None] = Field(
        default={}, description="versions of programs that it runs, hashes of what environment variables name for it"
    )
    lacking: str | None = Field(default=None, description="hash of what the machine lacks for it; null: nothing")
    machine: str = Field(description="fingerprint of the machine")
    series: int = Field(default=0, description="raised by the user to measure everything anew")

    @property
    def id(self) -> str:
        return digest(self.model_dump(mode="json"))


class Result(Frozen):
    schema_version: Literal[1, 2] = Field(default=2, description="2 has prompt_ids")
    cell: Cell
    block: int = Field(ge=0)
    key: Key
    outcome: Outcome
    passing: bool = Field(
        default=False,
        description="it failed, perhaps by no property of the cell: killed from outside, a server that died",
    )
    reason: str | None = Field(default=None, description="one line; set whenever the outcome is not ok")
    detail: str | None = Field(default=None, description="the worker's last lines, for a person to read")
    started_at: str = Field(description="UTC, ISO 8601")
    duration_s: float = Field(ge=0, description="the whole block, process start to end")
    checkpoint_sha256: str | None = Field(default=None, description="of the manifest of the weights that were loaded")
    card: Card | None = Field(default=None, description="numbers of the model, where the plan did not know them")
    machine: MachineIdentity = {}
    telemetry: Telemetry = {}
    conditions: dict[str, float] = Field(
        default={}, description="of the machine while it was timed; analysis/validity.py says what follows"
    )
    flags: tuple[str, ...] = Field(default=(), description="what else is doubtful about it, in words")
    load_ns: int | None = None
    first_call_ns: int | None = Field(default=None, description="the first generation: compilation is in here")
    warmup: tuple[Sample, ...] = ()
    samples: tuple[Sample, ...] = ()
    prompt_tokens: int | None = None
    prompt_ids: tuple[int, ...] = Field(default=(), description="that row 0 was fed; other rows were fed its ends")
    tokens: tuple[int, ...] = Field(default=(), description="new token ids of row 0 of the last sample")
    memory: dict[str, int] = Field(
        default={}, description="bytes, summed over ranks; see measuring/measure.py for the names"
    )
    ranks: tuple[RankRecord, ...] = Field(default=(), description="where a cell ran in several processes")
    energy_mj: int | None = Field(default=None, description="device energy over the timed samples, millijoules")
    proof: dict[str, object] = Field(default={}, description="what was seen to run")
    fidelity: Fidelity | None = None

    @property
    def known_cell(self) -> Cell:
        """The cell, with what is known of its model by now."""
        if self.card is None:
            return self.cell
        return self.cell.model_copy(update={"checkpoint": self.cell.checkpoint.model_copy(update={"card": self.card})})


def write(path: Path, result: Result) -> None:
    sealed.write(path, "result", result)


def write_new(path: Path, result: Result) -> None:
    """
    Raises:
        FileExistsError: something is there, and stays.
    """
    sealed.write_new(path, "result", result)


def read(path: Path) -> Result:
    """The result at `path`.

    Raises:
        ResultError: the file is missing, cut short, edited by hand, or of another schema.
    """
    return sealed.read(path, "result", Result, "Delete it and run again to measure that block anew")
