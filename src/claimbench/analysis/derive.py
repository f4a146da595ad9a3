"""How metrics follow from a raw result. Pure.

Prefill is the first step, from the call to the first new token; decode is every step after it. Decode is never derived
by subtracting one run from another.
"""

from __future__ import annotations

from itertools import zip_longest
from statistics import median

import numpy as np

from claimbench.schema.metrics import METRICS
from claimbench.schema.result import Result, Sample
from claimbench.serving import request_metrics

Numbers = dict[str, float | None]

PEAK_MEMORY = {"cuda": "device_allocated_peak", "cpu": "rss_peak"}
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
        "wall_event_gap": wall_event_gap(sample),
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
    made = cell.rows * cell.workload.new_tokens * len(walls)
    files = result.telemetry.get("checkpoint", {})
    on_disk, cached = files.get("bytes"), files.get("cached_bytes")
    load_s = _scaled(result.load_ns, 1e-9)
    numbers: Numbers = {
        "load_s": load_s,
        "load_gb_s": _per(on_disk / 1e9, load_s) if on_disk and load_s else None,
        "checkpoint_bytes": _scaled(on_disk, 1),
        "checkpoint_cached_share": _per(cached, on_disk) if cached is not None and on_disk else None,
        "first_call_s": _scaled(result.first_call_ns, 1e-9),
        "compile_s_extra": _scaled(_difference(result.first_call_ns, median(walls) if walls else None), 1e-9),
        "mean_tok_s": _per(made, sum(walls) / 1e9),
        "energy_j_per_token": _per(result.energy_mj / 1e3, made) if result.energy_mj is not None else None,
        "rss_load_bytes": _difference(memory.get("rss_after_load"), memory.get("rss_before_load")),
        "peak_bytes": _scaled(memory.get(PEAK_MEMORY[result.cell.device]), 1),
        "recompiles": _count(result, "recompiles"),
        "graphs": _count(result, "graphs"),
        "compiled_regions": _of_techniques(result, "compiled_regions", "compil"),
        "fusions": _of_techniques(result, "fusions"),
        "math_attention_share": _math_share(result),
        "kl_mean_nats": result.fidelity.kl_mean_nats if result.fidelity else None,
        "top1_agreement": result.fidelity.top1_agreement if result.fidelity else None,
    }
    numbers |= {name: _scaled(memory.get(metric.memory), 1) for name, metric in METRICS.items() if metric.memory}
    return numbers | request_metrics.of_load(result.proof.get("load"))


def agreement(tokens: tuple[int, ...], reference: tuple[int, ...]) -> tuple[float | None, int | None]:
    """The share of row-0 positions before the first that is not equal, and that position (None if all are).

    What comes after a different token is an answer to another text: that some of it is equal again says nothing.
    """
    length = max(len(tokens), len(reference))
    if not tokens or not reference:
        return None, None
    pairs = zip_longest(tokens, reference)
    first = next((place for place, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
    return (1.0, None) if first is None else (first / length, first)


def wall_event_gap(sample: Sample) -> float | None:
    """By how much the clock around a generation and those of its steps differ, as a share of it."""
    return _per(abs(sample.wall_ns - sum(sample.step_ns)), sample.wall_ns)


def _per(amount: float, by: float) -> float | None:
    return amount / by if by else None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else float(after - before)


def _of_techniques(result: Result, name: str, begins: str = "") -> float | None:
    """What the proofs of the techniques whose names begin so counted under `name`; None where none of them did."""
    proofs = result.proof.get("optimizations")
    named = proofs.items() if isinstance(proofs, dict) else ()
    found = [each.get(name) for who, each in named if who.startswith(begins) and isinstance(each, dict)]
    counts = [sum(each) if isinstance(each, list) else each for each in found if isinstance(each, int | list)]
    return float(sum(counts)) if counts else None


def _math_share(result: Result) -> float | None:
    """Of the kernels that were seen behind scaled dot product attention, those that are the unfused C++ one."""
    kernels = result.proof.get("kernels")
    return kernels.count("math") / len(kernels) if isinstance(kernels, list) and kernels else None


def _count(result: Result, name: str) -> float | None:
    value = result.proof.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
