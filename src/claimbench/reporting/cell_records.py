"""Every cell with its raw samples, its doubts, the files that they are in, and the command that measures it again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from claimbench.formatting import count
from claimbench.reporting.report_data import ReportData, head, in_unit, shown
from claimbench.reporting.tables import metrics_of, row_title
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS, PEAK
from claimbench.schema.plan import Plan, Row
from claimbench.schema.verdicts import CellSummary


class Shown(NamedTuple):
    """A metric of a cell."""

    metric: str
    head: str
    text: str


class Process(NamedTuple):
    """What one fresh process gave: of each metric its samples, in the order of `CellRecord.metrics`."""

    path: str
    samples: tuple[str, ...]


class CellRecord(NamedTuple):
    id: str
    study: str
    """The first that shows it."""
    title: str
    addresses: tuple[str, ...]
    """`study:experiment/label`, wherever it is shown."""
    techniques: tuple[str, ...]
    settings: str
    outcome: str
    reason: str | None
    doubts: tuple[str, ...]
    counted: str
    """How many samples there are, in how many processes."""
    metrics: tuple[Shown, ...]
    processes: tuple[Process, ...]
    explain: str
    """The command that shows every sample."""


def records_of(data: ReportData) -> list[CellRecord]:
    """Of every cell that some study shows, in the order of the report."""
    places: dict[str, list[tuple[str, str, Row]]] = {}
    wanted: dict[str, set[str]] = {}
    for study, experiment, address, row, metrics in _shown_rows(data):
        if row.cell is not None:
            places.setdefault(row.cell, []).append((study, f"{experiment}/{address}", row))
            wanted.setdefault(row.cell, {PEAK}).update(metrics)
    return [_record(data, id, data.cells[id], places[id], wanted[id]) for id in places if id in data.cells]


def _shown_rows(data: ReportData) -> Iterator[tuple[str, str, str, Row, list[str]]]:
    for study, planned in data.plan.studies.items():
        for experiment, rows in planned.rows.items():
            metrics = metrics_of(planned.study, experiment, rows)
            for address, row in rows.items():
                yield study, experiment, address, row, metrics


def _record(
    data: ReportData, id: str, summary: CellSummary, places: list[tuple[str, str, Row]], wanted: set[str]
) -> CellRecord:
    study, _, first = places[0]
    metrics = [name for name in METRICS if name in wanted and name in summary.metrics]
    processes = _processes(data, id, metrics)
    samples = len(data.samples(id))
    return CellRecord(
        id=id,
        study=study,
        title=row_title(first, data),
        addresses=tuple(f"{of}:{address}" for of, address, _ in places),
        techniques=summary.optimizations,
        settings=_settings(summary),
        outcome=str(summary.outcome),
        reason=summary.reason,
        doubts=summary.flags,
        counted=f"{count(samples, 'sample')} of {summary.blocks} fresh processes"
        if summary.blocks != 1
        else f"{count(samples, 'sample')} of one fresh process",
        metrics=tuple(Shown(name, head(name), shown(name, summary.metrics[name].interval)) for name in metrics),
        processes=processes,
        explain=f"claimbench explain {shlex.quote(f'{study}:{places[0][1]}')} --samples",
    )


def measure_again(plan: Plan, study: str) -> str:
    """A study is measured again in a series of its own; what was measured stays."""
    series = plan.params.measure.series + 1
    return f"snakemake --cores all --config {shlex.quote(f'studies=[{study}]')} 'measure={{series: {series}}}'"


def _settings(summary: CellSummary) -> str:
    lengths = [str(summary.prompt_tokens)] if summary.prompt_tokens is not None else []
    return ", ".join(
        [
            f"`{summary.checkpoint}`",
            *(f"`{name}`" for name in summary.optimizations),
            f"on `{summary.backend}`",
            f"{summary.dtype} on {summary.device}",
            f"batch {summary.batch}",
            f"{' + '.join([*lengths, str(summary.new_tokens)])} tokens",
        ]
    )


def _processes(data: ReportData, id: str, metrics: list[str]) -> tuple[Process, ...]:
    """In the order in which they ran; of one that gave no number, its file alone."""
    found: list[Process] = []
    for _, rows in data.samples(id).groupby("block"):
        texts = (", ".join(_sample(name, value) for value in _known(rows[name].tolist())) for name in metrics)
        found.append(Process(str(rows["path"].iloc[0]), tuple(texts)))
    return tuple(found)


def _known(values: list[float | None]) -> list[float]:
    """What is the same in every sample is said once."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return known[:1] if len(set(known)) == 1 else known


def _sample(metric: str, value: float) -> str:
    return f"{in_unit(metric, Interval(value)).estimate:.4g}"
