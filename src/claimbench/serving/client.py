"""One streaming client for all servers: a request, and every piece of its answer stamped as it arrives.

A `Dialect` says what a server's requests and events look like; what is timed is the same for all. Server-sent events
are parsed by httpx2. All that can go wrong ends in a `RequestFailed` of a named kind, within the request's deadlines.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from claimbench.errors import ServerFailed, WrongOutput

if TYPE_CHECKING:
    import httpx2

Prompt = str | list[int]
JsonObject = dict[str, object]
Kind = Literal["refused", "busy", "failed", "cut", "stuck", "late", "gone", "garbled", "length"]
"""What became of a request that has no whole answer: 4xx, 429, 5xx (or an error inside the stream), half an answer, no
event for too long, not finished in time, no connection, not what the API says, not as many tokens as asked for."""

KINDS: dict[int, Kind] = {429: "busy"}
TOKEN_VARIABLE = "CLAIMBENCH_SERVER_TOKEN"  # noqa: S105 - the name of a variable, not a secret
AFTER_DONE_S = 0.05
"""For the end of a body whose last event has come: a connection that is read to its end serves the next request. It is
there at once, or the server keeps it back: that time would count as the answer's."""
SHOWN = 300


class RequestFailed(ServerFailed):
    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Usage(NamedTuple):
    """The server's own count of tokens."""

    prompt: int | None
    completion: int


class StreamEvent(NamedTuple):
    """What one event holds: `tokens` are ids, none where none are told; `finish` and `usage` come at the end."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    finish: str | None = None
    usage: Usage | None = None


class Chunk(NamedTuple):
    """A piece of the answer as it arrived."""

    at_ns: int
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class CompletionRequest:
    prompt: Prompt
    new_tokens: int


@dataclass(frozen=True)
class CompletionResponse:
    """A whole answer: when its request was sent, all of its chunks, how it ended and what the server counted."""

    sent_ns: int
    chunks: tuple[Chunk, ...]
    finish: str | None
    usage: Usage | None


@dataclass(frozen=True)
class Limits:
    """Seconds: without an event (`stall_s`, prefill included), and for the whole answer (`answer_s`)."""

    stall_s: float = 120.0
    answer_s: float = 1800.0


class Dialect(Protocol):
    """What one kind of server speaks."""

    @property
    def path(self) -> str:
        """Where requests go."""

    @property
    def counts(self) -> bool:
        """Whether the server tells its own count of tokens; else what came is counted, token by token."""

    def body(self, ask: CompletionRequest) -> JsonObject:
        """The request's JSON body."""

    def read(self, event: JsonObject) -> StreamEvent:
        """What one event says.

        Raises:
            RequestFailed: the event is an error, or not what the API says.
        """


def _headers() -> dict[str, str]:
    """What every request is sent with: the server's token goes into a header and nowhere else."""
    token = os.environ.get(TOKEN_VARIABLE)
    return {"Authorization": f"Bearer {token}"} if token else {}


def open_client(address: str, connections: int = 256) -> httpx2.AsyncClient:
    """A client whose connections stay open between requests."""
    import httpx2

    return httpx2.AsyncClient(
        base_url=address,
        headers=_headers(),
        timeout=httpx2.Timeout(None, connect=10.0),
        limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=600),
        trust_env=False,
    )


async def ask(
    client: httpx2.AsyncClient,
    dialect: Dialect,
    request: CompletionRequest,
    limits: Limits,
    on_chunk: Callable[[Chunk], None] | None = None,
) -> CompletionResponse:
    """Send `request` and collect its answer; `on_chunk` sees each piece as it arrives.

    Raises:
        RequestFailed: there is no whole answer of exactly `new_tokens` tokens; `kind` says what became of it.
    """
    import httpx2

    stream = _Stream(dialect, on_chunk)
    sent_ns, loop = time.perf_counter_ns(), asyncio.get_running_loop()
    end = loop.time() + limits.answer_s
    try:
        async with asyncio.timeout_at(min(loop.time() + limits.stall_s, end)) as patience:
            async with client.stream("POST", dialect.path, json=dialect.body(request)) as response:
                if response.status_code != 200:
                    raise _refusal(response.status_code, (await response.aread()).decode("utf-8", "replace"))
                async for event in httpx2.EventSource(response):
                    now = time.perf_counter_ns()
                    if not stream.is_over:
                        stream.take(event.event, event.data, now)
                        wait_s = AFTER_DONE_S if stream.is_over else limits.stall_s
                        patience.reschedule(min(loop.time() + wait_s, end))
    except (TimeoutError, httpx2.SSEError, httpx2.TransportError) as error:
        if not stream.is_over:  # else all of the answer is here, however its connection ends
            raise _broken_off(error, limits, is_late=loop.time() >= end) from error
    return _whole(stream.response(sent_ns), request)


class _Stream:
    """The events of one answer so far."""

    def __init__(self, dialect: Dialect, on_chunk: Callable[[Chunk], None] | None) -> None:
        self.dialect, self.on_chunk = dialect, on_chunk
        self.chunks: list[Chunk] = []
        self.finish: str | None = None
        self.usage: Usage | None = None
        self.is_over = False
        """Its last event has come; the body has not ended yet."""

    def take(self, name: str, data: str, at_ns: int) -> None:
        """One event; those without data keep a connection alive.

        Raises:
            RequestFailed: it is an error, or not what the API says.
        """
        if name == "error":
            raise RequestFailed("failed", f"the server broke off with: {message_of(data) or 'no reason'}")
        if data == "[DONE]":
            self.is_over = True
        elif data:
            piece = self.dialect.read(_parsed(data))
            self.finish, self.usage = piece.finish or self.finish, piece.usage or self.usage
            if piece.text or piece.tokens:
                self.chunks.append(Chunk(at_ns, piece.text, piece.tokens))
                if self.on_chunk:
                    self.on_chunk(self.chunks[-1])

    def response(self, sent_ns: int) -> CompletionResponse:
        usage = self.usage
        if usage is None and not self.dialect.counts:
            usage = Usage(None, sum(len(chunk.tokens) for chunk in self.chunks))
        return CompletionResponse(sent_ns, tuple(self.chunks), self.finish, usage)


def _broken_off(error: Exception, limits: Limits, is_late: bool) -> RequestFailed:
    import httpx2

    match error:
        case TimeoutError() if is_late:
            return RequestFailed("late", f"the answer was not whole within {limits.answer_s:g} s")
        case TimeoutError():
            return RequestFailed("stuck", f"the stream stood still for {limits.stall_s:g} s")
        case httpx2.SSEError():
            return RequestFailed("garbled", f"not a stream of events: {error}")
        case httpx2.ConnectError():
            return RequestFailed("gone", f"no connection to the server: {error}")
    return RequestFailed("cut", f"the answer broke off: {type(error).__name__}: {error}")


def _whole(answer: CompletionResponse, request: CompletionRequest) -> CompletionResponse:
    if answer.finish is None:
        raise RequestFailed(
            "cut", f"the stream ended after {len(answer.chunks)} events, without saying that it is done"
        )
    if answer.usage is None:
        raise RequestFailed("garbled", "the server did not say how many tokens it made: its usage is asked for")
    if answer.usage.completion != request.new_tokens:
        raise RequestFailed(
            "length", f"expected {request.new_tokens} new tokens, the server counts {answer.usage.completion}"
        )
    return answer


def _parsed(data: str) -> JsonObject:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestFailed("garbled", f"an event is not a JSON object: {data[:SHOWN]!r}")
    return value


def _refusal(status: int, body: str) -> RequestFailed:
    kind: Kind = KINDS.get(status, "refused" if status < 500 else "failed")
    return RequestFailed(kind, f"the server answered {status}: {message_of(body)}")


def message_of(body: str) -> str:
    """The sentence inside an error's body, however the server wraps it."""
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        return body.strip()[:SHOWN]
    for key in ("error", "message", "detail"):
        while isinstance(value, dict) and key in value:
            value = value[key]
    return (value if isinstance(value, str) else json.dumps(value))[:SHOWN]


class ServerAnswer(BaseModel):
    """What is read of a server's JSON; the rest of it may be anything."""

    model_config = ConfigDict(frozen=True, strict=True)


Answer = TypeVar("Answer", bound=ServerAnswer)


def read_as(answer: type[Answer], value: JsonObject, otherwise: str) -> Answer:
    """`value` as the API has it.

    Raises:
        RequestFailed: it is something else; `otherwise` says what.
    """
    try:
        return answer.model_validate(value)
    except ValidationError as error:
        raise RequestFailed("garbled", f"{otherwise}: {str(value)[:SHOWN]}") from error


Count = Annotated[int, Field(ge=0, lt=2**53)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def number(text: str) -> float:
    """A finite number on a server's page of metrics.

    Raises:
        RequestFailed: it is something else, which no result can hold.
    """
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise RequestFailed("garbled", f"/metrics: expected a finite number, got {text[:SHOWN]!r}")
    return found


class Choice(ServerAnswer):
    text: str | None = None
    token_ids: list[TokenId] | None = None
    finish_reason: str | None = None


class TokenCounts(ServerAnswer):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class CompletionEvent(ServerAnswer):
    """An event of the OpenAI completions API."""

    choices: list[Choice] | None = None
    usage: TokenCounts | None = None


IdsKey = Literal["token_ids"]


@dataclass(frozen=True)
class OpenAI:
    """The OpenAI completions API; `extra` holds what a server adds to it (`ignore_eos`, `return_token_ids`, ...)."""

    model: str
    extra: Mapping[str, object]
    ids_key: IdsKey | None = None
    """Where in a choice a server tells token ids; None where it does not."""
    path: str = "/v1/completions"
    counts: bool = True

    def body(self, ask: CompletionRequest) -> JsonObject:
        return {
            "model": self.model,
            "prompt": ask.prompt,
            "max_tokens": ask.new_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }

    def read(self, event: JsonObject) -> StreamEvent:
        return read_completion(event, self.model, self.ids_key)


def read_completion(event: JsonObject, model: str, ids_key: IdsKey | None) -> StreamEvent:
    """One event of the completions API.

    Raises:
        RequestFailed: the event is an error, or not what the API says.
        WrongOutput: another model than `model` answers.
    """
    if "error" in event:
        raise RequestFailed("failed", f"the server broke off with: {message_of(json.dumps(event))}")
    served = str(event.get("model", model)).partition("@")[0]  # some add a revision
    if served != model:
        raise WrongOutput(f"asked for the model {model!r}, {served!r} answers")
    answer = read_as(CompletionEvent, event, "an event is not what the API says")
    choice = answer.choices[0] if answer.choices else Choice()
    tokens = choice.token_ids if ids_key else None
    counts, usage = answer.usage, None
    if counts and counts.completion_tokens is not None:
        usage = Usage(counts.prompt_tokens, counts.completion_tokens)
    return StreamEvent(choice.text or "", tuple(tokens or ()), choice.finish_reason, usage)


def get_json(address: str, path: str, timeout_s: float = 30.0) -> JsonObject:
    """The JSON object at `path`.

    Raises:
        RequestFailed: no connection, another status than 200, or no JSON object.
    """
    text = get_text(address, path, timeout_s)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestFailed("garbled", f"{path} is not JSON: {text[:SHOWN]!r}") from error
    if not isinstance(value, dict):
        raise RequestFailed("garbled", f"{path} is not a JSON object: {text[:SHOWN]!r}")
    return value


class ServedModel(ServerAnswer):
    id: str
    root: str | None = None


class ModelList(ServerAnswer):
    data: list[ServedModel]


def served(address: str, model: str) -> ServedModel:
    """What the server's list of models says of `model`.

    Raises:
        RequestFailed: there is no such list.
        WrongOutput: it serves others.
    """
    listed = read_as(ModelList, get_json(address, "/v1/models"), "/v1/models is not what the API says")
    entries = {entry.id: entry for entry in listed.data}
    if model not in entries:
        raise WrongOutput(f"asked for the model {model!r}, the server has {', '.join(entries)}")
    return entries[model]


def get_text(address: str, path: str, timeout_s: float = 30.0) -> str:
    import httpx2

    try:
        response = httpx2.get(f"{address}{path}", headers=_headers(), timeout=timeout_s, trust_env=False)
    except httpx2.TimeoutException as error:
        raise RequestFailed("stuck", f"{path} gave nothing within {timeout_s:g} s") from error
    except httpx2.TransportError as error:
        raise RequestFailed("gone", f"no connection to the server: {error}") from error
    if response.status_code != 200:
        raise _refusal(response.status_code, response.text)
    return str(response.text)
