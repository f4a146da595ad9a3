"""GuideLLM, `benchmarks.json`.

Fields: https://github.com/vllm-project/guidellm, `docs/guides/outputs.md`, and in `src/guidellm/schemas`
`base/statistics.py` (a distribution: `mean`, `median`, `std_dev`, `count`, and `percentiles` from `p001` to `p999`)
and the metrics of a generative benchmark, each by how requests ended (`successful`, `incomplete`, `errored`, `total`):
`requests_per_second`, `request_concurrency`, `request_latency` (s), `time_to_first_token_ms`,
`inter_token_latency_ms`, `time_per_output_token_ms` (the first token included), `output_tokens_per_second`.
`metadata.guidellm_version`, `args` and each benchmark's `config.strategy` say how. Successful requests alone are
taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from claimbench.exchange.imported import Workload, figure
from claimbench.schema.measured_elsewhere import Figure

TOOL = "GuideLLM"
UNITS = {
    "requests_per_second": "1/s",
    "request_concurrency": "requests",
    "request_latency": "s",
    "prompt_token_count": "tokens",
    "output_token_count": "tokens",
    "time_to_first_token_ms": "ms",
    "time_per_output_token_ms": "ms",
    "inter_token_latency_ms": "ms",
    "output_tokens_per_second": "tok/s",
    "tokens_per_second": "tok/s",
}
NEAR = {
    ("requests_per_second", "mean"): "load_requests_per_s",
    ("time_to_first_token_ms", "median"): "load_ttft_ms",
    ("time_to_first_token_ms", "p95"): "load_ttft_p95_ms",
    ("inter_token_latency_ms", "median"): "load_tpot_ms",
    ("output_tokens_per_second", "mean"): "load_tok_s",
}


def is_one(content: Any) -> bool:
    runs = content.get("benchmarks") if isinstance(content, dict) else None
    return isinstance(runs, list) and bool(runs) and all(isinstance(run, dict) and "metrics" in run for run in runs)


def records(content: Any) -> list[Workload]:
    metadata = content.get("metadata") or {}
    spec = (content.get("config") or {}).get("spec") or {}
    arguments = {**(spec.get("backend") or {}), **(content.get("args") or {})}
    return [_workload(run, metadata, arguments) for run in content["benchmarks"]]


def _workload(run: dict[str, Any], metadata: dict[str, Any], arguments: dict[str, Any]) -> Workload:
    config = run.get("config") or run.get("args") or {}
    said = {f"strategy.{name}": value for name, value in (config.get("strategy") or {}).items()}
    said |= {name: arguments.get(name) for name in ("backend", "profile", "rate", "max_seconds")}
    start = run.get("start_time")
    return Workload(
        figures=tuple(one for name in UNITS for one in _figures(name, run["metrics"].get(name) or {})),
        settings={name: str(value) for name, value in said.items() if value is not None},
        model=arguments.get("model"),
        hardware=metadata.get("platform"),
        when=str(start) if start is not None else None,
        tool_version=metadata.get("guidellm_version"),
    )


def _figures(name: str, by_end: dict[str, Any]) -> Iterator[Figure]:
    found = by_end.get("successful") or {}
    for statistic in ("mean", "median", "std_dev"):
        yield from figure(name, statistic, found.get(statistic), UNITS[name], NEAR.get((name, statistic)))
    for statistic, value in (found.get("percentiles") or {}).items():
        yield from figure(name, statistic, value, UNITS[name], NEAR.get((name, statistic)))
