"""The metrics: what each is called in a sentence and in a table, its unit, and which way is better."""

from __future__ import annotations

from typing import Literal, NamedTuple


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


HEADS = {
    "tok_s": "tok/s, end to end",
    "decode_tok_s": "decode tok/s",
    "prefill_tok_s": "prefill tok/s",
    "ms_per_token": "ms per token",
    "step_ms": "decode step, ms",
    "step_p95_ms": "decode step, 95th percentile, ms",
    "tpot_ms": "decode per token of a row, ms",
    "prefill_ms": "prefill, ms",
    "total_ms": "whole generation, ms",
    "load_s": "load, s",
    "load_gb_s": "checkpoint per second of it, GB/s",
    "checkpoint_cached_share": "in the page cache before it",
    "checkpoint_bytes": "checkpoint on disk, GB",
    "first_call_s": "first call, s",
    "compile_s_extra": "first call beyond a later one, s",
    "tokens_per_step": "tokens per step of a row",
    "energy_j_per_token": "energy per token, J",
    "weights_bytes": "weights, GB",
    "step_weights_bytes": "weights read per step, GB",
    "kv_cache_bytes": "key-value cache, GB",
    "peak_bytes": "peak memory, GB",
    "rss_peak_bytes": "peak resident (process), GB",
    "rss_load_bytes": "resident, added by loading, GB",
    "server_rss_bytes": "resident (server), GB",
    "device_allocated_peak_bytes": "peak allocated (device), GB",
    "device_reserved_peak_bytes": "peak reserved (device), GB",
    "device_used_bytes": "in use (device, all processes), GB",
    "load_clients": "clients",
    "load_tok_s": "tok/s of all requests",
    "load_ttft_ms": "first token, ms",
    "load_ttft_p95_ms": "first token, 95th percentile, ms",
    "load_itl_ms": "between tokens, ms",
    "load_itl_p95_ms": "between tokens, 95th percentile, ms",
    "load_tpot_ms": "decode per token of a request, ms",
    "load_end_to_end_ms": "whole request, ms",
    "load_end_to_end_p95_ms": "whole request, 95th percentile, ms",
    "load_requests_per_s": "answers, 1/s",
    "load_goodput_per_s": "answers within the objective, 1/s",
    "load_failed_share": "failed",
    "load_lateness_ms": "client's own delay, 95th percentile, ms",
}
"""Names for the heads of columns and axes, unit included; other metrics go by their title."""

PEAK = "peak_bytes"

FRACTIONS = (
    *("token_agreement", "top1_agreement", "ceiling_fraction", "prefill_ceiling_fraction", "wall_event_gap"),
    *("checkpoint_cached_share", "load_failed_share"),
)
