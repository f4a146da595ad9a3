"""optimum-benchmark of Hugging Face: `benchmark.json` (config and report) or `benchmark_report.json` (report alone).

Fields: https://github.com/huggingface/optimum-benchmark, `optimum_benchmark/benchmark/report.py` and `trackers/`: for
each of `load_model`, `prefill`, `decode` and `per_token` a `latency` with `unit` (s), `values` and their `mean` and
percentiles, a `throughput` with `unit` and `value`, and a `memory` with `unit` (MB, 1e6 bytes) and `max_*`. In
`config`, `environment` has the machine and the versions, `scenario` the shapes, `backend` the model. `decode` is a
whole generation without its first token; a sample of `prefill` is a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from claimbench.exchange.imported import Workload, figure
from claimbench.schema.measured_elsewhere import Figure

TOOL = "optimum-benchmark"
PHASES = ("load_model", "load", "prefill", "decode", "per_token", "forward", "call")
NEAR = {"prefill": "prefill_ms", "load_model": "load_s", "load": "load_s", "per_token": "step_ms"}


def is_one(content: Any) -> bool:
    report = content.get("report", content) if isinstance(content, dict) else None
    return isinstance(report, dict) and any(
        isinstance(report.get(phase), dict) and "latency" in report[phase] for phase in PHASES
    )


def records(content: Any) -> list[Workload]:
    report, config = content.get("report", content), content.get("config") or {}
    environment = config.get("environment") or {}
    backend, scenario = config.get("backend") or {}, config.get("scenario") or {}
    shapes = {**(scenario.get("input_shapes") or {}), **(scenario.get("generate_kwargs") or {})}
    asked = {
        name: backend.get(name) for name in ("name", "device", "torch_dtype", "quantization_scheme", "torch_compile")
    }
    versions = {name: value for name, value in environment.items() if name.endswith("_version")}
    gpus = sorted(set(environment.get("gpu") or []))
    return [
        Workload(
            figures=tuple(one for phase in PHASES for one in _phase(phase, report.get(phase) or {})),
            settings={name: str(value) for name, value in {**asked, **shapes, **versions}.items() if value is not None},
            model=backend.get("model"),
            hardware=", ".join(filter(None, [str(environment.get("cpu") or "").strip(), *gpus])) or None,
            tool_version=environment.get("optimum_benchmark_version"),
        )
    ]


def _phase(phase: str, said: dict[str, Any]) -> Iterator[Figure]:
    latency, throughput = said.get("latency") or {}, said.get("throughput") or {}
    memory = said.get("memory") or {}
    unit = latency.get("unit", "s")
    yield from figure(f"{phase}.latency", "mean", latency.get("mean"), unit, NEAR.get(phase), latency.get("values"))
    for name in ("p50", "p90", "p95", "p99"):
        yield from figure(f"{phase}.latency", name, latency.get(name), unit)
    near = "decode_tok_s" if phase == "decode" else None
    yield from figure(f"{phase}.throughput", "total", throughput.get("value"), throughput.get("unit", ""), near)
    for name in (key for key in memory if key.startswith("max_")):
        yield from figure(f"{phase}.memory.{name}", "maximum", memory[name], memory.get("unit", "MB"))
