"""What the processes of a block tell each other as JSON, and what it adds up to."""

from __future__ import annotations

from typing import Protocol, TypedDict

from claimbench.proof import Findings
from claimbench.schema.machine import MachineIdentity, Telemetry
from claimbench.schema.outcome import Outcome
from claimbench.schema.result import RankRecord

Dumped = dict[str, object]
"""A model of schema/ as JSON."""


class Message(TypedDict, total=False):
    """Of a worker, or of a rank; `event` says which other keys are there."""

    event: str
    name: str
    """Of a phase."""
    conditions: dict[str, float]
    unread: dict[str, str]
    """Why one of the conditions is absent, by its name."""
    sha256: str
    """Of the checkpoint's manifest."""
    card: Dumped | None
    """Of the model, where the plan had none."""
    generation_s: float
    """As far as a warm-up can tell."""
    count: int
    """Of threads that were bound to a core each."""
    load_ns: int
    prompt_ids: list[int]
    sample: Dumped
    flag: str
    tokens: list[int]
    memory: dict[str, int]
    ranks: list[RankRecord]
    proof: Findings
    fidelity: Dumped | None
    energy_mj: int
    outcome: Outcome
    reason: str
    signal: str | None
    """That killed a rank, by name."""
    passing: bool
    """It may end well at another try."""
    detail: str
    """What the rank printed last."""


class RankMessage(Message, total=False):
    """Of rank 0, which calls, or of another rank, which answers."""

    call: str
    arguments: list[object]
    answer: object


class BlockFacts(TypedDict, total=False):
    """Fields of a `Result`, as far as they are known."""

    outcome: Outcome
    passing: bool
    reason: str | None
    detail: str | None
    checkpoint_sha256: str
    card: Dumped | None
    machine: MachineIdentity
    telemetry: Telemetry
    conditions: dict[str, float]
    flags: list[str]
    load_ns: int
    first_call_ns: int
    warmup: list[Dumped]
    samples: list[Dumped]
    prompt_tokens: int
    prompt_ids: list[int]
    tokens: list[int]
    memory: dict[str, int]
    ranks: list[RankRecord]
    energy_mj: int
    proof: Findings
    fidelity: Dumped | None


class Say(Protocol):
    """Tells one event to whoever supervises."""

    def __call__(self, event: str, **content: object) -> None: ...
