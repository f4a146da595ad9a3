"""Blocks under supervision on the device: one that ends well, one out of memory, one that is killed."""

from __future__ import annotations

from typing import Any

from gpu_day.record import Json
from gpu_day.right_device import expect
from gpu_day.stage import Check, Context, Skip

SPARE_BYTES = 1_200 << 20
"""Left free on the device: a context fits into it, scores of a large batch do not."""
CROWD: dict[str, Any] = {"batch": 8192, "prompt_tokens": 128}
TIMEOUT_S = 90.0


def checks(context: Context) -> list[Check]:
    return [
        Check("block/ends well", ends_well, limit_s=150),
        Check("block/out of memory", out_of_memory, limit_s=150),
        Check("block/killed", killed, limit_s=150),
    ]


def block(context: Context, name: str, backend: str = "engine", options: Any = None, **workload: Any) -> Any:
    """The result of one block, measured as the workflow does; its checkpoint is random and tiny."""
    from claimbench.checkpoints.shard import shard
    from claimbench.measuring.measure import measure
    from claimbench.planning.result_key import key_of
    from claimbench.schema.cell import Cell, Checkpoint, Protocol, Workload

    checkpoint = Checkpoint(name="tiny", source="random://tiny-llama?seed=0", architecture="tiny-llama")
    limit = 4_000_000_000 if name == "oom" and not context.cuda else None
    cell = Cell(
        checkpoint=checkpoint,
        backend=backend,
        options=options or {},
        workload=Workload(**{"prompt": "hello", "prompt_tokens": 16, "new_tokens": 8, **workload}),
        device=context.device,
        protocol=Protocol(samples=2, warmup_max=2, timeout_s=TIMEOUT_S, memory_limit=limit),
    )
    folder = context.scratch / "tiny"
    shard(checkpoint, context.scratch / "fetched", folder, max_shard_bytes=1 << 30)
    needs_it = backend == "engine"
    key = key_of(cell, "gpu-day")
    return measure(cell, 0, key, context.scratch / f"{name}.json", checkpoint=folder if needs_it else None)


def ends_well(context: Context) -> Json:
    """A fresh process loads, warms up, times on the device's clock, proves, and says what memory it took."""
    record = block(context, "well")
    expect(record.outcome == "ok", "an outcome of ok", f"{record.outcome}: {record.reason}")
    clocks = {sample.clock for sample in record.samples}
    expect(clocks == {"device" if context.cuda else "host"}, "this device's clock", clocks)
    if context.cuda:
        expect(record.memory.get("device_allocated_peak", 0) > 0, "a peak of the device's memory", record.memory)
    return {"duration_s": record.duration_s, "clock": clocks.pop(), "memory": dict(record.memory)}


def out_of_memory(context: Context) -> Json:
    """On a GPU that is nearly full, or under a limit: the outcome is `oom`, with a reason, and nothing breaks."""
    if not context.cuda:
        record = block(context, "oom", backend="null_model", options={"fails": "allocate"})
    else:
        import torch

        free, _ = torch.cuda.mem_get_info()
        if free <= SPARE_BYTES:
            raise Skip("this GPU is full already")
        hog = torch.empty(free - SPARE_BYTES, dtype=torch.uint8, device="cuda")
        try:
            record = block(context, "oom", **CROWD)
        finally:
            del hog
            torch.cuda.empty_cache()
    expect(record.outcome == "oom", "an outcome of oom", f"{record.outcome}: {record.reason}")
    return {"reason": record.reason}


def killed(context: Context) -> Json:
    """A worker that is killed leaves a result that says so, and gives the device's memory back."""
    before = _free_bytes(context)
    record = block(context, "killed", backend="null_model", options={"fails": "kill", "fails_step": 2})
    expect(record.outcome == "error", "an outcome of error", f"{record.outcome}: {record.reason}")
    expect("SIGKILL" in (record.reason or ""), "a reason that names the signal", record.reason)
    lost = before - _free_bytes(context)
    expect(lost < 64 << 20, "the device's memory given back", f"{lost:,} bytes still taken")
    return {"reason": record.reason}


def _free_bytes(context: Context) -> int:
    if not context.cuda:
        return 0
    import torch

    return int(torch.cuda.mem_get_info()[0])
