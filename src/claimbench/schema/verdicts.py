"""What judging writes, `results/verdicts.json`: claims with their checks, cells in a few numbers, recommendations."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from claimbench.schema.cell import Frozen
from claimbench.schema.frontier import Frontier


class Verdict(StrEnum):
    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNDECIDED = "undecided"
    NOT_RUNNABLE = "not runnable here"


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
    """All that a report says, as plain values; `model_dump(mode="json")` is what is written."""

    schema_version: Literal[1] = 1
    device: str
    device_name: str | None
    tolerance: float
    claims: tuple[ClaimVerdict, ...]
    cells: dict[str, dict[str, Any]]
    frontiers: dict[str, Frontier] = {}
    recommendations: tuple[Recommendation, ...]


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
    blocks: int = 0
    results: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()


Objective = Literal["latency", "throughput", "memory"]


class Place(Frozen):
    study: str
    address: str
    title: str


class Cost(Frozen):
    """What the gain is paid with. Ratios are cell over reference."""

    memory_ratio: float | None
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
    exact: bool
    reference_batch: int
    cost: Cost
    sentence: str
