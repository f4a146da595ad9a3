"""Which figures a study gets, and from which of its numbers. `figures.py` draws them."""

from __future__ import annotations

from typing import NamedTuple

from claimbench import figures
from claimbench.figures import Bar, Line, Panel, Point, Stack
from claimbench.findings import Findings, head, in_unit
from claimbench.metrics import METRICS
from claimbench.plan import PlannedStudy, Row
from claimbench.study import Experiment
from claimbench.tables import (
    base_of,
    groups,
    metrics_of,
    published_better,
    published_number,
    row_title,
    swept_key,
    worded,
)
from claimbench.wording import Estimate, count, interval, percent, slug

OUTCOMES = {"oom": "out of memory", "implied-oom": "out of memory (implied)", "wrong": "wrong output"}
MOST_BARS = 60


class Illustration(NamedTuple):
    file: str
    alt: str
    caption: str
    svg: str


def of_experiment(findings: Findings, study: str, name: str) -> list[Illustration]:
    """The figures of one experiment; none where no cell gave a number."""
    planned = findings.plan.studies[study]
    experiment, rows = planned.study.experiments[name], planned.rows[name]
    metrics = metrics_of(planned.study, name, rows)
    key = swept_key(experiment)
    wanted = metrics if experiment.show == "curves" else metrics[:1]
    drawn = []
    for metric in wanted:
        if not any(findings.estimate(row, metric) for row in rows.values()):
            continue
        if key and (experiment.show in ("grid", "curves") or _is_a_curve(experiment, key)):
            drawn += [
                _curves(findings, study, name, metric, key, group, part, several=len(wanted) > 1)
                for group, part in groups(experiment, rows).items()
                if any(findings.estimate(row, metric) for row in part.values())
            ]
        else:
            drawn.append(_bars(findings, study, name, metric, rows))
    return drawn


def _is_a_curve(experiment: Experiment, key: str) -> bool:
    values = experiment.sweep[key]
    return len(values) >= 3 and not any(isinstance(value, str) for value in values)


def _note(findings: Findings, row: Row) -> str:
    outcome = findings.outcome(row)
    return "not measured" if outcome == "ok" else OUTCOMES.get(outcome, outcome)


def _bars(findings: Findings, study: str, name: str, metric: str, rows: dict[str, Row]) -> Illustration:
    experiment = findings.plan.studies[study].study.experiments[name]
    first = next(iter(rows.values()))
    ratios = {address: findings.times_better(row, base_of(rows, row), metric) for address, row in rows.items()}
    relative = experiment.show == "bars" and len(rows) > 1 and any(ratios.values())
    bars = []
    for address, row in list(rows.items())[:MOST_BARS]:
        measured = findings.estimate(row, metric)
        limit = findings.ceiling(row, metric)
        bars.append(
            Bar(
                label=row_title(row),
                estimate=ratios[address] if relative else in_unit(metric, measured) if measured else None,
                note=_note(findings, row),
                published=published_better(row, base_of(rows, row), metric)
                if relative
                else published_number(row, metric),
                ceiling=None if relative or metric.endswith("_bytes") else limit,
                doubted=bool(findings.doubts(row)),
            )
        )
    unit = f"times better than '{first.title}' in {METRICS[metric].title}" if relative else head(metric)
    told = [f"{bar.label}: {interval(bar.estimate)}" for bar in bars if bar.estimate]
    failed = [f"{bar.label}: {bar.note}" for bar in bars if not bar.estimate]
    alt = f"{experiment.question} {unit}: {'; '.join(told + failed)}."
    svg = figures.bars(
        f"{study}: {name}",
        alt,
        unit,
        bars,
        sign="x" if relative else "",
        reference=1.0 if relative else None,
        published_here=relative,
        published_unit="as published, elsewhere",
        best_is_low=not relative and METRICS[metric].better == "lower",
    )
    caption = _sentence_case(f"{unit}, best first.")
    if any(bar.published is not None for bar in bars) and not relative:
        caption += " Published figures are another machine's and stand on an axis of their own."
    if len(rows) > MOST_BARS:
        caption += f" The first {MOST_BARS} of {len(rows)} cells."
    return Illustration(f"{slug(study)}-{slug(name)}.svg", alt, caption, svg)


def _curves(
    findings: Findings, study: str, name: str, metric: str, key: str, group: str, rows: dict[str, Row], *, several: bool
) -> Illustration:
    experiment = findings.plan.studies[study].study.experiments[name]
    lines = {
        label: [row for row in rows.values() if row.label == label]
        for label in dict.fromkeys(r.label for r in rows.values())
    }
    ours = []
    theirs = []
    for of_label in lines.values():
        points, published = [], []
        for row in of_label:
            estimate = findings.estimate(row, metric)
            points.append(Point(row.sweep[key], in_unit(metric, estimate) if estimate else None, _note(findings, row)))
            figure = row.published.get(metric)
            if figure is not None:
                value = published_number(row, metric)
                published.append(
                    Point(
                        row.sweep[key],
                        Estimate(value) if value is not None else None,
                        OUTCOMES.get(str(figure), str(figure)),
                    )
                )
        ours.append(Line(of_label[0].title, tuple(points)))
        if published:
            theirs.append(Line(of_label[0].title, tuple(published)))
    panels = [Panel("measured here" if theirs else "", tuple(ours))]
    if theirs:
        panels.append(Panel("published, elsewhere", tuple(theirs)))
    values = [p.estimate.value for panel in panels for line in panel.lines for p in line.points if p.estimate]
    log_y = min(values) > 0 and max(values) / min(values) > 8
    where = f" ({group})" if group else ""
    subject = f"{METRICS[metric].title} against {worded(key)}{where}"
    alt = f"{experiment.question} {_sentence_case(subject)}, {METRICS[metric].unit}. " + "; ".join(
        f"{line.label}: " + ", ".join(f"{p.x} -> {interval(p.estimate) if p.estimate else p.note}" for p in line.points)
        for line in ours
    )
    svg = figures.curves(f"{study}: {name}{where}", alt, worded(key), head(metric), panels, log_y=log_y)
    caption = _sentence_case(subject) + ("; the upright axis is logarithmic." if log_y else ".")
    parts = [slug(study), slug(name), *([slug(metric)] if several else []), *([slug(group)] if group else [])]
    return Illustration("-".join(parts) + ".svg", alt, caption, svg)


def _sentence_case(text: str) -> str:
    return text[0].upper() + text[1:]


def _distinct(planned: PlannedStudy) -> dict[str, Row]:
    """A study's rows by title, each cell once."""
    seen: set[str] = set()
    rows: dict[str, Row] = {}
    for experiment, of_experiment_ in planned.rows.items():
        for row in of_experiment_.values():
            if row.cell and row.cell not in seen:
                seen.add(row.cell)
                title = row_title(row)
                rows[title if title not in rows else f"{title} ({worded(experiment)})"] = row
    return rows


def of_memory(findings: Findings, study: str) -> Illustration | None:
    stacks = []
    for title, row in _distinct(findings.plan.studies[study]).items():
        peak = findings.estimate(row, findings.peak_metric())
        weights, cache = findings.estimate(row, "weights_bytes"), findings.estimate(row, "kv_cache_bytes")
        if peak or (weights and weights.value):
            stacks.append(
                Stack(title, weights.value if weights else 0, cache.value if cache else 0, peak.value if peak else None)
            )
    if not stacks:
        return None
    machine, cuda = findings.plan.machine, findings.plan.device == "cuda"
    gpus = machine.get("gpus") or []
    capacity = gpus[0].get("memory_bytes") if cuda and gpus else (machine.get("memory_gb") or 0) * 1e9
    alt = (
        "Memory by cell: "
        + "; ".join(f"{s.label}: {(s.peak or s.weights + s.cache) / 1e9:.3g} GB" for s in stacks)
        + "."
    )
    largest = sorted(stacks, key=lambda stack: -(stack.peak or 0))[:MOST_BARS]
    caption = f"Memory of {count(len(largest), 'cell')}, largest first: {head(findings.peak_metric())} (1 GB = 1e9 bytes), and what is known to be in it."
    svg = figures.memory(f"{study}: memory", alt, largest, capacity or None)
    return Illustration(f"{slug(study)}-memory.svg", alt, caption, svg)


def of_ceilings(findings: Findings, study: str) -> Illustration | None:
    bars = []
    for title, row in _distinct(findings.plan.studies[study]).items():
        share = findings.estimate(row, "ceiling_fraction")
        if share:
            bars.append(Bar(title, share, doubted=bool(findings.doubts(row))))
    if not bars:
        return None
    alt = (
        "Share of the decode ceiling by cell: "
        + "; ".join(f"{b.label}: {percent(b.estimate.value)}" for b in bars if b.estimate)
        + "."
    )
    best = sorted(bars, key=lambda bar: -(bar.estimate.value if bar.estimate else 0))[:MOST_BARS]
    caption = (
        "How much of this machine's limit a decode step reaches: the bytes that it must read over the measured read bandwidth, "
        "or its operations over the measured matrix rate, whichever takes longer."
    )
    return Illustration(f"{slug(study)}-ceiling.svg", alt, caption, figures.roofline(f"{study}: ceilings", alt, best))
