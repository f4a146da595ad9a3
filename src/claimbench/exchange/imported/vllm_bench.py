"""vLLM's `vllm bench serve`, `latency` and `throughput`, the JSON that `--save-result` or `--output-json` writes.

Fields, in https://github.com/vllm-project/vllm/tree/main/vllm/benchmarks:
- `serve.py`: `date`, `backend`, `model_id`, `num_prompts`, `request_rate`, `max_concurrency`; `duration` (s),
  `completed`, `request_throughput` (1/s), `output_throughput` and `total_token_throughput` (tok/s), and for `ttft`,
  `tpot`, `itl` and `e2el` the `mean_`, `median_`, `std_` and `p<n>_` in ms; with `--save-detailed` also `ttfts`, a
  list in seconds.
- `latency.py`: `avg_latency`, `std_latency`, `latencies` and `percentiles` by number, in seconds, of a batch.
- `throughput.py`: `elapsed_time` (s), `num_requests`, `total_num_tokens`, `requests_per_second`, `tokens_per_second`,
  which counts prompt tokens, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from claimbench.exchange.imported import Workload, figure, settings
from claimbench.schema.measured_elsewhere import Figure

TOOL = "vllm bench"
SERVE = {"request_throughput", "output_throughput", "total_token_throughput"}
LATENCY = {"avg_latency", "latencies", "percentiles"}
THROUGHPUT = {"elapsed_time", "num_requests", "tokens_per_second"}
SETTINGS = ("backend", "tokenizer_id", "num_prompts", "request_rate", "burstiness", "max_concurrency", "completed")
NEAR = {
    "median_ttft_ms": "load_ttft_ms",
    "p95_ttft_ms": "load_ttft_p95_ms",
    "median_tpot_ms": "load_tpot_ms",
    "median_itl_ms": "load_itl_ms",
    "p95_itl_ms": "load_itl_p95_ms",
    "median_e2el_ms": "load_end_to_end_ms",
    "p95_e2el_ms": "load_end_to_end_p95_ms",
}
TIMED = re.compile(r"(mean|median|std|p[\d.]+)_(ttft|tpot|itl|e2el)_ms")


def is_one(content: Any) -> bool:
    rows = content if isinstance(content, list) else [content]
    return bool(rows) and all(
        isinstance(row, dict) and any(kind <= row.keys() for kind in (SERVE, LATENCY, THROUGHPUT)) for row in rows
    )


def records(content: Any) -> list[Workload]:
    """`--append-result` writes several, a line each."""
    return [_workload(row) for row in (content if isinstance(content, list) else [content])]


def _workload(row: dict[str, Any]) -> Workload:
    if row.keys() >= SERVE:
        return Workload(tuple(_serve(row)), settings(row, SETTINGS), model=row.get("model_id"), when=row.get("date"))
    if row.keys() >= LATENCY:
        return Workload(tuple(_latency(row)), {})
    return Workload(tuple(_throughput(row)), settings(row, ("num_requests", "total_num_tokens")))


def _serve(row: dict[str, Any]) -> Iterator[Figure]:
    yield from figure("request_throughput", "total", row["request_throughput"], "1/s", "load_requests_per_s")
    yield from figure("output_throughput", "total", row["output_throughput"], "tok/s", "load_tok_s")
    yield from figure("total_token_throughput", "total", row["total_token_throughput"], "tok/s")
    yield from figure("duration", "total", row.get("duration"), "s")
    for name in row:
        found = TIMED.fullmatch(name)
        if found:
            yield from figure(name, found[1], row[name], "ms", NEAR.get(name))


def _latency(row: dict[str, Any]) -> Iterator[Figure]:
    yield from figure("avg_latency", "mean", row["avg_latency"], "s", "total_ms", row["latencies"])
    yield from figure("std_latency", "std", row.get("std_latency"), "s")
    for number, value in row["percentiles"].items():
        yield from figure("percentiles", f"p{number}", value, "s")


def _throughput(row: dict[str, Any]) -> Iterator[Figure]:
    yield from figure("requests_per_second", "total", row.get("requests_per_second"), "1/s")
    yield from figure("tokens_per_second", "total", row["tokens_per_second"], "tok/s")
    yield from figure("elapsed_time", "total", row["elapsed_time"], "s")
