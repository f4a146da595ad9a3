"""How fast? Shapes of 7 and 15 billion weights at batch 1, per way of stepping: time, bytes, kernels, idle time.

A step's floor is what it must read, its weights and its keys and values, over the bandwidth that a plain kernel reads
with in the same process. The bare products of one row are the library's own: nothing but the matrices.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from gpu_day.record import Json
from gpu_day.right_cells import whole
from gpu_day.right_device import expect
from gpu_day.stage import Check, Context, Skip
from gpu_day.tiny import Use

REPEATS = 3
TOKENS = {False: 64, True: 8}
"""Steps that are timed a generation; the second is of tiny shapes, here and below."""
KEYS = {False: (64, 1024), True: (16,)}
SHAPES = {False: ("mistral-7b", "starcoder"), True: ("tiny-llama", "tiny-bigcode")}
PROFILED = 8
LEAN: tuple[str | Use, ...] = (
    "simple_mask", "cache_static", "last_token_head", "details_on_demand", "vectorised_processing", "fused_layer_norm",
)  # fmt: skip
LIBRARY: tuple[str | Use, ...] = ("sdpa", "static_cache", "forward_loop")


class Way(NamedTuple):
    uses: tuple[str | Use, ...]
    backend: str = "engine"
    is_tiny: bool = False
    """Quick enough for a CPU to try it."""


def _compiled(mode: str) -> Use:
    return "compiled_step", {"mode": mode}


def _codes(form: str) -> Use:
    return f"weight_{form}", {"compiled": False}


AHEAD: Use = ("triton_step", {"dependent_launch": True})


def _model(mode: str) -> Use:
    return "compile_model", {"mode": mode}


GRAPHED: tuple[str | Use, ...] = (*LIBRARY, _model("reduce-overhead"))
WAYS = {
    "eager": Way(LEAN, is_tiny=True),
    "graph": Way((*LEAN, "cuda_graphs"), is_tiny=True),
    "graph, int8": Way((*LEAN, "cuda_graphs", "weight_int8")),
    "graph, int4": Way((*LEAN, "cuda_graphs", "weight_int4")),
    "compiled": Way((*LEAN, _compiled("default"))),
    "compiled, graph": Way((*LEAN, _compiled("reduce-overhead"))),
    "compiled, graph a bucket": Way((*LEAN, "compiled_graphs")),
    "compiled, graph a bucket, int8": Way((*LEAN, "compiled_graphs", "weight_int8")),
    "Triton": Way((*LEAN, "triton_step")),
    "Triton, int8": Way((*LEAN, "triton_step", _codes("int8"))),
    "Triton, fp8": Way((*LEAN, "triton_step", _codes("fp8"))),
    "Triton, int4": Way((*LEAN, "triton_step", _codes("int4"))),
    "Triton, launched ahead": Way((*LEAN, AHEAD)),
    "Triton, int4, launched ahead": Way((*LEAN, AHEAD, _codes("int4"))),
    "compiled, graph, int8": Way((*LEAN, _compiled("reduce-overhead"), "weight_int8")),
    "compiled, graph, int4": Way((*LEAN, _compiled("reduce-overhead"), "weight_int4")),
    "eager, int8": Way((*LEAN, ("weight_int8", {"compiled": False})), is_tiny=True),
    "Transformers": Way(("sdpa", "static_cache"), "transformers", is_tiny=True),
    "Transformers, compiled, graph": Way(GRAPHED, "transformers"),
    "Transformers, compiled, graph, torchao int8": Way((*GRAPHED, "torchao_int8"), "transformers"),
    "Transformers, compiled, graph, torchao int4": Way((*GRAPHED, "torchao_int4"), "transformers"),
    "compiled, autotuned": Way((*LEAN, _compiled("max-autotune"))),
    "Transformers, compiled, autotuned": Way((*LIBRARY, _model("max-autotune")), "transformers"),
}
OF_SECOND_SHAPE = ("eager", "graph", "compiled, graph", "graph, int8", "Triton", "Triton, int8")


def checks(context: Context) -> list[Check]:
    """The first shape at the first length comes first: what is late is what matters least."""
    first, second = SHAPES[context.tiny]
    asked = [(first, way, keys) for keys in KEYS[context.tiny] for way in WAYS]
    asked += [(second, way, keys) for keys in KEYS[context.tiny] for way in OF_SECOND_SHAPE]
    found = [Check("read bandwidth", limits), Check(f"{first}/bare products", functools.partial(bare, shape=first))]
    for shape, way, keys in asked:
        if not context.tiny or WAYS[way].is_tiny:
            run = functools.partial(timed, shape=shape, way=way, keys=keys)
            found.append(Check(f"{shape}/{way}/{keys}", run, limit_s=240.0))
    found.append(Check(f"{second}/bare products", functools.partial(bare, shape=second)))
    return found


@functools.cache
def read_rate(device: str, tiny: bool) -> float:
    """Bytes a second of the best plain kernel that reads; once a process."""
    import torch

    from claimbench.measuring import ceiling

    kind: Any = device
    if tiny:
        ones = torch.ones(1 << 22, device=device)
        return ones.nbytes / ceiling.best_seconds(kind, ones.sum, 0.1)
    with torch.inference_mode():
        kernels = ceiling.reading_kernels(kind)
        return ceiling.read_bytes(kind) / min(ceiling.best_seconds(kind, run) for run in kernels)


def limits(context: Context) -> Json:
    rate = read_rate(context.device, context.tiny)
    expect(rate > 1e8, "a bandwidth of memory", rate)
    return {"read_bytes_per_s": rate}


def bare(context: Context, shape: str) -> Json:
    """One row through every matrix that a step reads, and nothing else: one graph of them on a GPU."""
    import torch

    from claimbench.checkpoints.tensors import shapes
    from claimbench.cost_model import cost
    from claimbench.measuring import ceiling

    arch = cost.architecture(shape)
    looked_up = ("embed_tokens.weight", "wpe.weight") if not arch.tied else ("wpe.weight",)
    sizes = [one for name, one in shapes(arch).items() if len(one) == 2 and not name.endswith(looked_up)]
    dtype = torch.bfloat16 if context.cuda else torch.float32
    matrices = [torch.empty(size, dtype=dtype, device=context.device).normal_() for size in sizes]
    rows = {size[1]: torch.randn(1, size[1], dtype=dtype, device=context.device) for size in sizes}

    def run() -> torch.Tensor:
        for matrix in matrices:
            last = torch.nn.functional.linear(rows[matrix.shape[1]], matrix)
        return last

    with torch.inference_mode():
        again: Callable[[], Any] = _captured(run) if context.cuda else run
        seconds = ceiling.best_seconds(context.device, again, 0.2)  # type: ignore[arg-type]
    size = sum(matrix.nbytes for matrix in matrices)
    return _told(context, seconds * 1e3, size) | {"matrices": len(matrices)}


def _captured(run: Callable[[], Any]) -> Callable[[], Any]:
    import torch

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries take their workspaces now
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _told(context: Context, milliseconds: float, read_bytes: int) -> Json:
    rate = read_rate(context.device, context.tiny)
    floor_ms = read_bytes / rate * 1e3
    return {
        "ms": round(milliseconds, 4),
        "read_bytes": read_bytes,
        "read_bytes_per_s": rate,
        "floor_ms": round(floor_ms, 4),
        "of_read": round(floor_ms / milliseconds, 4),
    }


def timed(context: Context, shape: str, way: str, keys: int) -> Json:
    """Load, compile, time three generations by the product's clock, look at the kernels of some steps, prove."""
    import torch

    if context.cuda:
        torch.cuda.reset_peak_memory_stats()
    session, cell = opened(context, shape, WAYS[way], keys)
    try:
        from claimbench.measuring.clock import time_generation

        start = time.perf_counter()
        _, first = time_generation(session.generate(), cell.workload)
        compile_s = time.perf_counter() - start
        time_generation(session.generate(), cell.workload)  # graphs are recorded by the second call
        samples, rows = zip(*(time_generation(session.generate(), cell.workload) for _ in range(REPEATS)), strict=True)
        hashes = {sample.tokens_sha256 for sample in samples}
        expect(len(hashes) == 1, f"{REPEATS} generations of the same tokens", f"{len(hashes)} kinds")
        expect(samples[0].clock == ("device" if context.cuda else "host"), "this device's clock", samples[0].clock)
        each = [statistics.median(sample.step_ns[1:]) / 1e6 for sample in samples]
        held = session.memory()
        cache = held["kv_cache"] * (keys + TOKENS[context.tiny] / 2) / (keys + TOKENS[context.tiny])
        found = _told(context, statistics.median(each), int(held["step_weights"] + cache))
        found |= {"each_ms": [round(one, 4) for one in each], "compile_s": round(compile_s, 2)}
        found |= forecast_of(shape, WAYS[way], keys, context)
        found |= {"weights": held["weights"], "same_as_first": rows[0] == first, "dtype": cell.dtype}
        found |= kernels(session) if context.cuda else {}
        proof = session.prove()
        found |= {"graph_launches": proof.get("graph_launches"), "kinds": proof.get("weights")}
        if context.cuda:
            found["peak_bytes"] = int(torch.cuda.max_memory_allocated())
        return found
    finally:
        session.close()


def forecast_of(shape: str, way: Way, keys: int, context: Context) -> Json:
    """Kernels and milliseconds a step, as counted beforehand, at the bandwidth that was read here."""
    named = [use if isinstance(use, str) else use[0] for use in way.uses]
    if "triton_step" not in named:
        return {}
    import decode_forecast

    form = next((form for form, name in decode_forecast.FORMATS.items() if name in named), "bfloat16")
    own = decode_forecast.WAYS["triton_step"]
    length = keys + TOKENS[context.tiny] // 2
    one = decode_forecast.forecast(decode_forecast.model_of(shape, form), shape, form, length, own)
    milliseconds = one.seconds(read_rate(context.device, context.tiny)) * 1e3
    return {"forecast_kernels": one.counted.launches, "forecast_ms": round(milliseconds, 4)}


def opened(context: Context, shape: str, way: Way, keys: int) -> tuple[Any, Any]:
    """A session whose weights are drawn on the device; `Skip` where something for it is lacking."""
    from claimbench import optimizations
    from claimbench.engine.session import checked
    from claimbench.errors import Unavailable
    from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Workload
    from gpu_day import drawn

    uses = [
        OptimizationUse(name=name, settings=optimizations.settings_of(name, raw).model_dump(mode="json"))
        for name, raw in sorted(whole(list(way.uses)), key=lambda use: use[0])
    ]
    cell = Cell(
        checkpoint=Checkpoint(name=shape, source=f"random://{shape}?seed=0", architecture=shape),
        backend=way.backend,
        optimizations=tuple(uses),
        dtype="bfloat16" if context.cuda else "float32",
        workload=Workload(prompt="How fast?", prompt_tokens=keys, new_tokens=TOKENS[context.tiny] + 1),
        device=context.device,
    )
    folder = drawn.folder_of(shape, context.scratch)
    try:
        if way.backend == "transformers":
            return drawn.transformers_session(cell, folder), cell
        return checked(drawn.DrawnSession, cell, folder, None, optimizations.used_by(cell)), cell
    except Unavailable as why:
        raise Skip(str(why)) from why


def kernels(session: Any) -> Json:
    """Kernels a step, and microseconds a step in which none runs. Profiling slows the host: eager steps idle more."""
    import torch

    from claimbench.proof import recorded

    generation = session.generate()
    for _ in range(3):
        next(generation)
    torch.cuda.synchronize()
    with recorded("cuda") as profiler:
        for _ in range(PROFILED):
            next(generation)
        torch.cuda.synchronize()
    generation.close()
    on_device = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    spans = [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in profiler.kineto_results.events()
        if event.device_type() == on_device and event.duration_ns() > 0
    ]
    expect(len(spans) >= PROFILED, "at least a kernel a step", len(spans))
    busy, idle = busy_and_idle(spans)
    return {
        "kernels_a_step": round(len(spans) / PROFILED, 1),
        "busy_us_a_step": round(busy / 1e3 / PROFILED, 1),
        "idle_us_a_step": round(idle / 1e3 / PROFILED, 1),
    }


def busy_and_idle(spans: list[tuple[int, int]]) -> tuple[int, int]:
    """Of the time from the first begin to the last end: in which something runs, and in which nothing does."""
    busy, idle, until = 0, 0, min(begin for begin, _ in spans)
    for begin, end in sorted(spans):
        idle += max(0, begin - until)
        busy += max(0, end - max(begin, until))
        until = max(until, end)
    return busy, idle
