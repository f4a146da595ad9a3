"""Loads: which requests are sent when, and a record of each, whatever becomes of it.

    one at a time   the next request is sent when the one before it has ended
    closed loop     `concurrency` clients, each of which sends its next request when its own has ended
    open loop       arrivals of a Poisson process at a rate, whether or not earlier requests have ended
    sweep           closed loops of 1, 2, 4, ... clients, until more of them get no more tokens per second in all

In an open loop latency counts from the moment a request was due, not from when it could be sent: a client that falls
behind must not hide the wait (coordinated omission). How far it fell behind is in the record.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field, StrictFloat, StrictInt

from claimbench.schema.frozen import Frozen
from claimbench.serving.client import Chunk, CompletionRequest, Dialect, JsonObject, Limits, RequestFailed, ask

if TYPE_CHECKING:
    import httpx2


class Objective(Frozen):
    """What a request must keep to count as good; None is no demand."""

    ttft_ms: StrictFloat | None = None
    tpot_ms: StrictFloat | None = None
    end_to_end_ms: StrictFloat | None = None


class Load(Frozen):
    """What a server is put under. `rate_per_s` belongs to `open`, `concurrency` to `closed` and `sweep`."""

    kind: Literal["one_at_a_time", "closed", "open", "sweep"] = "one_at_a_time"
    requests: StrictInt = Field(default=32, ge=1, description="in all; in a sweep, of each client")
    concurrency: StrictInt = Field(default=1, ge=1, description="clients; in a sweep, at most")
    rate_per_s: StrictFloat = Field(default=1.0, gt=0, description="mean of the Poisson arrivals")
    seed: StrictInt = Field(default=0, ge=0)
    objective: Objective = Objective()

    @property
    def clients(self) -> int:
        """Requests that may be under way at once, as far as the load says."""
        return self.concurrency if self.kind in ("closed", "sweep") else 1


class Record(Frozen):
    """One request: nanoseconds since the load began, and how many tokens each event brought."""

    scheduled_ns: int = Field(description="when it was due")
    sent_ns: int
    chunk_ns: tuple[int, ...] = ()
    chunk_tokens: tuple[int, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = Field(default=None, description="the server's own count")
    ended_ns: int
    failure: str | None = Field(default=None, description="a kind of client.Kind; absent: a whole answer")
    reason: str | None = None


class LoadRecord(Frozen):
    """What a server was put under, and every request of it."""

    settings: Load
    records: tuple[Record, ...] = ()
    levels: dict[int, tuple[Record, ...]] = Field(default={}, description="of a sweep: its records by clients")

    @property
    def runs(self) -> dict[int, tuple[Record, ...]]:
        """Records by the number of clients."""
        return self.levels or {self.settings.clients: self.records}

    def as_json(self) -> JsonObject:
        """As a proof holds it: with `levels` of a sweep, `records` of any other load."""
        return self.model_dump(mode="json", exclude={"records"} if self.levels else {"levels"})


@dataclass
class Target:
    """What requests are sent to: a client, what it speaks, and how long an answer may take."""

    client: httpx2.AsyncClient
    dialect: Dialect
    limits: Limits
    count_tokens: Callable[[Chunk], int]
    """Tokens of one event."""


def arrivals_ns(load: Load) -> list[int]:
    """When each request of an open loop is due: gaps are exponential, so arrivals know nothing of each other."""
    draw = random.Random(load.seed)  # noqa: S311 - a schedule, not a secret
    gaps = [draw.expovariate(load.rate_per_s) for _ in range(load.requests)]
    return [round(due * 1e9) for due in itertools.accumulate(gaps)]


class Answered(NamedTuple):
    """A request that has ended, its tokens not counted yet."""

    record: Record
    chunks: list[Chunk]


async def run(load: Load, target: Target, asks: Sequence[CompletionRequest]) -> list[Record]:
    """Send `load.requests` requests, taken from `asks` in turn; the records, by request."""
    start = time.perf_counter_ns()

    async def send(number: int, scheduled_ns: int | None = None) -> Answered:
        due = time.perf_counter_ns() - start if scheduled_ns is None else scheduled_ns
        return await _one(target, asks[number % len(asks)], due, start)

    if load.kind == "open":
        answered = await _open_loop(arrivals_ns(load), start, send)
    else:
        answered = await _closed_loop(load.requests, load.clients, send)
    return [_counted(one, target) for one in answered]


def _counted(one: Answered, target: Target) -> Record:
    """With the tokens of each event, once the load is over: to count them may mean to encode their text again.

    Where the server counts as many tokens as there were events, each brought one.
    """
    if one.record.completion_tokens == len(one.chunks):
        return one.record.model_copy(update={"chunk_tokens": (1,) * len(one.chunks)})
    return one.record.model_copy(update={"chunk_tokens": tuple(map(target.count_tokens, one.chunks))})


async def _closed_loop(requests: int, clients: int, send: Callable[[int], Awaitable[Answered]]) -> list[Answered]:
    records: dict[int, Answered] = {}
    numbers = iter(range(requests))

    async def client() -> None:
        for number in numbers:
            records[number] = await send(number)

    await asyncio.gather(*(client() for _ in range(min(clients, requests))))
    return [records[number] for number in range(requests)]


async def _open_loop(due_ns: list[int], start: int, send: Callable[[int, int], Awaitable[Answered]]) -> list[Answered]:
    tasks = []
    for number, due in enumerate(due_ns):
        left = (start + due - time.perf_counter_ns()) / 1e9
        if left > 0:
            await asyncio.sleep(left)
        tasks.append(asyncio.ensure_future(send(number, due)))
    return list(await asyncio.gather(*tasks))


async def _one(target: Target, request: CompletionRequest, due_ns: int, start: int) -> Answered:
    """One request's record; a refusal is a record too."""
    chunks: list[Chunk] = []
    sent = time.perf_counter_ns() - start
    failure = reason = None
    usage = None
    try:
        answer = await ask(target.client, target.dialect, request, target.limits, chunks.append)
        usage = answer.usage
    except RequestFailed as refusal:
        failure, reason = refusal.kind, str(refusal)
    record = Record(
        scheduled_ns=due_ns,
        sent_ns=sent,
        chunk_ns=tuple(chunk.at_ns - start for chunk in chunks),
        prompt_tokens=usage.prompt if usage else None,
        completion_tokens=usage.completion if usage else None,
        ended_ns=time.perf_counter_ns() - start,
        failure=failure,
        reason=reason,
    )
    return Answered(record, chunks)


GROWTH = 1.05
"""Twice the clients that give less than 5 % more tokens per second: the server is saturated."""


async def sweep(
    load: Load, target: Target, asks: Sequence[CompletionRequest], rate: Callable[[list[Record]], float]
) -> dict[int, list[Record]]:
    """Closed loops of 1, 2, 4, ... clients until `rate` no longer grows, or `load` has no more; records by clients."""
    levels: dict[int, list[Record]] = {}
    best, clients = 0.0, 1
    while clients <= load.concurrency:
        level = Load(kind="closed", requests=clients * load.requests, concurrency=clients)
        levels[clients] = await run(level, target, asks)
        reached = rate(levels[clients])
        if reached < GROWTH * best:
            break
        best, clients = max(best, reached), clients * 2
    return levels
