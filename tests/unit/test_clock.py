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
    sample, rows = time_generation(steps(1, 1, 1, 1), work(4), Waits([1, 3], lambda: time.sleep(WAIT_S)))
    assert time.perf_counter() - begun > 2 * WAIT_S
    assert sample.resumed == (1, 3)
    assert max(sample.step_ns) < WAIT_S * 1e9
    assert sum(sample.step_ns) <= sample.wall_ns < 2 * WAIT_S * 1e9
    assert rows == [[0, 0, 0, 0]]
    plain, _ = time_generation(steps(1, 1, 1, 1), work(4))
    assert (plain.resumed, plain.tokens_sha256) == ((), sample.tokens_sha256)


def test_a_step_that_reaches_several_marks_waits_for_each_of_them() -> None:
    """Whoever gives out turns counts on as many waits as there are marks, however many tokens a step accepts."""
    waits: list[int] = []
    marks = Waits([2, 4, 6], lambda: waits.append(1))
    sample, _ = time_generation(steps(1, 4, 1, 2), work(8), marks)
    assert (len(waits), sample.resumed) == (3, (2, 3))
    last = Waits([2, 4, 6], lambda: waits.append(1))
    sample, _ = time_generation(steps(1, 7), work(8), last)
    assert (len(waits), sample.resumed) == (6, ())


class FakeEvent:
    """Of a device that is as fast as the host."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, later: FakeEvent) -> float:
        return (later.at - self.at) * 1e3


class OnGpu(list[list[int]]):
    """Token ids [batch, n] as a tensor of a GPU would hold them."""

    is_cuda = True

    def tolist(self) -> list[list[int]]:
        return list(self)


def open_gpu(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """As if this process had opened a GPU."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))


@pytest.mark.parametrize("is_open", [True, False])
def test_ids_that_a_server_sends_are_timed_by_the_host_whatever_this_process_has_open(
    is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    if is_open:
        open_gpu(monkeypatch, calls)
    sample, rows = time_generation(steps(1, 2, 1), work(4), Waits([3], lambda: time.sleep(WAIT_S)))
    assert (sample.clock, sample.resumed, len(rows[0])) == ("host", (2,), 4)
    assert sum(sample.step_ns) <= sample.wall_ns < WAIT_S * 1e9
    assert calls == (["synchronize"] if is_open else [])


def test_a_process_that_opened_no_gpu_opens_none_to_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: pytest.fail("an event opens the device"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: pytest.fail("so does waiting for it"))
    assert time_generation(steps(1, 1), work(2))[0].clock == "host"


def test_no_time_of_a_device_holds_a_wait_and_it_is_idle_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def wait() -> None:
        calls.append("wait")
        time.sleep(WAIT_S)

    open_gpu(monkeypatch, calls)
    on_gpu = (OnGpu([[1]]) for _ in range(4))
    sample, _ = time_generation(on_gpu, work(4), Waits([1, 3], wait))
    assert calls == ["synchronize", "synchronize", "wait", "synchronize", "wait", "synchronize"]
    assert (sample.clock, sample.resumed, len(sample.step_ns)) == ("device", (1, 3), 4)
    assert max(sample.step_ns) < WAIT_S * 1e9
    assert sum(sample.step_ns) <= sample.wall_ns < 2 * WAIT_S * 1e9


def test_a_generation_that_is_too_short_is_wrong() -> None:
    with pytest.raises(WrongOutput, match="exactly 4 new tokens"):
        time_generation(steps(1, 1), work(4))
