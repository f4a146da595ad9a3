"""AIPerf of NVIDIA and its forerunner GenAI-Perf: `profile_export_aiperf.json`, `profile_export_genai_perf.json`.

Fields: https://github.com/ai-dynamo/aiperf/blob/main/docs/reference/json-export-schema.md: each metric is a block on
the top level with `unit` (which alone says what the numbers are in), `avg`, and where it is of requests `min`, `max`,
`std` and percentiles; `schema_version`, `aiperf_version`, `start_time`, `input_config` and `run_info` are beside them.
Metrics: docs/metrics-reference.md. GenAI-Perf has the same blocks, without the versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from claimbench.exchange.imported import Workload, figure
from claimbench.schema.measured_elsewhere import Figure

TOOL = "AIPerf"
KNOWN = ("request_throughput", "request_latency", "time_to_first_token", "output_token_throughput")
STATISTICS = {"avg": "mean", "min": "minimum", "max": "maximum", "std": "standard deviation"}
NEAR = {
    ("time_to_first_token", "p50"): "load_ttft_ms",
    ("time_to_first_token", "p95"): "load_ttft_p95_ms",
    ("inter_token_latency", "p50"): "load_tpot_ms",
    ("request_latency", "p50"): "load_end_to_end_ms",
    ("request_latency", "p95"): "load_end_to_end_p95_ms",
    ("output_token_throughput", "avg"): "load_tok_s",
    ("request_throughput", "avg"): "load_requests_per_s",
}


def is_one(content: Any) -> bool:
    return isinstance(content, dict) and any(_is_block(content.get(name)) for name in KNOWN)


def _is_block(value: object) -> bool:
    return isinstance(value, dict) and "unit" in value and any(name in value for name in ("avg", "p50"))


def records(content: Any) -> list[Workload]:
    config, run = content.get("input_config") or {}, content.get("run_info") or {}
    endpoint = config.get("endpoint") or {}
    models = endpoint.get("model_names") or config.get("model_names") or []
    said = {"command": run.get("cli_command"), "seed": run.get("random_seed"), **(run.get("variation_values") or {})}
    said |= {f"loadgen.{name}": value for name, value in (config.get("loadgen") or {}).items()}
    return [
        Workload(
            figures=tuple(one for name, block in content.items() if _is_block(block) for one in _block(name, block)),
            settings={name: str(value) for name, value in said.items() if value is not None},
            model=", ".join(map(str, models)) or None,
            when=content.get("start_time"),
            tool_version=content.get("aiperf_version") or content.get("schema_version"),
        )
    ]


def _block(name: str, block: dict[str, Any]) -> Iterator[Figure]:
    for key, value in block.items():
        if key in STATISTICS or (key[:1] == "p" and key[1:].isdigit()):
            near = NEAR.get((name, key))
            yield from figure(name, STATISTICS.get(key, key), value, str(block["unit"]), near)
