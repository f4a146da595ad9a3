"""A server as a backend's session: the rows of the workload are concurrent requests, their tokens come as columns.

A column is yielded when every row has its next token, so that the clock, the token check and the report work as they
do for a model in the same process. A server that takes requests in turn lets the first column wait for the last one:
what each request saw by itself is in the records of a load. The client runs on the caller's own thread, between steps.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from claimbench.checkpoints.loaded_model import decoder_in
from claimbench.cost_model import cost
from claimbench.errors import Refusal, ServerFailed, Unavailable, WrongOutput
from claimbench.proof import Findings
from claimbench.schema.cell import DTYPE_BYTES, Cell
from claimbench.schema.frozen import Frozen
from claimbench.serving import request_metrics
from claimbench.serving.client import (
    TOKEN_VARIABLE,
    Chunk,
    CompletionRequest,
    CompletionResponse,
    Dialect,
    Limits,
    Prompt,
    RequestFailed,
    ask,
    open_client,
)
from claimbench.serving.load import Load, LoadRecord, Target, run, sweep
from claimbench.serving.process import Server, record_of
from claimbench.serving.tokens import UNKNOWN, Tokenizer
from claimbench.system.redaction import redact

SERVER_DIED_S = 1.0


class ServerOptions(Frozen):
    """What every server takes: where it is, and how long it is waited for."""

    url: str | None = Field(default=None, description="address of a server that runs already; absent: it is started")
    healthy_s: float = Field(default=600.0, gt=0, description="from its start until it says that it is healthy")
    stall_s: float = Field(default=300.0, gt=0, description="without an event, before the stream is stuck")
    load: Load | None = Field(default=None, description="requests after the timed samples, each one on record")

    def slots(self, batch: int) -> int:
        """Requests that the server must be able to serve at once."""
        return max(batch, self.load.clients if self.load else 1)

    @field_validator("url")
    @classmethod
    def _holds_no_secret(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError(f"expected http://host:port, got {url!r}")
        if url is not None and "@" in url:
            raise ValueError(f"a user or a password in an address would be recorded: set {TOKEN_VARIABLE} instead")
        return url.rstrip("/") if url else None


def url_of(options: ServerOptions, variable: str) -> str | None:
    """The address from the options, else from the environment variable.

    Raises:
        Unavailable: the variable holds no address, or one with a password.
    """
    named = os.environ.get(variable)
    if options.url or not named:
        return options.url
    try:
        return ServerOptions(url=named).url
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise Unavailable(f"{variable}: {redact(why)}") from None


@dataclass(frozen=True)
class Service:
    """A server that is ready: its address, what it speaks, and what is known of it."""

    address: str
    dialect: Dialect
    prompts: list[Prompt]
    """Of each row, as the server takes it: its tokens, or a text that they are of."""
    rows: list[list[int]]
    """Token ids of each row that the server is to read."""
    about: Findings
    """For the proof: `version`, `model`, `prefix_cache`, ..."""
    metrics: Callable[[], Mapping[str, object]]
    """The server's own counters, read for the proof."""
    server: Server | None = None
    """None where it runs at an address."""
    tokenizer: Tokenizer | None = None
    """Set where the server tells no token ids."""
    limits: Limits = field(default_factory=Limits)
    load: Load | None = None


class ServerSession:
    def __init__(self, cell: Cell, service: Service, checkpoint: Path) -> None:
        self.cell, self.service, self._checkpoint = cell, service, checkpoint
        self.hidden = 0
        """Tokens of the last generation that the server counted and did not show."""
        if service.tokenizer:
            service.tokenizer.prepare()
        self._loop = asyncio.new_event_loop()
        self._client = open_client(service.address)

    @property
    def prompt_ids(self) -> list[int]:
        return self.service.rows[0]

    def generate(self) -> Iterator[list[list[int]]]:
        arrivals: asyncio.Queue[tuple[int, Chunk | CompletionResponse | Refusal]] = asyncio.Queue()
        tasks = [self._loop.create_task(self._request(row, arrivals)) for row in range(self.cell.workload.batch)]
        try:
            yield from self._columns(arrivals)
        finally:
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    async def _request(
        self, row: int, arrivals: asyncio.Queue[tuple[int, Chunk | CompletionResponse | Refusal]]
    ) -> None:
        service = self.service
        request = CompletionRequest(service.prompts[row], self.cell.workload.new_tokens)
        ending: CompletionResponse | Refusal
        try:
            ending = await ask(
                self._client,
                service.dialect,
                request,
                service.limits,
                lambda chunk: arrivals.put_nowait((row, chunk)),
            )
        except Refusal as refusal:
            ending = refusal
        arrivals.put_nowait((row, ending))

    def _columns(
        self, arrivals: asyncio.Queue[tuple[int, Chunk | CompletionResponse | Refusal]]
    ) -> Iterator[list[list[int]]]:
        """Blocks of tokens that all rows have, [batch][n], as soon as they have them."""
        rows: list[list[int]] = [[] for _ in range(self.cell.workload.batch)]
        given, ended, self.hidden = 0, 0, 0
        while ended < len(rows):
            row, arrival = self._loop.run_until_complete(arrivals.get())
            if isinstance(arrival, Refusal):
                raise self._explained(arrival)
            if isinstance(arrival, CompletionResponse):
                ended += 1
                self._complete(rows[row], row, arrival)
            else:
                rows[row] += self._ids_of(arrival)
            ready = min(map(len, rows))
            if ready > given:
                yield [tokens[given:ready] for tokens in rows]
                given = ready

    def _ids_of(self, chunk: Chunk) -> list[int]:
        tokenizer = self.service.tokenizer
        return tokenizer.ids_of(chunk.text) if tokenizer else list(chunk.tokens)

    def _complete(self, tokens: list[int], row: int, answer: CompletionResponse) -> None:
        """Compare what came with what the server counts, and add what it counted and did not show.

        Raises:
            WrongOutput: more came than the server counts, or it read another prompt than it was given.
        """
        assert answer.usage is not None
        missing = answer.usage.completion - len(tokens)
        if missing < 0 or (missing and self.service.tokenizer is None):
            raise WrongOutput(f"the server counts {answer.usage.completion} new tokens, and {len(tokens)} came")
        expected = len(self.service.rows[row])
        if answer.usage.prompt not in (None, expected):
            raise WrongOutput(f"the prompt has {expected} tokens, the server read {answer.usage.prompt}")
        tokens += [UNKNOWN] * missing
        self.hidden += missing

    def _explained(self, refusal: Refusal) -> Refusal:
        """A broken answer is told with the reason of the server's death, where it died."""
        server = self.service.server
        if server is None or not isinstance(refusal, RequestFailed):
            return refusal
        if refusal.kind in ("cut", "gone"):
            server.wait(SERVER_DIED_S)
        try:
            server.check()
        except ServerFailed as death:
            return death
        return server.failure(str(refusal))

    def memory(self) -> dict[str, int]:
        """Weights are as they are stored, and the cache is of the cell's type: a server tells no bytes of its own.

        `server_rss` is the resident memory of the server's processes, where they are on this machine.
        """
        model, workload = decoder_in(self._checkpoint, self.cell.checkpoint), self.cell.workload
        size = DTYPE_BYTES[self.cell.dtype]
        length = len(self.prompt_ids) + workload.new_tokens
        memory = cost.memory_of(model, workload.batch, length, size)
        if self.service.server:
            memory["server_rss"] = self.service.server.resident_bytes()
        return memory

    def peaks(self) -> dict[str, int]:
        """Peak resident bytes of the server's processes, loading included; the worker adds its own."""
        return {"rss_peak": self.service.server.peak_bytes()} if self.service.server else {}

    def prove(self) -> Findings:
        """What the server says of itself, how it was started, and how the tokens of the last generation were known."""
        service = self.service
        ids = "told by the server" if service.tokenizer is None else "by the text of each event"
        proof: Findings = {"server": service.about, "token_ids": ids, "metrics": service.metrics()}
        if service.tokenizer is not None:
            proof["tokens_without_text"] = self.hidden
        if service.load:
            proof["load"] = self.put_under(service.load).as_json()
        proof["started_by"] = record_of(service.server.launch) if service.server else "somebody else, at an address"
        return proof

    def put_under(self, load: Load) -> LoadRecord:
        """The records of `load`: rows of the workload in turn, whatever becomes of each."""
        service = self.service
        asks = [CompletionRequest(prompt, self.cell.workload.new_tokens) for prompt in service.prompts]
        target = Target(self._client, service.dialect, service.limits, lambda chunk: len(self._ids_of(chunk)))
        if load.kind == "sweep":
            levels = self._loop.run_until_complete(sweep(load, target, asks, request_metrics.tokens_per_s))
            record = LoadRecord(settings=load, levels=levels)
        else:
            record = LoadRecord(settings=load, records=self._loop.run_until_complete(run(load, target, asks)))
        if service.server:
            service.server.check()
        return record

    def log_probs(self, tokens: list[int]) -> None:
        """Out of reach: a server tells a few of them at most."""

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._client.aclose())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
        if self.service.server:
            self.service.server.stop()
