"""The device as the driver tells of it, its limits, and the clock against the wall."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from gpu_day.record import Json
from gpu_day.stage import Check, Context, Skip

LOOP_S = 3.0
SAME_CEILING = {"cuda": 0.05, "cpu": 0.6}
"""How far two measurements of a limit may be apart: a CPU is shared with others."""
WITHIN = 0.03
"""How far steps may be from summing to the wall time."""
KNOWN = {"cuda": 0.06, "cpu": 1.0}
"""How far a step may be from what is known of a loop: beside others, a CPU takes up to twice as long."""
TRIES = 3
STEPS = 20


def checks(context: Context) -> list[Check]:
    return [
        Check("device/uuid", same_device, ("cuda", "pynvml")),
        Check("device/energy and clocks in a loop", read_in_loop, ("cuda", "pynvml")),
        Check("device/limits twice", limits_twice, limit_s=180),
        Check("clock/against the wall", clock_against_wall),
        Check("clock/graph", clock_of_graph, ("cuda",)),
        Check("clock/busy neighbour", clock_beside_neighbour, ("cuda",)),
    ]


def expect(held: bool, expected: str, found: object) -> None:
    if not held:
        raise AssertionError(f"expected {expected}, found {found}")


def same_device(context: Context) -> Json:
    """NVML finds each of torch's devices by UUID, and says the same name and memory of it."""
    import torch

    from claimbench.system import gpus

    seen, facts = gpus.seen(), gpus.facts()
    expect(len(seen.devices) == torch.cuda.device_count() > 0, f"{torch.cuda.device_count()} devices", seen)
    with gpus.management() as nvml:
        for number, device in enumerate(seen.devices):
            handle = gpus.handle_of(nvml, device)
            expect(handle is not None, "a handle of NVML for the UUID", device.uuid)
            told = gpus.text(gpus.query(nvml, "nvmlDeviceGetUUID", handle)) or ""
            expect(told.partition("-")[2] == device.uuid, device.uuid, told)
            here: Any = torch.cuda.get_device_properties(number)
            expect(device.name == here.name, here.name, device.name)
            expect(abs(facts[number]["memory_bytes"] / here.total_memory - 1) < 0.1, "about torch's memory", facts)
    return {"uuids": [device.uuid[:8] for device in seen.devices], "facts": [dict(one) for one in facts]}


def busy_loop(seconds: float) -> int:
    """Matrix products until `seconds` are over; how many."""
    import torch

    left = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    products, ends = 0, time.perf_counter() + seconds
    while time.perf_counter() < ends:
        for _ in range(20):
            left @ left
        torch.cuda.synchronize()
        products += 20
    return products


def read_in_loop(context: Context) -> Json:
    """Energy, clocks, heat and throttling are read while products run: more power than at rest, a clock that is up."""
    import os

    import torch

    from claimbench.system import gpus
    from claimbench.system.gpu_watch import GpuWatch

    torch.zeros(1, device="cuda")
    before = gpus.energy_mj()
    time.sleep(LOOP_S)
    rested = gpus.energy_mj()
    watch = GpuWatch([os.getpid()])
    products = busy_loop(LOOP_S)
    busy, seen = gpus.energy_mj(), watch.end()
    if before is None or rested is None or busy is None:
        raise Skip("this device has no energy counter")
    idle_w, busy_w = (rested - before) / 1e3 / LOOP_S, (busy - rested) / 1e3 / LOOP_S
    expect(busy_w > 1.2 * idle_w, "more power in a loop than at rest", f"{busy_w:.0f} W and {idle_w:.0f} W")
    expect(seen.get("looks", 0) >= 3, "at least 3 looks during the loop", seen)
    expect(seen.get("sm_mhz_most", 0) > 0 and seen.get("celsius_most", 0) > 0, "clocks and heat", seen)
    return {"idle_w": round(idle_w, 1), "busy_w": round(busy_w, 1), "products": products, **seen}


def limits_twice(context: Context) -> Json:
    """Read bandwidth and product rate, each measured twice, agree."""
    import torch

    from claimbench.measuring import ceiling

    device: Any = context.device
    rounds = []
    side = 512 if context.tiny else 4096
    for _ in range(2):
        kernels = ceiling.reading_kernels(device) if not context.tiny else [torch.ones(1 << 22, device=device).sum]
        read = ceiling.read_bytes(device) if not context.tiny else 4 << 22
        at_least = 0.1 if context.tiny else ceiling.AT_LEAST_S
        rates = {"read": read / min(ceiling.best_seconds(device, run, at_least) for run in kernels)}
        for dtype in ("float32", "bfloat16") if context.cuda else ("float32",):
            rates[dtype] = 2 * side**3 / ceiling.best_seconds(device, ceiling.product(device, dtype, side), at_least)
        rounds.append(rates)
    apart = {name: abs(math.log(rounds[0][name] / rounds[1][name])) for name in rounds[0]}
    worst = max(apart, key=apart.__getitem__)
    expect(apart[worst] < SAME_CEILING[device], f"within {SAME_CEILING[device]:.0%}", f"{worst}: {apart[worst]:.1%}")
    return {"first": rounds[0], "second": rounds[1], "apart": {name: round(one, 4) for name, one in apart.items()}}


class Loop:
    """Steps of some products each, whose length is known from a run that is timed by the wall alone."""

    def __init__(self, context: Context) -> None:
        import torch

        self.device = context.device
        side, self.products = (4096, 8) if context.cuda else (256, 20)
        self.matrix = torch.randn(side, side, device=self.device) / math.sqrt(side)
        self.tokens = torch.zeros((1, 1), dtype=torch.int64, device=self.device)
        self.work()
        self.known_ns = min(self.wall_ns() for _ in range(TRIES)) / STEPS

    def work(self) -> None:
        for _ in range(self.products):
            self.matrix @ self.matrix

    def wait(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def wall_ns(self) -> int:
        self.wait()
        start = time.perf_counter_ns()
        for _ in range(STEPS):
            self.work()
        self.wait()
        return time.perf_counter_ns() - start

    def timed(self, work: Callable[[], None]) -> Any:
        """What the product's own clock says of `STEPS` steps, at the best of some tries, as is what is known."""
        from claimbench.measuring.clock import time_generation
        from claimbench.schema.cell import Workload

        def steps() -> Iterator[Any]:
            for _ in range(STEPS):
                work()
                yield self.tokens

        workload = Workload(prompt="clock", new_tokens=STEPS)
        return min((time_generation(steps(), workload)[0] for _ in range(TRIES)), key=lambda sample: sample.wall_ns)


def told_of(sample: Any, known_ns: float, context: Context) -> Json:
    """A sample whose steps sum to its wall time, in ratios."""
    expect(sample.clock == ("device" if context.cuda else "host"), "the clock of this device", sample.clock)
    steps = sum(sample.step_ns)
    expect(abs(steps / sample.wall_ns - 1) < WITHIN, "steps that sum to the wall time", sample)
    ratios = {"steps_over_wall": steps / sample.wall_ns, "step_over_known": steps / STEPS / known_ns}
    return {"clock": sample.clock, **ratios}


def clock_against_wall(context: Context) -> Json:
    """The product's clock times a loop of known length."""
    loop = Loop(context)
    found = told_of(loop.timed(loop.work), loop.known_ns, context)
    off = abs(found["step_over_known"] - 1)
    expect(off < KNOWN[context.device], f"steps of {loop.known_ns / 1e6:.3f} ms", f"{off:.1%} off")
    return found | {"known_ms": loop.known_ns / 1e6}


def clock_of_graph(context: Context) -> Json:
    """The same work as a captured graph takes the same time, and the clock sees it."""
    import torch

    loop = Loop(context)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loop.work()
    graph.replay()
    found = told_of(loop.timed(graph.replay), loop.known_ns, context)
    off = abs(found["step_over_known"] - 1)
    expect(off < KNOWN[context.device], f"steps of {loop.known_ns / 1e6:.3f} ms", f"{off:.1%} off")
    return found


def clock_beside_neighbour(context: Context) -> Json:
    """Beside a stream that is busy, the clock times the steps of its own stream: as long as alone, or longer."""
    import torch

    loop = Loop(context)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    other = torch.randn(4096, 4096, device="cuda")

    def work() -> None:
        with torch.cuda.stream(side):
            for _ in range(2):
                other @ other
        loop.work()

    sample = loop.timed(work)
    expect(sample.clock == "device", "the device's clock", sample.clock)
    share = sum(sample.step_ns) / STEPS / loop.known_ns
    expect(share > 1 - WITHIN, "no step shorter than alone", f"{share:.3f} of it")
    expect(sum(sample.step_ns) <= sample.wall_ns * 1.01, "no more than the wall time", sample)
    return {"step_over_alone": share, "steps_over_wall": sum(sample.step_ns) / sample.wall_ns}
