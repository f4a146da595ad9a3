"""All that a report says, once and as plain text: `report.md` and `report.html` are two looks at one `View`.

Text holds `code` between backticks and nothing else that is markup; each template escapes it for its own format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import yaml

from claimbench import __version__
from claimbench.analysis.protocol import protocol_of
from claimbench.formatting import count, interval, number
from claimbench.reporting import dvc_files, recommendations, study_figures
from claimbench.reporting.claims import ClaimTable, StudyClaims, claims_of, first_screen_of
from claimbench.reporting.origin import described
from claimbench.reporting.recommendations import ObjectiveAdvice
from claimbench.reporting.report_data import ReportData
from claimbench.reporting.study_figures import Illustration
from claimbench.reporting.table import Table
from claimbench.reporting.tables import memory_table, row_title, shared_deviations, tables, tokens_table
from claimbench.reporting.theoretical_limits import theoretical_limit_tables
from claimbench.schema.frontier import describe
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Plan, Row
from claimbench.schema.rendering import Origin
from claimbench.schema.round import Rounds
from claimbench.schema.study import Document
from claimbench.schema.verdicts import ClaimVerdict, Verdict


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


class View(NamedTuple):
    """All that a report says, apart from where its files lie."""

    plan: Plan
    device_name: str | None
    tolerance: float
    counts: dict[Verdict, int]
    objectives: list[ObjectiveAdvice]
    machine: list[tuple[str, str]]
    studies: list[StudySection]
    claims: list[StudyClaims]
    first_screen: list[ClaimTable]
    unavailable: list[Missed]
    not_judged: list[ClaimVerdict]
    params_yaml: str
    libraries: dict[str, str]
    codes: int
    """Versions of the executed code."""
    floors: list[Floor]
    rounds: Rounds | None
    origin: str | None
    edited_after: int
    blocks: int
    version: str

    @property
    def figures(self) -> list[Illustration]:
        """Every figure, each once."""
        found = [picture for study in self.studies for one in study.experiments for picture in one.figures]
        found += [picture for study in self.studies for picture in study.figures]
        return found + [table.figure for table in self.first_screen if table.figure]


class Floor(NamedTuple):
    """What no difference looks like: a cell against itself."""

    title: str
    ratio: str
    rounds: int
    is_off: bool


def view_of(data: ReportData, rounds: Rounds | None = None, origin: Origin | None = None) -> View:
    plan, claims = data.plan, claims_of(data)
    return View(
        plan=plan,
        device_name=data.verdicts.device_name,
        tolerance=data.verdicts.tolerance,
        counts=dvc_files.verdict_counts(data),
        objectives=recommendations.objectives(data),
        machine=_machine(data),
        studies=[_study(data, name) for name in plan.studies],
        claims=claims,
        first_screen=first_screen_of(data, claims),
        unavailable=_unavailable(data),
        not_judged=[claim for claim in data.verdicts.claims if claim.verdict == Verdict.NOT_RUNNABLE],
        params_yaml=yaml.safe_dump(plan.params.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100),
        libraries=_libraries(plan),
        codes=len({planned.key.code for planned in plan.cells.values()}),
        floors=_floors(data),
        rounds=rounds,
        origin=described(origin) if origin else None,
        edited_after=_edited_after(plan, rounds),
        blocks=sum(planned.blocks for planned in plan.cells.values()),
        version=__version__,
    )


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
    return lines


def _study(data: ReportData, name: str) -> StudySection:
    planned = data.plan.studies[name]
    experiments = []
    for experiment, rows in planned.rows.items():
        question = planned.study.experiments[experiment]
        listed = tables(data, planned.study, experiment, rows)
        experiments.append(
            ExperimentSection(
                question=question.question,
                held=_held(data, rows),
                deviations=shared_deviations(rows.values()),
                tables=listed,
                frontiers=_frontiers(data, rows),
                tokens=tokens_table(data, rows) if "tokens" not in [entry.text for entry in listed[0].head] else None,
                figures=study_figures.of_experiment(data, name, experiment),
            )
        )
    own = [
        picture for picture in (study_figures.of_memory(data, name), study_figures.of_ceilings(data, name)) if picture
    ]
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
        *common([planned.cell.checkpoint.name for planned in cells], "checkpoint `{}`"),
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
