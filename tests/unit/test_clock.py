"""The clock, by a time that moves only when something takes some: what counts, and where a generation stands still."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from claimbench.errors import WrongOutput
from claimbench.measuring import clock
from claimbench.measuring.clock import Waits, hash_tokens, time_generation
from claimbench.schema.cell import Workload

STEP_NS, WAIT_NS = 5_000_000, 50_000_000


class Time:
    """Nanoseconds since the test began."""

    def __init__(self) -> None:
        self.ns = 0

    def perf_counter_ns(self) -> int:
        return self.ns

    def take(self, ns: int) -> None:
        self.ns += ns


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(clock, "time", made)
    monkeypatch.setattr(FakeEvent, "time", made, raising=False)
    return made


def steps(now: Time, *tokens: int) -> Iterator[list[list[int]]]:
    for count in tokens:
        now.take(STEP_NS)
        yield [list(range(count))]


def work(new_tokens: int, batch: int = 1) -> Workload:
    return Workload(prompt="Hello", new_tokens=new_tokens, batch=batch)


def test_no_time_holds_a_wait(now: Time) -> None:
    sample, rows = time_generation(steps(now, 1, 1, 1, 1), work(4), Waits([1, 3], lambda: now.take(WAIT_NS)))
    assert now.ns == 4 * STEP_NS + 2 * WAIT_NS
    assert sample.resumed == (1, 3)
    assert sample.step_ns == (STEP_NS,) * 4
    assert sample.step_tokens == (1,) * 4
    assert sample.wall_ns == 4 * STEP_NS
    assert rows == [[0, 0, 0, 0]]
    plain, _ = time_generation(steps(now, 1, 1, 1, 1), work(4))
    assert (plain.wall_ns, plain.resumed, plain.tokens_sha256) == (sample.wall_ns, (), sample.tokens_sha256)


def test_a_step_that_reaches_several_marks_waits_for_each_of_them(now: Time) -> None:
    """Whoever gives out turns counts on as many waits as there are marks, however many tokens a step accepts."""
    waits: list[int] = []
    marks = Waits([2, 4, 6], lambda: waits.append(1))
    sample, _ = time_generation(steps(now, 1, 4, 1, 2), work(8), marks)
    assert (len(waits), sample.resumed) == (3, (2, 3))
    last = Waits([2, 4, 6], lambda: waits.append(1))
    sample, _ = time_generation(steps(now, 1, 7), work(8), last)
    assert (len(waits), sample.resumed) == (6, ())


def test_the_time_after_the_last_wait_is_the_generation_s(now: Time) -> None:
    """What a backend does after its last token counts, and a wait for that token's turn does not."""

    def lingering() -> Iterator[list[list[int]]]:
        yield from steps(now, 1, 1)
        now.take(3 * STEP_NS)

    sample, _ = time_generation(lingering(), work(2), Waits([2], lambda: now.take(WAIT_NS)))
    assert (sample.wall_ns, sample.step_ns, sample.resumed) == (5 * STEP_NS, (STEP_NS, STEP_NS), ())


class FakeEvent:
    """Of a device that is as fast as the host."""

    time: Time

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = self.time.ns

    def elapsed_time(self, later: FakeEvent) -> float:
        return (later.at - self.at) / 1e6


class OnGpu(list[list[int]]):
    """Token ids [batch, n] as a tensor of a GPU would hold them."""

    is_cuda = True

    def tolist(self) -> list[list[int]]:
        return list(self)


def on_gpu(now: Time, count: int) -> Iterator[OnGpu]:
    for _ in range(count):
        now.take(STEP_NS)
        yield OnGpu([[1]])


def open_gpu(monkeypatch: pytest.MonkeyPatch, calls: list[str], drain: int = 0) -> None:
    """As if this process had opened a GPU, which needs `drain` ns for what it was asked when it is waited for."""

    def synchronize() -> None:
        calls.append("synchronize")
        FakeEvent.time.take(drain)

    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)


@pytest.mark.parametrize("is_open", [True, False])
def test_ids_that_a_server_sends_are_timed_by_the_host_whatever_this_process_has_open(
    is_open: bool, monkeypatch: pytest.MonkeyPatch, now: Time
) -> None:
    calls: list[str] = []
    if is_open:
        open_gpu(monkeypatch, calls)
    sample, rows = time_generation(steps(now, 1, 2, 1), work(4), Waits([3], lambda: now.take(WAIT_NS)))
    assert (sample.clock, sample.resumed, len(rows[0])) == ("host", (2,), 4)
    assert (sample.wall_ns, sample.step_ns) == (3 * STEP_NS, (STEP_NS,) * 3)
    assert calls == (["synchronize"] if is_open else [])


def test_a_first_step_has_arrived_before_it_is_looked_at(monkeypatch: pytest.MonkeyPatch, now: Time) -> None:
    """What a column is of decides which clock it is; the time that this takes is no step's."""

    class SlowToTell(list[list[int]]):
        @property
        def is_cuda(self) -> bool:
            now.take(WAIT_NS)
            return False

    open_gpu(monkeypatch, [])
    sample, _ = time_generation((SlowToTell(column) for column in steps(now, 1, 1)), work(2))
    assert sample.step_ns[0] == STEP_NS


def test_a_process_that_opened_no_gpu_opens_none_to_be_timed(monkeypatch: pytest.MonkeyPatch, now: Time) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: pytest.fail("an event opens the device"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: pytest.fail("so does waiting for it"))
    assert time_generation(steps(now, 1, 1), work(2))[0].clock == "host"


def test_no_time_of_a_device_holds_a_wait_and_it_is_idle_by_then(monkeypatch: pytest.MonkeyPatch, now: Time) -> None:
    calls: list[str] = []

    def wait() -> None:
        calls.append("wait")
        now.take(WAIT_NS)

    open_gpu(monkeypatch, calls)
    sample, _ = time_generation(on_gpu(now, 4), work(4), Waits([1, 3], wait))
    assert calls == ["synchronize", "synchronize", "wait", "synchronize", "wait", "synchronize"]
    assert (sample.clock, sample.resumed) == ("device", (1, 3))
    assert (sample.wall_ns, sample.step_ns) == (4 * STEP_NS, (STEP_NS,) * 4)


def test_a_generation_on_a_device_lasts_until_the_device_has_ended(monkeypatch: pytest.MonkeyPatch, now: Time) -> None:
    """The host is ahead of it; what it still had to do before the generation does not count."""
    open_gpu(monkeypatch, [], drain=WAIT_NS)
    sample, _ = time_generation(on_gpu(now, 2), work(2))
    assert (sample.wall_ns, sample.step_ns) == (2 * STEP_NS + WAIT_NS, (STEP_NS,) * 2)


@pytest.mark.parametrize(
    ("tokens", "batch", "got"),
    [((1, 1), 1, "1 rows of [2] tokens"), ((3, 2), 1, "1 rows of [5] tokens"), ((2, 2), 2, "1 rows of [4] tokens")],
)
def test_a_generation_of_another_size_is_wrong(tokens: tuple[int, ...], batch: int, got: str, now: Time) -> None:
    with pytest.raises(WrongOutput) as wrong:
        time_generation(steps(now, *tokens), work(4, batch))
    assert str(wrong.value) == f"expected {batch} rows of exactly 4 new tokens, got {got}"


def test_no_step_at_all_is_wrong_and_not_an_error(now: Time) -> None:
    with pytest.raises(WrongOutput, match=r"got 0 rows of \[\] tokens"):
        time_generation(iter(()), work(1))


def test_rows_are_joined_over_steps_of_several_tokens() -> None:
    tensor = SimpleNamespace(tolist=lambda: [[5], [6]])
    assert clock.rows_of([[[1, 2], [3, 4]], tensor]) == [[1, 2, 5], [3, 4, 6]]  # type: ignore[list-item]


def test_the_hash_of_tokens_tells_rows_and_their_ends_apart() -> None:
    """It is over 64-bit integers, lowest byte first, each row after its length."""
    one = struct.pack("<6q", 2, 5, 6, 2, 7, 8)
    assert hash_tokens([[5, 6], [7, 8]]) == hashlib.sha256(one).hexdigest()
    others = ([[5, 6, 7], [8]], [[5, 6, 7, 8]], [[7, 8], [5, 6]], [[5, 6], [7, 8]])
    assert len({hash_tokens(rows) for rows in others}) == len(others)
