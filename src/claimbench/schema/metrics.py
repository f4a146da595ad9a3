"""The metrics: what each is called in a sentence and in a table, its unit, and which way is better.

An entry here is a column of the table. Its number is made in analysis/derive.py, or beside the requests of a load in
serving/request_metrics.py; bytes that a block counts under `memory` need no more than their entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Metric(NamedTuple):
    title: str
    """As it stands in a sentence: `1.2x of plain in <title>`."""
    unit: str
    better: Literal["higher", "lower", "none"] = "lower"
    is_certain: bool = False
    """A count, or a comparison of fixed tokens: without noise, so its worst block is judged, and one is enough."""
    is_of_start: bool = False
    """Of how a process starts. In company that is another thing, so it is compared by blocks, each alone."""
    is_fraction: bool = False
    """Shown as per cent."""
    head: str | None = None
    """As it stands at the head of a column or an axis, unit included; None: the title and the unit."""
    memory: str | None = None
    """The name in `Result.memory` of the bytes that it is."""

    @property
    def column(self) -> str:
        """The head of its column; bytes are shown as GB (1e9)."""
        unit = "GB" if self.unit == "B" else self.unit
        return self.head or (f"{self.title}, {unit}" if unit else self.title)


METRICS: dict[str, Metric] = {
    "decode_tok_s": Metric("decode tokens per second", "tok/s", "higher", head="decode tok/s"),
    "prefill_tok_s": Metric("prefill tokens per second", "tok/s", "higher", head="prefill tok/s"),
    "tok_s": Metric("tokens per second end to end", "tok/s", "higher", head="tok/s, end to end"),
    "mean_tok_s": Metric(
        "tokens per second of the mean generation", "tok/s", "higher", head="tok/s of the mean generation"
    ),
    "prefill_ms": Metric("prefill time (to the first token)", "ms", head="prefill, ms"),
    "step_ms": Metric("time of the median decode step", "ms", head="decode step, ms"),
    "step_p95_ms": Metric("time of the 95th percentile decode step", "ms", head="decode step, 95th percentile, ms"),
    "tpot_ms": Metric("decode time per output token of a row", "ms", head="decode per token of a row, ms"),
    "ms_per_token": Metric("wall time per token of the batch", "ms", head="ms per token"),
    "total_ms": Metric("wall time of a generation", "ms", head="whole generation, ms"),
    "tokens_per_step": Metric("tokens per decode step of a row", "tokens", "higher", head="tokens per step of a row"),
    "load_s": Metric("load time", "s", head="load, s", is_of_start=True),
    "load_gb_s": Metric(
        "checkpoint read per second of loading",
        "GB/s",
        "higher",
        head="checkpoint per second of it, GB/s",
        is_of_start=True,
    ),
    "checkpoint_bytes": Metric("bytes of the checkpoint's files", "B", "none", head="checkpoint on disk, GB"),
    "checkpoint_cached_share": Metric(
        "share of the checkpoint in the page cache before loading",
        "",
        "none",
        is_fraction=True,
        head="in the page cache before it",
    ),
    "first_call_s": Metric("time of the first call", "s", head="first call, s", is_of_start=True),
    "compile_s_extra": Metric(
        "time that the first call takes beyond a later one",
        "s",
        head="first call beyond a later one, s",
        is_of_start=True,
    ),
    "energy_j_per_token": Metric("energy per token", "J", head="energy per token, J"),
    "weights_bytes": Metric("bytes of weights", "B", head="weights, GB", memory="weights", is_certain=True),
    "step_weights_bytes": Metric(
        "bytes of weights read per decode step",
        "B",
        head="weights read per step, GB",
        memory="step_weights",
        is_certain=True,
    ),
    "kv_cache_bytes": Metric(
        "bytes of key-value cache", "B", head="key-value cache, GB", memory="kv_cache", is_certain=True
    ),
    "peak_bytes": Metric("peak memory (allocated on a device, resident on a CPU)", "B", head="peak memory, GB"),
    "rss_peak_bytes": Metric(
        "peak resident memory of the process", "B", head="peak resident (process), GB", memory="rss_peak"
    ),
    "server_rss_bytes": Metric(
        "resident memory of the server's processes once it serves",
        "B",
        head="resident (server), GB",
        memory="server_rss",
    ),
    "rss_load_bytes": Metric("resident memory added by loading", "B", head="resident, added by loading, GB"),
    "device_allocated_peak_bytes": Metric(
        "peak device memory allocated", "B", head="peak allocated (device), GB", memory="device_allocated_peak"
    ),
    "device_reserved_peak_bytes": Metric(
        "peak device memory reserved", "B", head="peak reserved (device), GB", memory="device_reserved_peak"
    ),
    "device_used_bytes": Metric(
        "device memory in use", "B", head="in use (device, all processes), GB", memory="device_used"
    ),
    "recompiles": Metric("recompilations", "", is_certain=True),
    "graphs": Metric("captured graphs", "", "none", is_certain=True),
    "compiled_regions": Metric("compiled regions that ran, as far as it was watched", "", "none", is_certain=True),
    "fusions": Metric("fused operations that ran, as far as it was watched", "", "none", is_certain=True),
    "math_attention_share": Metric(
        "share of attention kernels that are PyTorch's unfused C++ one", "", "none", is_certain=True, is_fraction=True
    ),
    "token_agreement": Metric(
        "share of tokens equal to the reference's, up to the first difference", "", "higher", is_fraction=True
    ),
    "kl_mean_nats": Metric("mean divergence from the reference", "nats", is_certain=True),
    "top1_agreement": Metric(
        "share of positions that rank the reference's first token first",
        "",
        "higher",
        is_certain=True,
        is_fraction=True,
    ),
    "ceiling_ms": Metric("physical limit of a decode step", "ms", "none"),
    "ceiling_fraction": Metric("fraction of the decode ceiling", "", "higher", is_fraction=True),
    "prefill_ceiling_ms": Metric("physical limit of prefill", "ms", "none"),
    "prefill_ceiling_fraction": Metric("fraction of the prefill ceiling", "", "higher", is_fraction=True),
    "load_clients": Metric("clients at once under load (of a sweep, the best number)", "", "none", head="clients"),
    "load_ttft_ms": Metric("median time to the first token under load", "ms", head="first token, ms"),
    "load_ttft_p95_ms": Metric(
        "95th percentile of the time to the first token under load", "ms", head="first token, 95th percentile, ms"
    ),
    "load_itl_ms": Metric("median inter-token latency under load", "ms", head="between tokens, ms"),
    "load_itl_p95_ms": Metric(
        "95th percentile of inter-token latency under load", "ms", head="between tokens, 95th percentile, ms"
    ),
    "load_tpot_ms": Metric("median time per output token under load", "ms", head="decode per token of a request, ms"),
    "load_end_to_end_ms": Metric("median time of a request under load", "ms", head="whole request, ms"),
    "load_end_to_end_p95_ms": Metric(
        "95th percentile of the time of a request under load", "ms", head="whole request, 95th percentile, ms"
    ),
    "load_tok_s": Metric("tokens per second under load", "tok/s", "higher", head="tok/s of all requests"),
    "load_requests_per_s": Metric("answers per second under load", "1/s", "higher", head="answers, 1/s"),
    "load_goodput_per_s": Metric(
        "answers per second that keep the objective", "1/s", "higher", head="answers within the objective, 1/s"
    ),
    "load_failed_share": Metric("share of requests without a whole answer", "", is_fraction=True, head="failed"),
    "load_lateness_ms": Metric(
        "95th percentile of the client's own delay in an open loop",
        "ms",
        head="client's own delay, 95th percentile, ms",
    ),
    "wall_event_gap": Metric("disagreement of the two clocks", "", is_fraction=True),
}

PEAK = "peak_bytes"


NOTHING_RAN = {"compiled_regions": "nothing was compiled", "fusions": "nothing was fused"}
"""By the count that its proof has of what ran: what is said beside the title of a row that has none of it."""


def with_what_ran(title: str, counts: Mapping[str, float | None]) -> str:
    """`title`, and that nothing ran of what it names, where `counts` of `NOTHING_RAN` say so."""
    missing = [text for name, text in NOTHING_RAN.items() if counts.get(name) == 0]
    return f"{title} ({' and '.join(missing)})" if missing else title
