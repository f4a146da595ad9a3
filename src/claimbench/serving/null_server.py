"""A server without a model: a process of its own that streams set tokens at a set pace, or fails in a set way.

It is what the client is checked against. Each event carries the monotonic time at which it was due and sent, and the
monotonic clock is one for all processes of a machine: so what the client adds can be told from what the machine did.

    python -m claimbench.serving.null_server '{"port": 8000, "prefill_ms": 50, "step_ms": 5}'
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Literal

from pydantic import BaseModel

from claimbench.schema.frozen import Frozen
from claimbench.serving.client import JsonObject

MODEL = "null"
SPIN_S = 0.002
"""The last stretch before an event is due is spun through: a sleep overshoots by the timer's slack."""

Failure = Literal[
    "never_healthy", "dies_at_once", "dies_midway", "400", "429", "500", "half", "stuck", "error_event", "garbled",
    "no_usage", "short", "wrong_model", "not_a_stream", "stubborn", "named_error", "nameless_error",
    "lingers", "cut_after_done",
]  # fmt: skip


class Settings(Frozen):
    port: int
    model: str = MODEL
    prefill_ms: float = 0
    step_ms: float = 0
    token: int = 1
    tell_ids: bool = True
    fails: Failure | None = None
    api_key: str | None = None
    """Without which every request but that for its health is refused."""
    blank_events: bool = False
    """Events without data between the others, as some servers keep a connection alive with."""


class AskedTokens(BaseModel):
    """What is read of a request."""

    max_tokens: int


class NullServer:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.requests = self.connections = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one connection, one after the other, until the client closes it."""
        self.connections += 1
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split(" ", 2)
                length, key = 0, None
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    name, _, value = header.decode().partition(":")
                    if name.lower() == "content-length":
                        length = int(value)
                    if name.lower() == "authorization":
                        key = value.strip().removeprefix("Bearer ")
                body = await reader.readexactly(length)
                if self.settings.api_key not in (None, key) and path != "/health":
                    _send(writer, 401, {"error": {"message": f"the key {key} is not known"}})
                else:
                    await self._respond(method, path, body, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _respond(self, method: str, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        fails = self.settings.fails
        if method == "GET" and path == "/health":
            _send(writer, 503 if fails == "never_healthy" else 200, {})
        elif method == "GET" and path == "/v1/models":
            _send(writer, 200, {"data": [{"id": "another" if fails == "wrong_model" else self.settings.model}]})
        elif method == "GET" and path == "/metrics":
            _send(writer, 200, {"requests": self.requests, "connections": self.connections})
        elif method == "POST" and path == "/v1/completions":
            self.requests += 1
            await self._complete(body, writer)
        else:
            _send(writer, 404, {"error": {"message": f"no {path} here"}})
        await writer.drain()

    async def _complete(self, body: bytes, writer: asyncio.StreamWriter) -> None:
        fails, count = self.settings.fails, AskedTokens.model_validate_json(body).max_tokens
        if fails in ("400", "429", "500"):
            _send(writer, int(fails), {"error": {"message": f"asked to answer {fails}"}})
            return
        kind = "application/json" if fails == "not_a_stream" else "text/event-stream"
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        start = time.perf_counter_ns()
        for number in range(count - (1 if fails == "short" else 0)):
            if number == count // 2 and await self._breaks(writer):
                return
            due = start + int((self.settings.prefill_ms + number * self.settings.step_ms) * 1e6)
            await _wait_until(due)
            if self.settings.blank_events:
                _part(writer, b": still here\n\ndata:\n\n")
            _event(writer, self._token(due))
            await writer.drain()
        made = count - (1 if fails == "short" else 0)
        usage = {} if fails == "no_usage" else {"usage": {"prompt_tokens": 4, "completion_tokens": made}}
        _event(writer, {"choices": [{"text": "", "finish_reason": "length"}], **usage})
        _part(writer, b"data: [DONE]\n\n")
        if fails == "lingers":
            await asyncio.Event().wait()
        if fails == "cut_after_done":
            await writer.drain()
            writer.transport.abort()
            return
        _part(writer, b"")

    def _token(self, due: int) -> JsonObject:
        choice: JsonObject = {"text": f" {self.settings.token}", "finish_reason": None}
        if self.settings.tell_ids:
            choice["token_ids"] = [self.settings.token]
        return {"choices": [choice], "due_ns": due, "sent_ns": time.perf_counter_ns()}

    async def _breaks(self, writer: asyncio.StreamWriter) -> bool:
        """The bad luck that strikes in the middle of an answer; True where the answer ends with it."""
        fails = self.settings.fails
        if fails == "dies_midway":
            sys.exit(3)
        if fails == "stuck":
            await asyncio.Event().wait()
        if fails == "half":
            _part(writer, b"")
        elif fails == "error_event":
            _event(writer, {"error": {"message": "asked to break off"}})
        elif fails == "named_error":
            _part(writer, b'event: error\ndata: {"message": "asked to fail by name"}\n\n')
        elif fails == "nameless_error":
            _part(writer, b"event: error\ndata:\n\n")
        elif fails == "garbled":
            _part(writer, b"data: not JSON\n\n")
        else:
            return False
        await writer.drain()
        writer.close()
        return True


async def _wait_until(due_ns: int) -> None:
    left = (due_ns - time.perf_counter_ns()) / 1e9
    if left > SPIN_S:
        await asyncio.sleep(left - SPIN_S)
    while time.perf_counter_ns() < due_ns:
        pass


def _send(writer: asyncio.StreamWriter, status: int, value: JsonObject) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def _event(writer: asyncio.StreamWriter, value: JsonObject) -> None:
    _part(writer, f"data: {json.dumps(value)}\n\n".encode())


def _part(writer: asyncio.StreamWriter, data: bytes) -> None:
    """One part of a chunked body; an empty one ends it."""
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def main(settings: Settings) -> None:
    if settings.fails == "dies_at_once":
        sys.exit("asked to die at once")
    if settings.fails == "stubborn":
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = await asyncio.start_server(NullServer(settings).answer, "127.0.0.1", settings.port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Settings.model_validate_json(sys.argv[1])))
