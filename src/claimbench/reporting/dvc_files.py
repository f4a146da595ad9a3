"""What DVC compares between revisions: one JSON of metrics and a few CSV files of plots."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypedDict

from claimbench.formatting import significant
from claimbench.reporting.report_data import ReportData, in_unit
from claimbench.reporting.tables import metrics_of, row_title, swept_key
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import PEAK
from claimbench.schema.plan import Row
from claimbench.schema.verdicts import ON_PAPER, Verdict

TRACKED = (
    *("decode_tok_s", "tok_s", "prefill_ms", "ms_per_token", "load_s", "compile_s_extra", "energy_j_per_token"),
    *(PEAK, "token_agreement", "ceiling_fraction"),
)


class ComparedMetrics(TypedDict):
    verdicts: dict[str, int]
    """Of what was measured."""
    on_paper: dict[str, int]
    """Of what was computed from the documents' figures."""
    studies: dict[str, dict[str, dict[str, float]]]
    """study -> address -> metric"""


def verdict_counts(data: ReportData) -> dict[Verdict, int]:
    found = Counter(claim.verdict for claim in data.verdicts.claims)
    return {verdict: found.get(verdict, 0) for verdict in Verdict}


def metrics_json(data: ReportData) -> ComparedMetrics:
    """Medians to four digits, of the cells that ended well."""
    studies: dict[str, dict[str, dict[str, float]]] = {}
    for study, address, row in _rows(data):
        numbers = {metric: found.estimate for metric in TRACKED if (found := data.interval(row, metric))}
        if numbers:
            studies.setdefault(study, {})[address] = {name: significant(value, 4) for name, value in numbers.items()}
    counts = verdict_counts(data)
    return {
        "verdicts": {name.replace(" ", "_"): n for name, n in counts.items() if name not in ON_PAPER},
        "on_paper": {name.removesuffix(" on paper"): counts[name] for name in ON_PAPER},
        "studies": studies,
    }


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
