"""What judging writes, `results/verdicts.json`: claims with their checks, cells in a few numbers, recommendations."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

from claimbench.schema import sealed
from claimbench.schema.cell import Device, Dtype
from claimbench.schema.frontier import Frontier
from claimbench.schema.frozen import Frozen
from claimbench.schema.interval import Interval
from claimbench.schema.outcome import Outcome

VERSION: Final = 1


class Verdict(StrEnum):
    SUPPORTED = "supported"
    REFUTED = "refuted"
    BOUNDED = "bounded"
    """A claim that nothing changes, not decided: no difference was found, and none larger than is said can be there."""
    UNDECIDED = "undecided"
    NOT_RUNNABLE = "not runnable here"
    AGREES = "agrees on paper"
    """Computed from the document's own figures, which nothing that is measured here can support or refute."""
    DIFFERS = "differs on paper"


ON_PAPER = (Verdict.AGREES, Verdict.DIFFERS)


class ClaimVerdict(Frozen):
    study: str
    id: str
    kind: str
    statement: str
    published: str | None
    note: str | None
    verdict: Verdict
    reason: str | None
    checks: tuple[CheckVerdict, ...]


class Verdicts(Frozen):
    """All that a report says."""

    schema_version: Literal[1] = VERSION
    device: str
    device_name: str | None
    tolerance: float
    claims: tuple[ClaimVerdict, ...]
    cells: dict[str, CellSummary]
    """Every cell of the plan, by id."""
    frontiers: dict[str, Frontier] = {}
    recommendations: tuple[Recommendation, ...]
    left_out: tuple[LeftOut, ...] = ()
    """Of the recommendations."""
    made_of: dict[str, str] = {}
    """Seals of the inputs, by name."""


class Needed(Frozen):
    """What would settle a check that is undecided, if its estimate and its spread stayed as they are."""

    rounds: int | None
    """In all; None: more than any budget has."""
    minutes: float | None
    """For the rounds that are lacking."""
    passes: int | None
    """Of one more round; None: one round cannot."""
    pass_to_round_sd: float = 1.0
    """Standard deviation of a single pass over that of what rounds differ by, whatever their passes."""


class CheckVerdict(Frozen):
    """What a check found. `low` and `high` are the ends of a 95 % interval, null where there is none."""

    kind: str
    metric: str | None
    of: str | None
    to: str | None
    sentence: str
    verdict: Verdict
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    expect: str = ""
    """Where its number must lie, as a reader sees it."""
    published: float | None = None
    reason: str | None = None
    needed: Needed | None = None
    """Only where it is undecided and measured in rounds."""
    blocks: int = 0
    results: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()


class MetricSummary(Frozen):
    """A metric of one cell. `low` and `high` are the ends of a 95 % interval, null where there is none."""

    value: float
    low: float | None
    high: float | None
    blocks: tuple[float, ...]
    """The median of each block that gave a number."""

    @property
    def interval(self) -> Interval:
        return Interval(self.value, self.low, self.high, len(self.blocks))


class CellSummary(Frozen):
    """A cell in a few numbers: how its blocks ended, what was asked for, what was measured, and what it agrees with."""

    outcome: Outcome
    reason: str | None
    flags: tuple[str, ...]
    """Doubts about its blocks, each once."""
    blocks: int
    blocks_ok: int
    reference: str | None
    """Id of the cell whose tokens it is compared with."""
    is_reference: bool
    exact: bool
    backend: str
    optimizations: tuple[str, ...]
    checkpoint: str
    dtype: Dtype
    device: Device
    batch: int
    prompt_tokens: int | None
    new_tokens: int
    metrics: dict[str, MetricSummary]
    """By name; metrics that were not measured are absent."""
    tokens_match: bool | None
    token_agreement: float | None
    first_divergence: int | None
    kl_mean_nats: float | None
    top1_agreement: float | None
    ceiling_ms: float | None
    ceiling_fraction: float | None
    prefill_ceiling_fraction: float | None
    above_ceiling: bool
    results: tuple[str, ...]

    def value(self, metric: str) -> float | None:
        """None where it was not measured."""
        return self.metrics[metric].value if metric in self.metrics else None


Objective = Literal["latency", "throughput", "memory"]


class Place(Frozen):
    study: str
    address: str
    title: str


class Cost(Frozen):
    """What the gain is paid with. Ratios are cell over reference."""

    memory_ratio: float | None
    """Of the peak of the process, or of the device."""
    weights_ratio: float | None
    decode_ratio: float | None
    step_ratio: float | None
    first_call_s: float | None
    first_call_extra_s: float | None
    break_even_tokens: float | None
    tokens_match: bool | None
    token_agreement: float | None
    first_divergence: int | None
    kl_mean_nats: float | None
    top1_agreement: float | None


class Recommendation(Frozen):
    """`gain` says how many times better than the reference, so that above 1 is better whatever the metric."""

    objective: Objective
    metric: str
    cell: str
    reference: str
    shown_in: tuple[Place, ...]
    backend: str
    optimizations: tuple[str, ...]
    checkpoint: str
    dtype: str
    batch: int
    prompt_tokens: int | None
    new_tokens: int
    gain: float
    low: float
    high: float
    error: float
    """Of the interval: 0.05 of all those that are shown together, see judging/selection.py."""
    exact: bool
    reference_batch: int
    cost: Cost
    sentence: str


class LeftOut(Frozen):
    """A cell that is not recommended for an objective, and what was found: `gain` as there, with its 95 % interval."""

    objective: Objective
    metric: str
    cell: str
    reference: str
    shown_in: tuple[Place, ...]
    reason: str | None
    """None where the interval says it."""
    gain: float | None
    low: float | None
    high: float | None


def write(path: Path, verdicts: Verdicts) -> None:
    sealed.write(path, "verdicts", verdicts)


def read(path: Path) -> Verdicts:
    """The verdicts at `path`.

    Raises:
        ResultError: there is no such file, it was edited by hand, holds no verdicts, or those of another version.
    """
    return sealed.read(path, "verdicts", Verdicts, "Delete it and run again: the stage `judge` makes them anew")
