"""The client against the null server, a process of its own at a known pace: what it reports is what the server did."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Any

import pytest

from claimbench.schema.cell import Cell, Checkpoint, Workload
from claimbench.serving import load as loads
from claimbench.serving import request_metrics
from claimbench.serving.client import (
    AFTER_DONE_S,
    Chunk,
    CompletionRequest,
    Limits,
    OpenAI,
    RequestFailed,
    StreamEvent,
    ask,
    get_json,
    get_text,
    message_of,
    open_client,
    served,
)
from claimbench.serving.load import Load, Record, Target
from claimbench.serving.null_server import MODEL
from claimbench.serving.process import Launch, Server
from claimbench.serving.session import ServerOptions, ServerSession, Service
from claimbench.system.processes import free_port


class Noting:
    """The OpenAI dialect; it notes when the null server sent each event, by the machine's one monotonic clock."""

    path = "/v1/completions"
    counts = True

    def __init__(self) -> None:
        self.plain = OpenAI(MODEL, {}, ids_key="token_ids")
        self.sent_ns: list[int] = []

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        return self.plain.body(request)

    def read(self, event: dict[str, Any]) -> StreamEvent:
        if "sent_ns" in event:
            self.sent_ns.append(event["sent_ns"])
        return self.plain.read(event)


def start(**settings: Any) -> Server:
    port = free_port()
    told = ", ".join(f'"{name}": {value}' for name, value in {"port": port, **settings}.items())
    command = (sys.executable, "-m", "claimbench.serving.null_server", f"{{{told}}}")
    return Server(Launch(command=command, port=port, healthy_s=30))


@pytest.fixture(scope="module")
def paced() -> Iterator[Server]:
    server = start(prefill_ms=20, step_ms=5)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def quick() -> Iterator[Server]:
    server = start(prefill_ms=5, step_ms=1)
    yield server
    server.stop()


def under(server: Server, load: Load, new_tokens: int = 5, stall_s: float = 20) -> list[Record]:
    async def work() -> list[Record]:
        async with open_client(server.address) as client:
            target = Target(client, OpenAI(MODEL, {}, ids_key="token_ids"), Limits(stall_s=stall_s), count)
            return await loads.run(load, target, [CompletionRequest("Hello", new_tokens)])

    return asyncio.run(work())


def count(chunk: Chunk) -> int:
    return len(chunk.tokens)


def pace_ns(stamps: list[int]) -> float:
    """Nanoseconds per token: the median over all pairs that lie half an answer apart.

    A neighbour that delays single arrivals, on either side, moves few of the pairs, and those by little.
    """
    half = len(stamps) // 2
    return median((after - before) / half for before, after in zip(stamps, stamps[half:], strict=False))


def test_a_known_pace_is_reported_within_one_percent(paced: Server) -> None:
    """Against when the server sent each token, so that a busy machine slows both sides alike."""
    dialect = Noting()

    async def work() -> list[Chunk]:
        async with open_client(paced.address) as client:
            answer = await ask(client, dialect, CompletionRequest("Hello", 300), Limits())
            return list(answer.chunks)

    arrived = [chunk.at_ns for chunk in asyncio.run(work())]
    assert len(arrived) == len(dialect.sent_ns) == 300
    assert pace_ns(arrived) == pytest.approx(pace_ns(dialect.sent_ns), rel=0.01)
    assert all(at >= sent for at, sent in zip(arrived, dialect.sent_ns, strict=True)), (
        "nothing arrives before it is sent"
    )


def test_columns_of_a_session_come_at_the_pace_at_which_they_are_sent(paced: Server) -> None:
    dialect = Noting()
    stamps = []
    for block in (session := session_of(paced, dialect, new_tokens=200)).generate():
        stamps.append(time.perf_counter_ns())
        assert block == [[1]]
    session.close()
    assert pace_ns(stamps) == pytest.approx(pace_ns(dialect.sent_ns), rel=0.01)


def session_of(server: Server, dialect: Any, new_tokens: int, batch: int = 1, **more: Any) -> ServerSession:
    cell = Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama?seed=0", architecture="tiny-llama"),
        backend="null_server",
        workload=Workload(prompt="Hello", new_tokens=new_tokens, batch=batch),
        device="cpu",
    )
    service = Service(server.address, dialect, ["Hello"] * batch, [[0, 1, 2, 3]] * batch, {}, metrics=dict, **more)
    return ServerSession(cell, service, checkpoint=None)  # type: ignore[arg-type]


def test_one_request_at_a_time_is_sent_when_the_one_before_has_ended(quick: Server) -> None:
    records = under(quick, Load(requests=4))
    assert [record.failure for record in records] == [None] * 4
    assert all(later.sent_ns >= earlier.ended_ns for earlier, later in pairwise(records))
    assert all(sum(record.chunk_tokens) == record.completion_tokens == 5 for record in records)


def test_a_closed_loop_keeps_its_number_of_requests_under_way(quick: Server) -> None:
    records = under(quick, Load(kind="closed", requests=12, concurrency=3))
    assert len(records) == 12
    assert max(_under_way(records, record.sent_ns) for record in records) == 3


def _under_way(records: list[Record], at_ns: int) -> int:
    return sum(record.sent_ns <= at_ns < record.ended_ns for record in records)


def test_an_open_loop_sends_when_requests_are_due_and_not_when_answers_have_come() -> None:
    """One answer takes far longer than the gaps between arrivals."""
    server = start(prefill_ms=300)
    try:
        records = under(server, Load(kind="open", requests=10, rate_per_s=100.0, seed=1))
    finally:
        server.stop()
    assert [record.scheduled_ns for record in records] == loads.arrivals_ns(
        Load(kind="open", requests=10, rate_per_s=100.0, seed=1)
    )
    assert all(record.sent_ns >= record.scheduled_ns for record in records)
    assert max(_under_way(records, record.sent_ns) for record in records) >= 5
    assert all((request_metrics.ttft_ms(record) or 0) >= 300 for record in records)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        *(("429", "busy"), ("400", "refused"), ("500", "failed"), ("half", "cut"), ("stuck", "stuck")),
        *(("short", "length"), ("named_error", "failed"), ("error_event", "failed")),
    ],
)
def test_what_becomes_of_a_request_is_on_record(failure: str, kind: str) -> None:
    server = start(fails=f'"{failure}"')
    try:
        records = under(server, Load(kind="closed", requests=2, concurrency=2), stall_s=0.5)
    finally:
        server.stop()
    assert {record.failure for record in records} == {kind}
    assert all(record.reason and record.completion_tokens is None for record in records)


def test_a_server_that_is_gone_is_on_record() -> None:
    server = start()
    server.stop()
    assert {record.failure for record in under(server, Load(requests=2))} == {"gone"}


def test_an_answer_that_only_drips_ends_at_its_deadline(paced: Server) -> None:
    async def work() -> None:
        async with open_client(paced.address) as client:
            await ask(client, Noting(), CompletionRequest("Hello", 10_000), Limits(stall_s=5, answer_s=0.5))

    with pytest.raises(Exception, match=r"not whole within 0\.5 s") as caught:
        asyncio.run(work())
    assert caught.value.kind == "late"


def test_a_sweep_doubles_its_clients_until_the_server_gives_no_more(quick: Server) -> None:
    given = iter([10.0, 19.0, 30.0, 30.5, 99.0])

    async def work() -> dict[int, list[Record]]:
        async with open_client(quick.address) as client:
            target = Target(client, OpenAI(MODEL, {}, ids_key="token_ids"), Limits(), count)
            load = Load(kind="sweep", requests=2, concurrency=64)
            return await loads.sweep(load, target, [CompletionRequest("Hello", 3)], lambda _: next(given))

    levels = asyncio.run(work())
    assert {clients: len(records) for clients, records in levels.items()} == {1: 2, 2: 4, 4: 8, 8: 16}


def test_text_without_ids_is_read_by_the_tokenizer_and_what_was_not_shown_is_counted() -> None:
    class Letters:
        def prepare(self) -> None:
            return

        def ids_of(self, text: str) -> list[int]:
            return [ord(letter) for letter in text.strip()]

    server = start(tell_ids="false", token=7)
    session = session_of(server, OpenAI(MODEL, {}), 3, batch=2, tokenizer=Letters())
    try:
        assert [block for block in session.generate()] == [[[ord("7")], [ord("7")]]] * 3
        assert session.prove()["tokens_without_text"] == 0
    finally:
        session.close()
        server.stop()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "too long", "type": "x"}}', "too long"),
        ('{"error": "too long", "error_type": "validation"}', "too long"),
        ('{"detail": "too long"}', "too long"),
        ("too long\n", "too long"),
    ],
)
def test_the_sentence_inside_an_error_is_found_however_it_is_wrapped(body: str, message: str) -> None:
    assert message_of(body) == message


def test_an_address_holds_no_secret() -> None:
    with pytest.raises(ValueError, match="CLAIMBENCH_SERVER_TOKEN"):
        ServerOptions(url="http://user:password@host:80")
    assert ServerOptions(url="http://host:80/").url == "http://host:80"


def test_requests_that_follow_each_other_share_one_connection(quick: Server) -> None:
    """A body that is not read to its end takes its connection with it, and the next request pays for another one."""
    before = get_json(quick.address, "/metrics")["connections"]
    assert all(record.failure is None for record in under(quick, Load(requests=6)))
    assert get_json(quick.address, "/metrics")["connections"] == before + 2, "one of the load, one of this look"


class Uncounted(OpenAI):
    """Of a server that does not say how many tokens it made."""

    def read(self, event: dict[str, Any]) -> StreamEvent:
        return super().read(event)._replace(usage=None)


@pytest.mark.parametrize("dialect", [OpenAI, Uncounted])
@pytest.mark.parametrize("fails", ["lingers", "cut_after_done"])
def test_an_answer_whose_last_event_has_come_is_whole_however_its_connection_ends(fails: str, dialect: Any) -> None:
    server = start(fails=f'"{fails}"')

    async def work() -> list[Record]:
        async with open_client(server.address) as client:
            target = Target(
                client, dialect(MODEL, {}, ids_key="token_ids", counts=dialect is OpenAI), Limits(stall_s=20), count
            )
            return await loads.run(Load(requests=2), target, [CompletionRequest("Hello", 5)])

    try:
        records = asyncio.run(work())
    finally:
        server.stop()
    assert [(record.failure, record.reason) for record in records] == [(None, None)] * 2
    assert [record.chunk_tokens for record in records] == [(1,) * 5] * 2
    assert max(record.ended_ns - record.chunk_ns[-1] for record in records) < 10 * AFTER_DONE_S * 1e9


def test_events_without_data_are_passed_over() -> None:
    server = start(blank_events="true")
    try:
        records = under(server, Load(requests=1))
    finally:
        server.stop()
    assert [record.failure for record in records] == [None]
    assert records[0].chunk_tokens == (1,) * 5


@pytest.mark.parametrize(("fails", "said"), [("named_error", "asked to fail by name"), ("nameless_error", "no reason")])
def test_an_event_that_is_called_an_error_ends_the_answer_with_its_reason(fails: str, said: str) -> None:
    server = start(fails=f'"{fails}"')
    try:
        (record,) = under(server, Load(requests=1))
    finally:
        server.stop()
    assert record.reason == f"the server broke off with: {said}"


def test_a_server_with_a_key_is_asked_with_it_whatever_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(api_key='"let-me-in"')
    try:
        with pytest.raises(RequestFailed, match="401"):
            served(server.address, MODEL)
        monkeypatch.setenv("CLAIMBENCH_SERVER_TOKEN", "let-me-in")
        assert served(server.address, MODEL).id == MODEL
        assert get_text(server.address, "/metrics")
        assert [record.failure for record in under(server, Load(requests=1))] == [None]
    finally:
        server.stop()


def test_text_is_not_encoded_again_where_the_server_s_own_count_says_what_each_event_brought(quick: Server) -> None:
    asked: list[str] = []

    def slow_count(chunk: Chunk) -> int:
        asked.append(chunk.text)
        return 1

    async def work() -> list[Record]:
        async with open_client(quick.address) as client:
            target = Target(client, OpenAI(MODEL, {}), Limits(), slow_count)
            return await loads.run(Load(requests=3), target, [CompletionRequest("Hello", 5)])

    records = asyncio.run(work())
    assert asked == []
    assert [record.chunk_tokens for record in records] == [(1,) * 5] * 3
