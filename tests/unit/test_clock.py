"""The clock on a host, and where a generation stands still."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from claimbench.errors import WrongOutput
from claimbench.measuring.clock import Waits, time_generation
from claimbench.schema.cell import Workload

STEP_S, WAIT_S = 0.005, 0.05


def steps(*tokens: int) -> Iterator[list[list[int]]]:
    for count in tokens:
        end = time.perf_counter() + STEP_S
        while time.perf_counter() < end:
            pass
        yield [list(range(count))]


def work(new_tokens: int) -> Workload:
    return Workload(prompt="Hello", new_tokens=new_tokens)


def test_no_time_holds_a_wait() -> None:
    begun = time.perf_counter()
    sample, rows = time_generation(steps(1, 1, 1, 1), work(4), "cpu", Waits([1, 3], lambda: time.sleep(WAIT_S)))
    assert time.perf_counter() - begun > 2 * WAIT_S
    assert sample.resumed == (1, 3)
    assert max(sample.step_ns) < WAIT_S * 1e9
    assert sum(sample.step_ns) <= sample.wall_ns < 2 * WAIT_S * 1e9
    assert rows == [[0, 0, 0, 0]]
    plain, _ = time_generation(steps(1, 1, 1, 1), work(4), "cpu")
    assert (plain.resumed, plain.tokens_sha256) == ((), sample.tokens_sha256)


def test_a_step_that_reaches_several_marks_waits_for_each_of_them() -> None:
    """Whoever gives out turns counts on as many waits as there are marks, however many tokens a step accepts."""
    waits: list[int] = []
    marks = Waits([2, 4, 6], lambda: waits.append(1))
    sample, _ = time_generation(steps(1, 4, 1, 2), work(8), "cpu", marks)
    assert (len(waits), sample.resumed) == (3, (2, 3))
    last = Waits([2, 4, 6], lambda: waits.append(1))
    sample, _ = time_generation(steps(1, 7), work(8), "cpu", last)
    assert (len(waits), sample.resumed) == (6, ())


class FakeEvent:
    """Of a device that is as fast as the host."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, later: FakeEvent) -> float:
        return (later.at - self.at) * 1e3


def test_no_time_of_a_device_holds_a_wait_and_it_is_idle_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    calls: list[str] = []

    def wait() -> None:
        calls.append("wait")
        time.sleep(WAIT_S)

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    sample, _ = time_generation(steps(1, 1, 1, 1), work(4), "cuda", Waits([1, 3], wait))
    assert calls == ["synchronize", "synchronize", "wait", "synchronize", "wait", "synchronize"]
    assert (sample.clock, sample.resumed, len(sample.step_ns)) == ("device", (1, 3), 4)
    assert max(sample.step_ns) < WAIT_S * 1e9
    assert sum(sample.step_ns) <= sample.wall_ns < 2 * WAIT_S * 1e9


def test_a_generation_that_is_too_short_is_wrong() -> None:
    with pytest.raises(WrongOutput, match="exactly 4 new tokens"):
        time_generation(steps(1, 1), work(4), "cpu")
