"""Which figures a study gets, and from which of its numbers. `bar_charts.py` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from claimbench.formatting import count, interval, number, percent, slug
from claimbench.reporting import bar_charts, line_charts, verdict_chart
from claimbench.reporting.bar_charts import Bar, Stack
from claimbench.reporting.line_charts import Line, Panel, Point
from claimbench.reporting.report_data import ReportData, head, in_unit
from claimbench.reporting.tables import (
    base_of,
    groups,
    metrics_of,
    published_better,
    published_number,
    row_title,
    swept_key,
    worded,
)
from claimbench.reporting.verdict_chart import Dot
from claimbench.schema.interval import Interval
from claimbench.schema.metrics import METRICS, PEAK
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Row
from claimbench.schema.study import Experiment
from claimbench.schema.verdicts import ClaimVerdict

OUTCOMES: dict[str, str] = {
    Outcome.OOM: "out of memory",
    Outcome.IMPLIED_OOM: "out of memory (implied)",
    Outcome.WRONG: "wrong output",
}
MOST_BARS = 60


class Illustration(NamedTuple):
    file: str
    alt: str
    caption: str
    svg: str


def of_verdicts(study: str, claims: Sequence[ClaimVerdict]) -> Illustration | None:
    """Every claim's ratio on one axis; None where no claim is about a ratio that was measured."""
    dots = [_dot(claim) for claim in claims]
    if not verdict_chart.is_worth_drawing(dots):
        return None
    told = f"Each claim with the ratio that was measured and its 95 % interval. {verdict_chart.described(dots)}"
    caption = "Each claim's ratio with its 95 % interval, on a logarithmic axis."
    svg = verdict_chart.draw(f"{study}: verdicts", told, dots)
    return Illustration(f"{study}--verdicts.svg", told, caption, svg)


def _dot(claim: ClaimVerdict) -> Dot:
    check = verdict_chart.headline(claim)
    ratio = verdict_chart.ratio_of(check) if claim.verdict in verdict_chart.MARKERS else None
    words = f"{claim.verdict}: no ratio" if check and check.estimate is not None else str(claim.verdict)
    return Dot(f"{claim.id}  {claim.statement}", claim.verdict, ratio, words)


def of_experiment(data: ReportData, study: str, name: str) -> list[Illustration]:
    """The figures of one experiment; none where no cell gave a number."""
    planned = data.plan.studies[study]
    experiment, rows = planned.study.experiments[name], planned.rows[name]
    metrics = metrics_of(planned.study, name, rows)
    key = swept_key(experiment)
    wanted = metrics if experiment.show == "curves" else metrics[:1]
    drawn = []
    for metric in wanted:
        if not any(data.interval(row, metric) for row in rows.values()):
            continue
        if key and (experiment.show in ("grid", "curves") or _is_a_curve(experiment, key)):
            drawn += [
                _curves(data, study, name, metric, key, group, part, several=len(wanted) > 1)
                for group, part in groups(experiment, rows).items()
                if any(data.interval(row, metric) for row in part.values())
            ]
        else:
            drawn.append(_bars(data, study, name, metric, rows))
    return drawn


def _is_a_curve(experiment: Experiment, key: str) -> bool:
    values = experiment.sweep[key]
    return len(values) >= 3 and not any(isinstance(value, str) for value in values)


def _note(data: ReportData, row: Row) -> str:
    outcome = data.outcome(row)
    return "not measured" if outcome == Outcome.OK else OUTCOMES.get(outcome, outcome.value)


def _bars(data: ReportData, study: str, name: str, metric: str, rows: dict[str, Row]) -> Illustration:
    experiment = data.plan.studies[study].study.experiments[name]
    ratios = {address: data.times_better(row, base_of(rows, row), metric) for address, row in rows.items()}
    relative = experiment.show == "bars" and len(rows) > 1 and any(ratios.values())
    shown = dict(list(rows.items())[:MOST_BARS])
    if relative:
        base = next(iter(rows.values())).title
        unit = f"times better than '{base}' in {METRICS[metric].title}"
        drawn = [_ratio_bar(data, rows, row, metric, ratios[address]) for address, row in shown.items()]
    else:
        unit = head(metric)
        drawn = [_value_bar(data, row, metric) for row in shown.values()]
    described = [f"{bar.label}: {interval(bar.interval) if bar.interval else bar.note}" for bar in drawn]
    alt = f"{_asked(experiment)} {_sentence_case(unit)}: {'; '.join(described)}."
    svg = bar_charts.bars(
        f"{study}: {name}",
        alt,
        unit,
        drawn,
        sign="x" if relative else "",
        reference=1.0 if relative else None,
        published_here=relative,
        published_unit="as published",
        best_is_low=not relative and METRICS[metric].better == "lower",
    )
    caption = _sentence_case(f"{unit}, best first.")
    if any(bar.published is not None for bar in drawn) and not relative:
        caption += " Published figures are another machine's and stand on an axis of their own."
    if len(rows) > MOST_BARS:
        caption += f" The first {MOST_BARS} of {len(rows)} cells."
    return Illustration(f"{study}--{name}.svg", alt, caption, svg)


def _ratio_bar(data: ReportData, rows: dict[str, Row], row: Row, metric: str, ratio: Interval | None) -> Bar:
    note = _note(data, row) if data.interval(row, metric) is None else "nothing to compare with"
    published = published_better(row, base_of(rows, row), metric)
    return Bar(row_title(row, data), ratio, note, published, doubted=bool(data.doubts(row)))


def _value_bar(data: ReportData, row: Row, metric: str) -> Bar:
    found = data.interval(row, metric)
    return Bar(
        label=row_title(row, data),
        interval=in_unit(metric, found) if found else None,
        note=_note(data, row),
        published=published_number(row, metric),
        ceiling=data.ceiling(row, metric),
        doubted=bool(data.doubts(row)),
    )


def _curves(
    data: ReportData, study: str, name: str, metric: str, key: str, group: str, rows: dict[str, Row], *, several: bool
) -> Illustration:
    experiment = data.plan.studies[study].study.experiments[name]
    by_label: dict[str, list[Row]] = {}
    for row in rows.values():
        by_label.setdefault(row.label, []).append(row)
    ours = tuple(Line(of[0].title, tuple(_point(data, row, metric, key) for row in of)) for of in by_label.values())
    theirs = tuple(
        Line(of[0].title, tuple(_published_point(row, metric, key) for row in of if metric in row.published))
        for of in by_label.values()
        if any(metric in row.published for row in of)
    )
    panels = [Panel("measured here" if theirs else "", ours)]
    if theirs:
        panels.append(Panel("published, elsewhere", theirs))
    values = [p.interval.estimate for panel in panels for line in panel.lines for p in line.points if p.interval]
    log_y = min(values) > 0 and max(values) / min(values) > 8
    where = f", {group}" if group else ""
    subject = _sentence_case(f"{METRICS[metric].title} against {worded(key)}{where}")
    described = "; ".join(f"{line.label}: {', '.join(_describe(point) for point in line.points)}" for line in ours)
    alt = f"{_asked(experiment)} {subject}, in {METRICS[metric].unit or 'numbers'}. {described}."
    svg = line_charts.curves(f"{study}: {name}{where}", alt, worded(key), head(metric), panels, log_y=log_y)
    caption = subject + ("; the upright axis is logarithmic." if log_y else ".")
    parts = [study, name, *([metric] if several else []), *([slug(group)] if group else [])]
    return Illustration("--".join(parts) + ".svg", alt, caption, svg)


def _point(data: ReportData, row: Row, metric: str, key: str) -> Point:
    found = data.interval(row, metric)
    return Point(row.sweep[key], in_unit(metric, found) if found else None, _note(data, row))


def _published_point(row: Row, metric: str, key: str) -> Point:
    value, figure = published_number(row, metric), str(row.published[metric])
    return Point(row.sweep[key], None if value is None else Interval(value), OUTCOMES.get(figure, figure))


def _describe(point: Point) -> str:
    return f"at {point.x} {interval(point.interval) if point.interval else point.note}"


def _asked(experiment: Experiment) -> str:
    question = experiment.question
    return question if question.endswith(("?", ".", "!")) else f"{question}."


def _sentence_case(text: str) -> str:
    return text[0].upper() + text[1:]


def _one_a_label(data: ReportData, study: str, metric: str) -> dict[str, Row]:
    """By title, for each label of each experiment the row with the largest `metric`; each cell once."""
    seen: set[str | None] = set()
    found: dict[str, Row] = {}
    for experiment, rows in data.plan.studies[study].rows.items():
        largest: dict[str, tuple[float, Row]] = {}
        for row in rows.values():
            reached = data.interval(row, metric)
            if reached and reached.estimate > largest.get(row.label, (-1.0, row))[0]:
                largest[row.label] = (reached.estimate, row)
        for _, row in largest.values():
            if row.cell not in seen:
                seen.add(row.cell)
                title = row_title(row)
                found[title if title not in found else f"{title} ({worded(experiment)})"] = row
    return found


def of_memory(data: ReportData, study: str) -> Illustration | None:
    """What every cell of the study keeps in memory; None where nothing was measured."""
    stacks = []
    for title, row in _one_a_label(data, study, PEAK).items():
        weights, cache, peak = (
            found.estimate if (found := data.interval(row, metric)) else 0.0
            for metric in ("weights_bytes", "kv_cache_bytes", PEAK)
        )
        if weights or peak:
            stacks.append(Stack(title, weights, cache, peak or None))
    if not stacks:
        return None
    largest = sorted(stacks, key=lambda stack: -(stack.peak or stack.weights))[:MOST_BARS]
    described = "; ".join(f"{s.label}: {number((s.peak or s.weights + s.cache) / 1e9)} GB" for s in largest)
    caption = (
        f"Peak memory of {count(len(largest), 'cell')}, largest first, and what is known to be in it. Where an "
        "experiment sweeps, the largest point of each row."
    )
    alt = f"Peak memory by cell: {described}."
    svg = bar_charts.memory(f"{study}: memory", alt, largest, _capacity(data))
    return Illustration(f"{study}--memory-by-cell.svg", alt, caption, svg)


def _capacity(data: ReportData) -> float | None:
    """Bytes of memory of the device that was measured."""
    machine = data.plan.machine
    if data.plan.device == "cpu":
        return float(machine["memory_gb"]) * 1e9 if machine.get("memory_gb") else None
    size = machine["gpus"][0].get("memory_bytes") if machine.get("gpus") else None
    return float(size) if size else None


def of_ceilings(data: ReportData, study: str) -> Illustration | None:
    """The share of its decode ceiling that every cell of the study reaches; None where none has one."""
    shares = [
        Bar(title, share, doubted=bool(data.doubts(row)))
        for title, row in _one_a_label(data, study, "ceiling_fraction").items()
        if (share := data.interval(row, "ceiling_fraction"))
    ]
    if not shares:
        return None
    best = sorted(shares, key=lambda bar: -(bar.interval.estimate if bar.interval else 0))[:MOST_BARS]
    described = "; ".join(f"{bar.label}: {percent(bar.interval.estimate)}" for bar in best if bar.interval)
    alt = f"Share of the decode ceiling by cell: {described}."
    caption = (
        "How much of this machine's limit a decode step reaches: the bytes that it must read over the measured read "
        "bandwidth, or its operations over the measured matrix rate, whichever takes longer. Where an experiment "
        "sweeps, the best point of each row."
    )
    svg = bar_charts.roofline(f"{study}: ceilings", alt, best)
    return Illustration(f"{study}--ceiling-by-cell.svg", alt, caption, svg)
