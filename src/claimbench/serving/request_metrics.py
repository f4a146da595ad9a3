"""What the records of a load say: times to tokens, rates and goodput. Pure.

Names are those in common use. With t_0 when a request was due and t_1 ... t_n the arrivals of its tokens:

    time to first token     t_1 - t_0
    inter-token latency     t_(i+1) - t_i, one value per gap; tokens of one event arrive together
    time per output token   (t_n - t_1) / (n - 1), one value per request
    end to end              t_n - t_0
    goodput                 whole answers per second that keep an objective
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from claimbench.serving.load import LoadRecord, Objective, Record

MS = 1e-6


def token_times_ns(record: Record) -> list[int]:
    """When each token arrived; tokens of one event together."""
    return [at for at, count in zip(record.chunk_ns, record.chunk_tokens, strict=True) for _ in range(count)]


def ttft_ms(record: Record) -> float | None:
    return (record.chunk_ns[0] - record.scheduled_ns) * MS if record.chunk_ns else None


def gaps_ms(record: Record) -> list[float]:
    times = token_times_ns(record)
    return [(after - before) * MS for before, after in pairwise(times)]


def tpot_ms(record: Record) -> float | None:
    times = token_times_ns(record)
    return (times[-1] - times[0]) * MS / (len(times) - 1) if len(times) > 1 else None


def end_to_end_ms(record: Record) -> float | None:
    return (record.chunk_ns[-1] - record.scheduled_ns) * MS if record.chunk_ns else None


def whole(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.failure is None]


def duration_s(records: Sequence[Record]) -> float:
    """From when the first request was due until the last one ended."""
    return (max(record.ended_ns for record in records) - min(record.scheduled_ns for record in records)) / 1e9


def tokens_per_s(records: Sequence[Record]) -> float:
    return sum(sum(record.chunk_tokens) for record in whole(records)) / duration_s(records)


def requests_per_s(records: Sequence[Record]) -> float:
    return len(whole(records)) / duration_s(records)


def keeps(record: Record, objective: Objective) -> bool:
    """A request that failed keeps nothing; one that is too short to have a rate keeps any demand on it."""
    if record.failure is not None:
        return False
    pairs = (
        (ttft_ms(record), objective.ttft_ms),
        (tpot_ms(record), objective.tpot_ms),
        (end_to_end_ms(record), objective.end_to_end_ms),
    )
    return all(found is None or most is None or found <= most for found, most in pairs)


def goodput_per_s(records: Sequence[Record], objective: Objective) -> float:
    return sum(keeps(record, objective) for record in records) / duration_s(records)


def lateness_ms(records: Sequence[Record]) -> list[float]:
    """How long after it was due each request was sent: the client's own share of an open loop's latency."""
    return [(record.sent_ns - record.scheduled_ns) * MS for record in records]


def of_load(load_record: object) -> dict[str, float | None]:
    """The metrics of a block's load, from its `LoadRecord` as its proof has it. Without a load, none of them.

    Those of a sweep are of the number of clients that got the most tokens per second in all.
    """
    if not load_record:
        return {}
    told = LoadRecord.model_validate(load_record)
    load = told.settings
    clients, records = max(told.runs.items(), key=lambda level: tokens_per_s(level[1]))

    def at(of: Callable[[Record], float | list[float] | None], percent: float) -> float | None:
        found = [of(record) for record in whole(records)]
        values = [value for one in found if one is not None for value in (one if isinstance(one, list) else [one])]
        return float(np.percentile(values, percent)) if values else None

    return {
        "load_clients": float(clients) if load.kind != "open" else None,
        "load_ttft_ms": at(ttft_ms, 50),
        "load_ttft_p95_ms": at(ttft_ms, 95),
        "load_itl_ms": at(gaps_ms, 50),
        "load_itl_p95_ms": at(gaps_ms, 95),
        "load_tpot_ms": at(tpot_ms, 50),
        "load_end_to_end_ms": at(end_to_end_ms, 50),
        "load_end_to_end_p95_ms": at(end_to_end_ms, 95),
        "load_tok_s": tokens_per_s(records),
        "load_requests_per_s": requests_per_s(records),
        "load_goodput_per_s": goodput_per_s(records, load.objective),
        "load_failed_share": 1 - len(whole(records)) / len(records),
        "load_lateness_ms": float(np.percentile(lateness_ms(records), 95)) if load.kind == "open" else None,
    }
