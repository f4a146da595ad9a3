"""What DVC compares between revisions: one JSON of metrics and a few CSV files of plots."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator

from claimbench.formatting import significant
from claimbench.reporting.report_data import ReportData, in_unit
from claimbench.reporting.tables import base_of, metrics_of, row_title, swept_key
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import PEAK
from claimbench.schema.plan import Row
from claimbench.schema.round import Rounds
from claimbench.schema.verdicts import ON_PAPER, Verdict

MOST_PAIRS = 6
"""Experiments of which two numbers stand among the metrics; of more, each has one."""
MOST = 14
"""Experiments that have any."""

Metrics = dict[str, object]
"""As DVC reads them: names and numbers, nested."""


def verdict_counts(data: ReportData) -> dict[Verdict, int]:
    found = Counter(claim.verdict for claim in data.verdicts.claims)
    return {verdict: found.get(verdict, 0) for verdict in Verdict}


def metrics_json(data: ReportData, rounds: Rounds | None = None) -> Metrics:
    """About twenty numbers that a person reads; the plots hold every cell's.

    They stand under the machine's key: `dvc metrics diff` subtracts what has the same name, and the speeds of two
    machines are no change of anything.
    """
    machine = data.plan.machine
    counts = verdict_counts(data)
    verdicts = {name.replace(" ", "_"): n for name, n in counts.items() if name not in ON_PAPER}
    on_paper = {name.removesuffix(" on paper"): counts[name] for name in ON_PAPER}
    computed = {"on_paper": on_paper} if any(on_paper.values()) else {}
    found: Metrics = {"verdicts": verdicts, **computed, **_conditions(data, rounds), **_headlines(data)}
    name = " ".join(str(data.verdicts.device_name or data.plan.device).split())
    return {"machine": f"{name} ({machine['key']})", machine["key"]: found}


def _conditions(data: ReportData, rounds: Rounds | None) -> Metrics:
    bandwidth = data.ceilings.read_bytes_per_s
    found: Metrics = {"read_gb_s": significant(bandwidth / 1e9, 4)} if bandwidth else {}
    return found | ({"rounds": len(rounds.seals), "minutes": round(rounds.seconds / 60, 1)} if rounds else {})


def _headlines(data: ReportData) -> Metrics:
    """By study and experiment: the first row's number, and how many times better than it the best row is."""
    experiments = [(study, name) for study, planned in data.plan.studies.items() for name in planned.rows]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for study, name in experiments[:MOST]:
        numbers = _headline(data, study, name, pairs=len(experiments) <= MOST_PAIRS)
        if numbers:
            found.setdefault(study, {})[name] = {metric: significant(value, 4) for metric, value in numbers.items()}
    left_out = len(experiments) - MOST
    return {**found, **({"experiments_left_out": left_out} if left_out > 0 else {})}


def _headline(data: ReportData, study: str, name: str, *, pairs: bool) -> dict[str, float]:
    rows = data.plan.studies[study].rows[name]
    metric = metrics_of(data.plan.studies[study].study, name, rows)[0]
    first = next(iter(rows.values()))
    of_first = data.interval(first, metric)
    if of_first is None:
        return {}
    times = [better.estimate for row in rows.values() if (better := data.times_better(row, base_of(rows, row), metric))]
    best = {"best_times": max(times)} if pairs and len(times) > 1 else {}
    return {metric: in_unit(metric, of_first).estimate, **best}


def _rows(data: ReportData) -> Iterator[tuple[str, str, Row]]:
    for study, planned in data.plan.studies.items():
        for experiment, rows in planned.rows.items():
            for address, row in rows.items():
                yield study, f"{experiment}/{address}", row


def csv_files(data: ReportData) -> dict[str, str]:
    """File name -> text."""
    bars = {
        "decode.csv": ("decode_tok_s", "tok_s", 1.0),
        "throughput.csv": ("tok_s", "tok_s", 1.0),
        "prefill.csv": ("prefill_ms", "ms", 1.0),
        "memory.csv": (PEAK, "gb", 1.0),
        "ceiling.csv": ("ceiling_fraction", "percent", 100.0),
    }
    files = {
        name: _text(("study", "cell", column, "low", "high"), _bars(data, metric, factor))
        for name, (metric, column, factor) in bars.items()
    }
    files["curves.csv"] = _text(("panel", "series", "x", "value", "low", "high"), _curves(data))
    claims = ((f"{claim.study}: {claim.id}", claim.verdict) for claim in data.verdicts.claims)
    files["verdicts.csv"] = _text(("claim", "verdict"), claims)
    return files


def _bars(data: ReportData, metric: str, factor: float) -> Iterator[tuple[object, ...]]:
    for study, address, row in _rows(data):
        found = data.interval(row, metric)
        if found:
            yield study, f"{study}: {address}", *_digits(in_unit(metric, found).scaled(factor))


def _curves(data: ReportData) -> Iterator[tuple[object, ...]]:
    for study, planned in data.plan.studies.items():
        for experiment, rows in planned.rows.items():
            key = swept_key(planned.study.experiments[experiment])
            if key is None:
                continue
            for metric in metrics_of(planned.study, experiment, rows):
                for row in rows.values():
                    found = data.interval(row, metric)
                    if found and not isinstance(row.sweep[key], str):  # a line needs numbers to stand over
                        rest = row.model_copy(update={"sweep": {k: v for k, v in row.sweep.items() if k != key}})
                        panel = f"{study}: {experiment}, {metric} by {key}"
                        yield panel, row_title(rest), row.sweep[key], *_digits(in_unit(metric, found))


def _digits(found: Interval) -> tuple[float | str, ...]:
    numbers = (found.estimate, found.low, found.high)
    return tuple("" if number is None else significant(number, 4) for number in numbers)


def _text(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return buffer.getvalue()
