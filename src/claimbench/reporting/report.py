"""Plan, table, verdicts and ceilings -> reports/report.md, its figures, and DVC's metrics and plots.

Needs no model, no GPU and no torch. The same inputs give the same bytes: nothing here asks for the time or the machine.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import yaml

from claimbench import __version__
from claimbench.analysis.protocol import protocol_of
from claimbench.formatting import count, interval, number, percent, slug
from claimbench.reporting import dvc_files, markup, recommendations, study_figures, verdict_chart
from claimbench.reporting.origin import described
from claimbench.reporting.report_data import ReportData
from claimbench.reporting.study_figures import Illustration
from claimbench.reporting.tables import Table, memory_table, row_title, shared_deviations, tables, tokens_table
from claimbench.reporting.theoretical_limits import theoretical_limit_tables
from claimbench.schema import durable
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.frontier import describe
from claimbench.schema.interval import Interval
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Plan, Row
from claimbench.schema.rendering import Origin
from claimbench.schema.round import Rounds
from claimbench.schema.study import Document
from claimbench.schema.verdicts import CheckVerdict, ClaimVerdict, Verdict, Verdicts

if TYPE_CHECKING:
    import jinja2
    import pandas as pd


class CheckText(NamedTuple):
    verdict: Verdict
    sentence: str
    expect: str
    ours: str
    published: str | None
    reason: str | None
    """Where the sentence does not say it already."""


class ClaimText(NamedTuple):
    id: str
    statement: str
    verdict: Verdict
    published: str | None
    note: str | None
    checks: tuple[CheckText, ...]
    results: tuple[str, ...]
    deviations: tuple[str, ...]
    """How what was judged departs from the document, each in a line."""
    differs: tuple[str, ...]
    """In what it does, in a word or two each: `model`, `new tokens`."""
    ours: str
    headline: str
    """Of the check that it is told by."""
    why: str | None
    """Where it says more than the checks do."""


class StudyClaims(NamedTuple):
    study: str
    title: str
    claims: tuple[ClaimText, ...]
    departs: bool
    """Whether what ran for some claim was not what its document has."""
    told: str
    """The verdicts, counted, as a sentence."""
    figure: Illustration | None


class ExperimentSection(NamedTuple):
    question: str
    held: str
    deviations: list[str]
    tables: list[Table]
    frontiers: list[tuple[str, str]]
    """(row, the largest batch that fits)"""
    tokens: Table | None
    figures: list[Illustration]


class StudySection(NamedTuple):
    title: str
    document: Document
    experiments: list[ExperimentSection]
    figures: list[Illustration]
    memory: Table | None
    paper: list[Table]


class Missed(NamedTuple):
    """Rows that did not end well, of one outcome and reason."""

    outcome: Outcome
    reason: str
    rows: list[str]


class Floor(NamedTuple):
    """What no difference looks like: a cell against itself."""

    title: str
    ratio: str
    rounds: int
    is_off: bool


def render(
    plan: Plan,
    table: pd.DataFrame,
    verdicts: Verdicts,
    ceilings: Ceilings,
    folder: Path,
    rounds: Rounds | None = None,
    *,
    origin: Origin | None = None,
    root: str = "../",
) -> None:
    """Write `report.md`, `figures/*.svg`, `metrics.json` and `plots/*.csv` into `folder`.

    `root` leads from `folder` to the folder that holds `results`, for links.
    """
    data = ReportData(plan, table, verdicts, ceilings)
    drawn: list[Illustration] = []
    studies = [_study(data, name, drawn) for name in plan.studies]
    claims = _claims(data)
    drawn += [group.figure for group in claims if group.figure]
    context: dict[str, object] = {
        "plan": plan,
        "device_name": verdicts.device_name,
        "tolerance": verdicts.tolerance,
        "counts": dvc_files.verdict_counts(data),
        "objectives": recommendations.objectives(data),
        "machine": _machine(data),
        "studies": studies,
        "claims": claims,
        "unavailable": _unavailable(data),
        "not_judged": [claim for claim in verdicts.claims if claim.verdict == Verdict.NOT_RUNNABLE],
        "params_yaml": _params_yaml(plan),
        "libraries": _libraries(plan),
        "codes": len({planned.key.code for planned in plan.cells.values()}),
        "floors": _floors(data),
        "rounds": rounds,
        "origin": described(origin) if origin else None,
        "root": root,
        "edited_after": _edited_after(plan, rounds),
        "blocks": sum(planned.blocks for planned in plan.cells.values()),
        "version": __version__,
    }
    text = _template("report.md.j2").render(context)
    _write(folder, "report.md", re.sub(r"\n{3,}", "\n\n", text))
    _write_folder(folder / "figures", {illustration.file: illustration.svg for illustration in drawn})
    _write_folder(folder / "plots", dvc_files.csv_files(data))
    _write(
        folder, "metrics.json", json.dumps(dvc_files.metrics_json(data, rounds), indent=1, ensure_ascii=False) + "\n"
    )


def _params_yaml(plan: Plan) -> str:
    text: str = yaml.safe_dump(plan.params.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
    return text


def _write(folder: Path, name: str, text: str) -> None:
    durable.write(folder / name, text.encode())


def _write_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Exactly `files`: what an earlier render left is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in files.items():
        _write(folder, name, text)


def _template(name: str) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("claimbench.reporting"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - Markdown, not HTML; what comes from outside goes through markup.py
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "number": number, "slug": slug, "links": links, "cell": markup.literal}
    environment.filters["html"] = markup.xml
    environment.filters |= {name: getattr(markup, name) for name in ("alternative", "code", "fenced", "link", "prose")}
    environment.globals |= {"count": count}
    return environment.get_template(name)


def links(paths: Sequence[str], root: str) -> str:
    """Links to raw results, from the report's folder: `block 0, block 1` of one cell, or `cell/0, ...` of several."""
    several = len({PurePosixPath(path).parent for path in paths}) > 1
    texts = [markup.alternative(_link_text(PurePosixPath(path), several)) for path in paths]
    return ", ".join(f"[{text}]({root}{markup.file_address(path)})" for text, path in zip(texts, paths, strict=True))


def _link_text(path: PurePosixPath, several: bool) -> str:
    if path.parent.name == "rounds":
        clock = path.stem.partition("T")[2]
        return f"round of {clock[:2]}:{clock[2:4]}:{clock[4:6]}" if clock[:6].isdigit() else f"round {path.stem}"
    return f"{path.parent.parent.name}/{path.stem}" if several else f"block {path.stem}"


def _edited_after(plan: Plan, rounds: Rounds | None) -> int:
    """Rounds that were measured before claims or rules became what they are."""
    current = protocol_of(plan)
    return sum(number for protocol, number in rounds.protocols.items() if protocol != current) if rounds else 0


def _floors(data: ReportData) -> list[Floor]:
    """Of each group of cells that took turns: its base against itself, and whether that is off."""
    found = []
    for group in data.plan.groups:
        ratio = data.floor(group)
        if ratio:
            ends, tolerance = ratio.ends, data.verdicts.tolerance
            is_off = bool(ends and (ends[0] > 1 + tolerance or ends[1] < 1 - tolerance))
            found.append(Floor(group.title, interval(ratio), ratio.rounds, is_off))
    return found


def _machine(data: ReportData) -> list[tuple[str, str]]:
    """What the machine is, and its measured limits, as (name, value)."""
    machine, ceilings = data.plan.machine, data.ceilings
    lines = [("device measured", f"{data.plan.device}: {data.verdicts.device_name or 'unnamed'}")]
    for place, gpu in enumerate(machine.get("gpus") or []):
        size, limit_mw = gpu.get("memory_bytes"), gpu.get("power_limit_mw")
        memory = f"{size / 1e9:.1f} GB" if size else "memory unknown"
        power = f", power limit {limit_mw / 1e3:.0f} W" if limit_mw else ""
        modes = "".join(
            f", {mode.upper()} {'on' if gpu[mode] else 'off'}" for mode in ("ecc", "mig") if gpu.get(mode) is not None
        )
        text = f"{gpu.get('name')}, {memory}{power}{modes}, driver {gpu.get('driver')}, CUDA {gpu.get('cuda')}"
        lines.append((f"GPU {place}", text))
    cpu = machine.get("cpu") or {}
    if cpu:
        sets = ", ".join(cpu.get("instruction_sets") or ()) or "none of those that matter"
        lines.append(
            ("CPU", f"{cpu.get('model')}, {count(cpu.get('cores', 0), 'usable core')}; instruction sets: {sets}")
        )
    if machine.get("memory_gb"):
        lines.append(("memory", f"{machine['memory_gb']} GB"))
    if machine.get("system"):
        lines.append(("system", machine["system"]))
    if ceilings.read_bytes_per_s:
        lines.append(("measured read bandwidth", f"{number(ceilings.read_bytes_per_s / 1e9)} GB/s"))
    if ceilings.copy_bytes_per_s:
        lines.append(("measured copy bandwidth (read + write)", f"{number(ceilings.copy_bytes_per_s / 1e9)} GB/s"))
    for dtype, rate in ceilings.matmul_flops_per_s.items():
        lines.append((f"measured matrix rate, {dtype}", f"{number(rate / 1e12)} TFLOP/s"))
    for state, read_rate in ceilings.file_read_bytes_per_s.items():
        if read_rate:
            lines.append((f"measured read rate of a file, {state} page cache", f"{number(read_rate / 1e9)} GB/s"))
    if ceilings.threads:
        lines.append(("threads", str(ceilings.threads)))
    lines.append(("machine key", f"`{machine['key']}`"))
    return [(name, markup.literal(value)) for name, value in lines]


def _study(data: ReportData, name: str, drawn: list[Illustration]) -> StudySection:
    planned = data.plan.studies[name]
    experiments = []
    for experiment, rows in planned.rows.items():
        pictures = study_figures.of_experiment(data, name, experiment)
        drawn += pictures
        question = planned.study.experiments[experiment]
        listed = tables(data, planned.study, experiment, rows)
        experiments.append(
            ExperimentSection(
                question=question.question,
                held=_held(data, rows),
                deviations=shared_deviations(rows.values()),
                tables=listed,
                frontiers=_frontiers(data, rows),
                tokens=tokens_table(data, rows) if "tokens" not in listed[0].head else None,
                figures=pictures,
            )
        )
    own = [
        picture for picture in (study_figures.of_memory(data, name), study_figures.of_ceilings(data, name)) if picture
    ]
    drawn += own
    everything = {
        f"{experiment}: {row_title(row)}": row for experiment, rows in planned.rows.items() for row in rows.values()
    }
    return StudySection(
        title=planned.study.title,
        document=planned.study.document,
        experiments=experiments,
        figures=own,
        memory=memory_table(data, everything),
        paper=theoretical_limit_tables(data, planned),
    )


def _frontiers(data: ReportData, rows: Mapping[str, Row]) -> list[tuple[str, str]]:
    """(row, what its search for the largest batch found), of rows that ran."""
    written = data.verdicts.frontiers
    titles = {row.frontier: row.title for row in rows.values() if row.frontier in written}
    found = [(title, written[id]) for id, title in titles.items() if id is not None]
    return [(title, describe(one)) for title, one in found if one.fits or one.fails]


def _held(data: ReportData, rows: Mapping[str, Row]) -> str:
    """What the cells of an experiment have in common, and how often they were measured."""
    cells = [data.plan.cells[row.cell] for row in rows.values() if row.cell in data.plan.cells]
    if not cells:
        return "No cell of this experiment can be planned by this version."

    def common(values: Iterable[object], text: str = "{}") -> list[str]:
        known = list(dict.fromkeys(value for value in values if value is not None))
        return [text.format(known[0])] if len(known) == 1 else []

    workloads = [planned.cell.workload for planned in cells]
    summaries = [data.cells[planned.cell.id] for planned in cells if planned.cell.id in data.cells]
    parts = [
        *common([markup.code(planned.cell.checkpoint.name) for planned in cells], "checkpoint {}"),
        *common([planned.cell.dtype for planned in cells]),
        *common([workload.batch for workload in workloads], "batch {}"),
        *common([summary.prompt_tokens for summary in summaries], "{} prompt tokens"),
        *common([workload.new_tokens for workload in workloads], "{} new tokens"),
        *common(["sampled" if workload.sampling else "greedy" for workload in workloads]),
        *common([data.rounds(row) or None for row in rows.values()], "rounds: {}"),
        *common([planned.blocks or None for planned in cells], "blocks: {}"),
        *common(
            [planned.cell.protocol.samples if planned.blocks else None for planned in cells], "samples a block: {}"
        ),
    ]
    return f"Held: {', '.join(parts)}." if parts else ""


def _claims(data: ReportData) -> list[StudyClaims]:
    """Every study's claims; each check with what it found and the links to its results."""
    found = []
    for study, planned in data.plan.studies.items():
        judged = [claim for claim in data.verdicts.claims if claim.study == study]
        if judged:
            described = tuple(map(_describe_claim, judged))
            title, figure = planned.study.title, study_figures.of_verdicts(study, judged)
            departs = any(claim.differs for claim in described)
            found.append(StudyClaims(study, title, described, departs, _told(judged), figure))
    return found


def _told(judged: Sequence[ClaimVerdict]) -> str:
    """`16 claims: 13 supported, 3 refuted.`"""
    numbers = [(sum(claim.verdict == verdict for claim in judged), verdict) for verdict in Verdict]
    told = ", ".join(f"{number} {verdict}" for number, verdict in numbers if number)
    return f"{count(len(judged), 'claim')}: {told}."


def _describe_claim(claim: ClaimVerdict) -> ClaimText:
    checks = tuple(_describe_check(check) for check in claim.checks)
    deviations = tuple(dict.fromkeys(text for check in claim.checks for text in check.deviations))
    return ClaimText(
        id=claim.id,
        statement=claim.statement,
        verdict=claim.verdict,
        published=claim.published,
        note=claim.note,
        checks=checks,
        results=tuple(dict.fromkeys(path for check in claim.checks for path in check.results)),
        deviations=deviations,
        differs=tuple(dict.fromkeys(text.partition(": ")[0] for text in deviations)),
        ours="; ".join(check.ours for check in checks if check.ours != "–") or "–",
        headline=_found(told_by) if (told_by := verdict_chart.headline(claim)) else "–",
        why=claim.reason if _adds(claim.reason, [check.reason for check in claim.checks]) else None,
    )


def _describe_check(check: CheckVerdict) -> CheckText:
    published = None
    if check.published is not None:
        in_gb = (check.metric or "").endswith("bytes") and check.kind != "ratio"
        published = f"{check.published * 1e-9:,.4g} GB" if in_gb else f"{check.published:,.4g}"
    return CheckText(
        verdict=check.verdict,
        sentence=check.sentence,
        expect=check.expect,
        ours=_found(check),
        published=published,
        reason=None if _repeats(check.sentence, check.reason) else check.reason,
    )


def _repeats(text: str | None, reason: str | None) -> bool:
    """Whether `text` says already what `reason` does."""
    return bool(text and reason) and str(reason).rstrip(". ").lower() in str(text).lower()


def _adds(reason: str | None, said: Iterable[str | None]) -> bool:
    """Whether `reason` says more than the checks' own reasons, which stand above it."""
    left = (reason or "").replace("Not judged:", "")
    for text in sorted(filter(None, said), key=len, reverse=True):  # one may begin with all of another
        left = left.replace(text.rstrip(". "), "")
    return any(character.isalnum() for character in left)


def _found(check: CheckVerdict) -> str:
    if check.estimate is None:
        return "–"
    found = Interval(check.estimate, check.low, check.high)
    metric = check.metric or ""
    if check.kind == "ratio":
        return interval(found, "x")
    if check.kind == "shape":
        return f"exponent {interval(found)}"
    if metric.endswith("bytes"):
        return f"{interval(found.scaled(1e-9))} GB"
    return interval(found)


def _unavailable(data: ReportData) -> list[Missed]:
    """What did not end well, by outcome and reason, with the rows that it concerns."""
    grouped: dict[tuple[Outcome, str], list[str]] = {}
    for study, planned in data.plan.studies.items():
        for experiment, rows in planned.rows.items():
            for row in rows.values():
                if data.outcome(row) != Outcome.OK:
                    key = (data.outcome(row), data.reason(row))
                    grouped.setdefault(key, []).append(f"{study}: {experiment}/{row_title(row)}")
    return [Missed(outcome, reason, rows) for (outcome, reason), rows in sorted(grouped.items())]


def _libraries(plan: Plan) -> dict[str, str]:
    """Every library that a result here depends on, with the versions that were seen."""
    seen: dict[str, set[str]] = {}
    for planned in plan.cells.values():
        for name, version in planned.key.libraries.items():
            seen.setdefault(name, set()).add(version or "absent")
    return {name: ", ".join(sorted(seen[name])) for name in sorted(seen)}
