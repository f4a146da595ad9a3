"""The metrics: what each is called, its unit, which way is better, and how it follows from a raw result. Pure.

Prefill is the first step, from the call to the first new token; decode is every step after it. Decode is never
derived by subtracting one run from another.
"""

from __future__ import annotations

from statistics import median
from typing import Literal, NamedTuple

import numpy as np

from claimbench.result import Result, Sample
from claimbench.serving import times

Numbers = dict[str, float | None]


class Metric(NamedTuple):
    title: str
    """As it stands in a sentence: `1.2x of plain in <title>`."""
    unit: str
    better: Literal["higher", "lower", "none"] = "lower"
    is_certain: bool = False
    """A count, or a comparison of fixed tokens: without noise, so its worst block is judged, and one is enough."""


METRICS: dict[str, Metric] = {
    "decode_tok_s": Metric("decode tokens per second", "tok/s", "higher"),
    "prefill_tok_s": Metric("prefill tokens per second", "tok/s", "higher"),
    "tok_s": Metric("tokens per second end to end", "tok/s", "higher"),
    "prefill_ms": Metric("prefill time (to the first token)", "ms"),
    "step_ms": Metric("time of the median decode step", "ms"),
    "step_p95_ms": Metric("time of the 95th percentile decode step", "ms"),
    "tpot_ms": Metric("decode time per output token of a row", "ms"),
    "ms_per_token": Metric("wall time per token of the batch", "ms"),
    "total_ms": Metric("wall time of a generation", "ms"),
    "tokens_per_step": Metric("tokens per decode step of a row", "tokens", "higher"),
    "load_s": Metric("load time", "s"),
    "load_gb_s": Metric("checkpoint read per second of loading", "GB/s", "higher"),
    "checkpoint_bytes": Metric("bytes of the checkpoint's files", "B", "none"),
    "checkpoint_cached_share": Metric("share of the checkpoint in the page cache before loading", "", "none"),
    "first_call_s": Metric("time of the first call", "s"),
    "compile_s_extra": Metric("time that the first call takes beyond a later one", "s"),
    "energy_j_per_token": Metric("energy per token", "J"),
    "weights_bytes": Metric("bytes of weights", "B"),
    "step_weights_bytes": Metric("bytes of weights read per decode step", "B"),
    "kv_cache_bytes": Metric("bytes of key-value cache", "B"),
    "peak_bytes": Metric("peak memory (allocated on a device, resident on a CPU)", "B"),
    "rss_peak_bytes": Metric("peak resident memory of the process", "B"),
    "server_rss_bytes": Metric("resident memory of the server's processes once it serves", "B"),
    "rss_load_bytes": Metric("resident memory added by loading", "B"),
    "device_allocated_peak_bytes": Metric("peak device memory allocated", "B"),
    "device_reserved_peak_bytes": Metric("peak device memory reserved", "B"),
    "device_used_bytes": Metric("device memory in use", "B"),
    "recompiles": Metric("recompilations", "", "lower", is_certain=True),
    "graphs": Metric("captured graphs", "", "none", is_certain=True),
    "token_agreement": Metric("share of tokens equal to the reference's", "", "higher"),
    "kl_mean_nats": Metric("mean divergence from the reference", "nats", is_certain=True),
    "top1_agreement": Metric(
        "share of positions that rank the reference's first token first", "", "higher", is_certain=True
    ),
    "ceiling_ms": Metric("physical limit of a decode step", "ms", "none"),
    "ceiling_fraction": Metric("fraction of the decode ceiling", "", "higher"),
    "prefill_ceiling_ms": Metric("physical limit of prefill", "ms", "none"),
    "prefill_ceiling_fraction": Metric("fraction of the prefill ceiling", "", "higher"),
    "load_clients": Metric("clients at once under load (of a sweep, the best number)", "", "none"),
    "load_ttft_ms": Metric("median time to the first token under load", "ms"),
    "load_ttft_p95_ms": Metric("95th percentile of the time to the first token under load", "ms"),
    "load_itl_ms": Metric("median inter-token latency under load", "ms"),
    "load_itl_p95_ms": Metric("95th percentile of inter-token latency under load", "ms"),
    "load_tpot_ms": Metric("median time per output token under load", "ms"),
    "load_end_to_end_ms": Metric("median time of a request under load", "ms"),
    "load_end_to_end_p95_ms": Metric("95th percentile of the time of a request under load", "ms"),
    "load_tok_s": Metric("tokens per second under load", "tok/s", "higher"),
    "load_requests_per_s": Metric("answers per second under load", "1/s", "higher"),
    "load_goodput_per_s": Metric("answers per second that keep the objective", "1/s", "higher"),
    "load_failed_share": Metric("share of requests without a whole answer", ""),
    "load_lateness_ms": Metric("95th percentile of the client's own delay in an open loop", "ms"),
    "wall_event_gap": Metric("disagreement of the two clocks", "", "lower"),
}

MEMORY = (
    "weights",
    "step_weights",
    "kv_cache",
    "rss_peak",
    "server_rss",
    "device_allocated_peak",
    "device_reserved_peak",
    "device_used",
)
PEAK = {"cuda": "device_allocated_peak", "cpu": "rss_peak"}
"""What `peak_bytes` is: of the device's allocator, or of the process where the device is the host."""


def of_sample(sample: Sample, batch: int, read_tokens: int | None) -> Numbers:
    """What one generation says; `read_tokens` are those of all rows' prompts. One step alone has no decode metrics."""
    decode_ns, decode_steps = sum(sample.step_ns[1:]), len(sample.step_ns) - 1
    decode_tokens = sum(sample.step_tokens[1:])  # of one row
    row_tokens = sum(sample.step_tokens)
    numbers: Numbers = {
        "prefill_ms": sample.step_ns[0] / 1e6,
        "prefill_tok_s": _per(read_tokens, sample.step_ns[0] / 1e9) if read_tokens else None,
        "tok_s": _per(batch * row_tokens, sample.wall_ns / 1e9),
        "ms_per_token": sample.wall_ns / 1e6 / (batch * row_tokens),
        "total_ms": sample.wall_ns / 1e6,
        "wall_event_gap": _per(abs(sample.wall_ns - sum(sample.step_ns)), sample.wall_ns),
    }
    if decode_steps and decode_tokens:
        numbers |= {
            "decode_tok_s": _per(batch * decode_tokens, decode_ns / 1e9),
            "step_ms": median(sample.step_ns[1:]) / 1e6,
            "step_p95_ms": float(np.percentile(sample.step_ns[1:], 95)) / 1e6,
            "tpot_ms": decode_ns / 1e6 / decode_tokens,
            "tokens_per_step": decode_tokens / decode_steps,
        }
    return numbers


def of_block(result: Result) -> Numbers:
    """What one block says beyond its generations: loading, first call, memory, energy, proof, fidelity."""
    walls = [sample.wall_ns for sample in result.samples]
    memory, cell = result.memory, result.cell
    first_s = _scaled(result.first_call_ns, 1e-9)
    made = cell.rows * cell.workload.new_tokens * len(walls)
    files = result.telemetry.get("checkpoint", {})
    on_disk, cached = files.get("bytes"), files.get("cached_bytes")
    load_s = _scaled(result.load_ns, 1e-9)
    numbers: Numbers = {
        "load_s": load_s,
        "load_gb_s": _per(on_disk / 1e9, load_s) if on_disk and load_s else None,
        "checkpoint_bytes": _scaled(on_disk, 1),
        "checkpoint_cached_share": _per(cached, on_disk) if cached is not None and on_disk else None,
        "first_call_s": first_s,
        "compile_s_extra": first_s - median(walls) / 1e9 if first_s is not None and walls else None,
        "energy_j_per_token": _per(result.energy_mj / 1e3, made) if result.energy_mj is not None else None,
        "rss_load_bytes": _difference(memory.get("rss_after_load"), memory.get("rss_before_load")),
        "peak_bytes": _scaled(memory.get(PEAK[result.cell.device]), 1),
        "recompiles": _count(result, "recompiles"),
        "graphs": _count(result, "graphs"),
        "kl_mean_nats": result.fidelity.kl_mean_nats if result.fidelity else None,
        "top1_agreement": result.fidelity.top1_agreement if result.fidelity else None,
    }
    numbers |= {f"{name}_bytes": _scaled(memory.get(name), 1) for name in MEMORY}
    return numbers | times.of_load(result.proof.get("load"))


def agreement(tokens: tuple[int, ...], reference: tuple[int, ...]) -> tuple[float | None, int | None]:
    """The share of row-0 positions that are equal, and the first that is not (None if all are)."""
    length = max(len(tokens), len(reference))
    if not tokens or not reference:
        return None, None
    equal = [ours == theirs for ours, theirs in zip(tokens, reference, strict=False)]
    equal += [False] * (length - len(equal))
    return sum(equal) / length, None if all(equal) else equal.index(False)


def _per(amount: float, by: float) -> float | None:
    return amount / by if by else None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _difference(after: int | None, before: int | None) -> float | None:
    return None if after is None or before is None else float(after - before)


def _count(result: Result, name: str) -> float | None:
    value = result.proof.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
