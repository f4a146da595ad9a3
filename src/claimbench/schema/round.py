"""The record of one round, and the only reader and writer of it.

A round is what is measured together: its arms, each a cell in a process of its own, are loaded one after the other and
generate in turn. Its file is sealed like a result, and says nothing that was not observed in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from claimbench.errors import ResultError
from claimbench.schema import sealed
from claimbench.schema.ceilings import Rate
from claimbench.schema.frozen import Frozen
from claimbench.schema.result import TRIES, Result, Sample

ADVICE = "Delete it and run again: the rounds that are there are kept"
TWIN = "twin"
"""The name of the arm that is the base once more."""


class Turns(Frozen):
    """One arm's turns in one pass; what it generated in them is in its result's samples, in this order."""

    number: int = Field(ge=0, description="of the pass, from 0")
    places: tuple[int, ...] = Field(description="in the order of each lap in which it had a turn, from 0")
    begun_ns: int = Field(ge=0, description="when the first of them began, since the round did, host clock")
    ended_ns: int = Field(ge=0, description="when the last of them ended")
    samples: int = Field(ge=1, description="generations")


class Arm(Frozen):
    """A cell as one round had it."""

    name: str
    slowdown: float = Field(default=0.0, ge=0, description="injected after each step, as a share of its time")
    result: Result
    ready_s: float = Field(default=0.0, ge=0, description="of the round, until it was warm: loading, and warming up")
    bound_threads: int = Field(default=0, ge=0, description="that were bound to a core each before the first turn")
    waiting_cpu: float = Field(
        default=0.0, description="CPU time that it took while others had their turn, as a share of that time"
    )
    turns: tuple[Turns, ...] = ()

    def by_pass(self) -> dict[int, tuple[Sample, ...]]:
        """What it generated at each pass."""
        found, begun = dict[int, tuple[Sample, ...]](), 0
        for turn in self.turns:
            found[turn.number] = self.result.samples[begun : begun + turn.samples]
            begun += turn.samples
        return found


class Round(Frozen):
    schema_version: Literal[1] = 1
    started_at: str = Field(description="UTC, ISO 8601")
    duration_s: float = Field(ge=0, description="the whole round, from the start of its process to its end")
    number: int = Field(default=0, ge=0, description="of its group, from 0")
    group: str = Field(default="", description="what was to be compared, for a person")
    seed: int = Field(description="of the orders")
    passes: int = Field(ge=1, description="fixed before the first of them")
    laps: int = Field(default=1, ge=1, description="of each pass: in each an arm has one turn, or none")
    in_company: bool = Field(default=True, description="false: two that do not fit together, back to back (ABBA)")
    protocol: str = Field(default="", description="hash of the claims and of the rules that judge them, as they were")
    arms: tuple[Arm, ...]
    rates: tuple[dict[str, Rate], ...] = Field(
        default=(), description="read in turn with the arms: bytes of memory (`read`) and operations by dtype, a second"
    )
    conditions: dict[str, float] = Field(
        default={}, description="of the machine while the arms took turns; analysis/validity.py says what follows"
    )

    @property
    def timed_s(self) -> float:
        """Seconds inside timed generations."""
        return sum(one.wall_ns for arm in self.arms for one in arm.result.samples) / 1e9


def write(path: Path, record: Round) -> None:
    sealed.write(path, "round", record)


def write_new(path: Path, record: Round) -> None:
    """
    Raises:
        FileExistsError: a round is there, and stays.
    """
    sealed.write_new(path, "round", record)


def read(path: Path) -> Round:
    """The round at `path`.

    Raises:
        ResultError: the file is missing, cut short, edited by hand, or of another schema.
    """
    return sealed.read(path, "round", Round, "Delete it: the next run measures another round")


def is_another_try_due(arms: Sequence[Arm]) -> bool:
    """Whether a cell that had these `arms`, its twin's left out, failed in passing alone, and not yet `TRIES` times."""
    failed = [arm for arm in arms if arm.name != TWIN and arm.result.passing]
    return 0 < len(failed) < TRIES and all(arm.result.passing for arm in arms)


class Rounds(Frozen):
    """What a study's rounds came to: the files, and the time that they took."""

    schema_version: Literal[1] = 1
    budget_minutes: float
    seals: dict[str, str]
    """Of each round, by the path of its file."""
    protocols: dict[str, int] = {}
    """How many rounds were measured under which claims and rules, see analysis/protocol.py."""
    seconds: float
    timed_seconds: float
    """Inside timed generations."""


def write_all(path: Path, budget_minutes: float, rounds: Mapping[str, Round]) -> None:
    summary = Rounds(
        budget_minutes=budget_minutes,
        protocols=dict(Counter(record.protocol for record in rounds.values())),
        seals={name: sealed.seal_of(record.model_dump(mode="json")) for name, record in rounds.items()},
        seconds=round(sum(record.duration_s for record in rounds.values()), 3),
        timed_seconds=round(sum(record.timed_s for record in rounds.values()), 3),
    )
    sealed.write(path, "rounds", summary)


def read_summary(path: Path) -> Rounds:
    """
    Raises:
        ResultError: it is missing, cut short, or edited by hand.
    """
    return sealed.read(path, "rounds", Rounds, ADVICE)


def read_all(path: Path) -> dict[str, Round]:
    """Every round that the summary at `path` lists, by its path.

    Raises:
        ResultError: one is missing, or is not the one that the summary was made from.
    """
    summary = read_summary(path)
    found = {name: read(Path(name)) for name in summary.seals}
    for name in found:
        if sealed.seal_at(Path(name)) != summary.seals[name]:
            raise ResultError(f"{name} is not the round that {path} lists. {ADVICE}: {path}")
    return found
