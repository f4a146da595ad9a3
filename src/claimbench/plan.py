"""Parameters and studies -> every cell, its key, the files of its results, and the claims about it. Pure.

Whatever can be known to be wrong before a device is taken is an error here, by file and key.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

from claimbench import backends, optimizations
from claimbench.cell import Cell, Checkpoint, Device, Frozen, OptimizationUse, Protocol, Workload
from claimbench.errors import ConfigError, did_you_mean
from claimbench.keys import key_of
from claimbench.metrics import METRICS
from claimbench.model import cost
from claimbench.params import Params, validate
from claimbench.result import Key
from claimbench.study import Check, Experiment, Hold, Study, StudyCell

RESULTS = Path("results")
BUILT_IN = Hold(dtype="float32", batch=1, optimizations=(), options={}, backend="transformers")


class PlannedCell(Frozen):
    cell: Cell
    key: Key
    blocks: int
    reference: str | None = None
    """Id of the cell whose tokens this one is compared with; its own id for a reference."""
    smaller: str | None = None
    """Id of the cell that differs only by the next smaller batch: if it is out of memory, so is this one."""
    exact: bool = True

    def paths(self) -> list[str]:
        folder = RESULTS / "measure" / self.cell.id / self.key.id
        return [str(folder / f"{block}.json") for block in range(self.blocks)]


class Row(Frozen):
    """One cell as a study shows it."""

    label: str
    title: str
    sweep: dict[str, float | int | str] = {}
    cell: str | None = None
    """Id of the cell, or None where this version cannot plan it; then `unavailable` says why."""
    unavailable: str | None = None
    published: dict[str, float | int | str] = {}
    """The document's figures by metric, of this very row."""
    deviations: tuple[str, ...] = ()
    """How the cell departs from what the document asks for: another architecture, a workload cut to this machine."""


class PlannedStudy(Frozen):
    study: Study
    rows: dict[str, dict[str, Row]]
    """experiment -> address within it (`label` or `label@batch=8`) -> row."""


class Plan(Frozen):
    device: Device
    machine: dict[str, Any]
    params: Params
    cells: dict[str, PlannedCell]
    studies: dict[str, PlannedStudy]

    def row(self, study: str, address: str) -> Row:
        """The row at `experiment/label[@...]` of `study`.

        Raises:
            KeyError: there is none.
        """
        experiment, _, rest = address.partition("/")
        return self.studies[study].rows[experiment][rest]


def sweep_suffix(point: dict[str, Any]) -> str:
    return "@" + ",".join(f"{key}={value}" for key, value in point.items()) if point else ""


def make_plan(params: Params, studies: dict[str, Study], machine: dict[str, Any], device: Device) -> Plan:
    """Every cell that `studies` ask for, on `device` of `machine`.

    Raises:
        ConfigError: unknown names, clashing optimizations, impossible workloads, claims about missing cells.
    """
    cells: dict[str, PlannedCell] = {}
    planned: dict[str, PlannedStudy] = {}
    machine_key = str(machine["key"])

    def add(cell: Cell, blocks: int, reference: str | None) -> None:
        known = cells.get(cell.id)
        if known is None:
            key = key_of(cell, machine_key, params.measure.series)
            exact = optimizations.is_exact(cell)
            cells[cell.id] = PlannedCell(cell=cell, key=key, blocks=blocks, reference=reference, exact=exact)
        elif known.blocks < blocks:
            cells[cell.id] = known.model_copy(update={"blocks": blocks})

    for name, study in studies.items():
        where = f"studies/{name}.yaml"
        rows: dict[str, dict[str, Row]] = {}
        for experiment_name, experiment in study.experiments.items():
            rows[experiment_name] = {}
            asked_for: dict[str, str | None] = {}
            for label, study_cell, point in _points(experiment):
                path = f"{where}: experiments.{experiment_name}.cells.{label}"
                cell, missing, asked, deviations = _cell(params, study, experiment, study_cell, point, device, path)
                if cell is not None and asked_for.setdefault(cell.checkpoint.name, asked) != asked:
                    first, used = asked_for[cell.checkpoint.name], cell.checkpoint.name
                    missing = f"params.yaml swap puts '{used}' in place of '{first}' and of '{asked}': the same cell"
                    cell = None
                if cell is not None:
                    reference = _reference(cell)
                    add(reference, 1, reference.id)
                    add(cell, study.measure.blocks or params.measure.blocks, reference.id)
                rows[experiment_name][label + sweep_suffix(point)] = Row(
                    label=label,
                    title=study_cell.title or label.replace("_", " "),
                    sweep=point,
                    cell=cell.id if cell else None,
                    unavailable=missing,
                    published=_published(study_cell, point, path),
                    deviations=deviations,
                )
        planned[name] = PlannedStudy(study=study, rows=rows)
    plan = Plan(device=device, machine=machine, params=params, cells=_link_batches(cells), studies=planned)
    _check_claims(plan)
    return plan


def order(plan: Plan) -> list[tuple[str, int]]:
    """(cell id, block) in the order to measure: every cell's block 0 before any block 1, shuffled inside a round."""
    shuffle = random.Random(plan.params.measure.seed)  # noqa: S311 - an order, not a secret
    sequence = []
    for block in range(max((planned.blocks for planned in plan.cells.values()), default=0)):
        ids = sorted(id for id, planned in plan.cells.items() if planned.blocks > block)
        shuffle.shuffle(ids)
        sequence += [(id, block) for id in ids]
    return sequence


def _points(experiment: Experiment) -> Iterator[tuple[str, StudyCell, dict[str, Any]]]:
    for label, study_cell in experiment.cells.items():
        for values in product(*experiment.sweep.values()):
            yield label, study_cell, dict(zip(experiment.sweep, values, strict=True))


def _published(study_cell: StudyCell, point: dict[str, Any], path: str) -> dict[str, float | int | str]:
    figures: dict[str, float | int | str] = {}
    for metric, figure in study_cell.published.items():
        if metric not in METRICS:
            raise ConfigError(f"{path}.published: unknown metric '{metric}'.{did_you_mean(metric, METRICS)}")
        if not isinstance(figure, dict):
            figures[metric] = figure
            continue
        if len(point) != 1:
            raise ConfigError(
                f"{path}.published.{metric}: figures by value need an experiment that sweeps over one key"
            )
        (value,) = point.values()
        if value in figure:
            figures[metric] = figure[value]
    return figures


class _Point(NamedTuple):
    cell: Cell | None
    """None where this version or these parameters cannot plan it; then `unavailable` says why."""
    unavailable: str | None
    checkpoint: str | None = None
    """The checkpoint that the study asks for, before `swap`."""
    deviations: tuple[str, ...] = ()


def _cut(
    params: Params, experiment: Experiment, asked: dict[str, int | None]
) -> tuple[dict[str, int | None], list[str], str | None]:
    """`asked` cut down to this machine's limits, what was cut, and the reason to leave the row out instead.

    Where an experiment compares several values of a key, cutting would make different rows equal: they are left out.
    """
    cut: list[str] = []
    kept = dict(asked)
    for key, value in asked.items():
        limit = getattr(params.limits, key)
        if limit is None or value is None or value <= limit:
            continue
        if key in experiment.sweep or any(getattr(cell, key) is not None for cell in experiment.cells.values()):
            return kept, cut, f"capped by params.yaml limits.{key}={limit}"
        kept[key] = limit
        cut.append(f"{key} {value} cut to {limit} by params.yaml limits.{key}")
    together, limit = (kept["batch"] or 1) * (kept["prompt_tokens"] or 1), params.limits.batch_tokens
    if limit is not None and together > limit:
        return kept, cut, f"capped by params.yaml limits.batch_tokens={limit}"
    return kept, cut, None


def _cell(
    params: Params,
    study: Study,
    experiment: Experiment,
    study_cell: StudyCell,
    point: dict[str, Any],
    device: Device,
    path: str,
) -> _Point:
    layers = [Hold.model_validate(point), study_cell, experiment.hold, study.defaults, BUILT_IN]

    def setting(key: str) -> Any:
        return next((value for layer in layers if (value := getattr(layer, key)) is not None), None)

    prompt_name = setting("prompt")
    if prompt_name is None:
        raise ConfigError(f"{path}: no prompt: set one here, in `hold`, or in the study's `defaults`")
    if prompt_name not in study.prompts:
        raise ConfigError(f"{path}.prompt: unknown prompt '{prompt_name}'.{did_you_mean(prompt_name, study.prompts)}")
    if setting("new_tokens") is None:
        raise ConfigError(f"{path}: no new_tokens: set it here, in `hold`, or in the study's `defaults`")
    sizes, deviations, too_large = _cut(
        params, experiment, {key: setting(key) for key in ("prompt_tokens", "new_tokens", "batch")}
    )
    workload = Workload.model_validate({"prompt": study.prompts[prompt_name], "sampling": setting("sampling"), **sizes})
    asked = setting("checkpoint")
    checkpoint = _checkpoint(params, asked, path)
    meant = params.checkpoints[asked].architecture
    if checkpoint.architecture != meant:
        deviations.append(f"{asked} ({meant}) swapped for {checkpoint.name} ({checkpoint.architecture})")

    backend_name = setting("backend")
    if backend_name in study.planned.backends:
        if backend_name in backends.names():
            raise ConfigError(f"{path}: the backend '{backend_name}' is there now: take it out of `planned`")
        return _Point(None, f"this version has no backend '{backend_name}' yet")
    if backend_name not in backends.names():
        raise ConfigError(
            f"{path}.backend: unknown backend '{backend_name}'.{did_you_mean(backend_name, backends.names())}"
        )
    backend = backends.find(backend_name)

    uses, missing = _optimizations(setting("optimizations"), study, backend.SEAMS, backend_name, path)
    if missing:
        return _Point(None, missing)
    if experiment.device not in (None, device):
        return _Point(None, f"this experiment is about a {experiment.device} device")
    if too_large:
        return _Point(None, too_large)
    draft = None
    for use in uses:
        draft_setting = getattr(optimizations.find(use.name), "CHECKPOINT_SETTING", None)
        if draft_setting:
            draft = _checkpoint(params, use.settings[draft_setting], f"{path}.optimizations.{use.name}.{draft_setting}")
    options = validate(backend.Options, setting("options"), f"{path}.options").model_dump(mode="json")

    context = cost.architecture(checkpoint.architecture).context
    length = (workload.prompt_tokens or 1) + workload.new_tokens
    if length > context:
        raise ConfigError(
            f"{path}: prompt and new tokens make {length}, but '{checkpoint.name}' ({checkpoint.architecture}) has a "
            f"context of {context}: ask for fewer"
        )
    measure = params.measure
    protocol = Protocol(
        samples=min(study.measure.samples or measure.samples, params.limits.samples or sys.maxsize),
        warmup_min=_first(study.measure.warmup_min, measure.warmup_min),
        warmup_max=_first(study.measure.warmup_max, measure.warmup_max),
        timeout_s=study.measure.timeout_s or measure.timeout_s,
        threads=measure.threads,
        memory_limit=int(measure.memory_limit_gb * 1e9) if measure.memory_limit_gb else None,
    )
    cell = Cell(
        checkpoint=checkpoint,
        draft=draft,
        backend=backend_name,
        options=options,
        optimizations=uses,
        dtype=setting("dtype"),
        workload=workload,
        device=device,
        protocol=protocol,
    )
    return _Point(cell, None, asked, tuple(deviations))


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def _checkpoint(params: Params, name: str | None, path: str) -> Checkpoint:
    if name is None:
        raise ConfigError(f"{path}: no checkpoint: set one here, in `hold`, or in the study's `defaults`")
    if name not in params.checkpoints:
        raise ConfigError(f"{path}: unknown checkpoint '{name}'.{did_you_mean(name, params.checkpoints)}")
    used = params.swap.get(name, name)
    try:
        cost.architecture(params.checkpoints[used].architecture)
    except KeyError:
        asked = params.checkpoints[used].architecture
        hint = did_you_mean(asked, cost.architecture_names())
        raise ConfigError(
            f"params.yaml: checkpoints.{used}.architecture: unknown architecture '{asked}'.{hint}"
        ) from None
    return Checkpoint(name=used, **params.checkpoints[used].model_dump())


def _optimizations(
    asked: tuple[str | dict[str, dict[str, Any]], ...],
    study: Study,
    seams: frozenset[str],
    backend_name: str,
    path: str,
) -> tuple[tuple[OptimizationUse, ...], str | None]:
    uses: list[OptimizationUse] = []
    owner: dict[str, str] = {}
    for entry in asked:
        if isinstance(entry, dict) and len(entry) != 1:
            raise ConfigError(f"{path}.optimizations: expected a name or one {{name: settings}}, got {entry!r}")
        name, raw = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        if name in study.planned.optimizations:
            if name in optimizations.names():
                raise ConfigError(f"{path}: the optimization '{name}' is there now: take it out of `planned`")
            return (), f"this version has no optimization '{name}' yet"
        if name not in optimizations.names():
            hint = did_you_mean(name, optimizations.names())
            raise ConfigError(f"{path}.optimizations: unknown optimization '{name}'.{hint}")
        module = optimizations.find(name)
        settings = validate(module.Settings, raw, f"{path}.optimizations.{name}").model_dump(mode="json")
        if module.SEAM not in seams:
            raise ConfigError(
                f"{path}: '{name}' changes the {module.SEAM}, which the backend '{backend_name}' does not offer"
            )
        if module.SEAM in owner:
            raise ConfigError(f"{path}: '{owner[module.SEAM]}' and '{name}' both change the {module.SEAM}: keep one")
        owner[module.SEAM] = name
        uses.append(OptimizationUse(name=name, settings=settings))
    names = {use.name for use in uses}
    for name in names:
        module = optimizations.find(name)
        for needed in getattr(module, "NEEDS", frozenset()) - names:
            raise ConfigError(f"{path}: '{name}' needs '{needed}' as well")
        for clashing in getattr(module, "CLASHES", frozenset()) & names:
            raise ConfigError(f"{path}: '{name}' cannot be combined with '{clashing}'")
    return tuple(sorted(uses, key=lambda use: use.name)), None


def _reference(cell: Cell) -> Cell:
    backend_name = backends.find(cell.backend).REFERENCE
    options = backends.find(backend_name).Options().model_dump(mode="json")
    return cell.model_copy(update={"backend": backend_name, "options": options, "optimizations": (), "draft": None})


def _link_batches(cells: dict[str, PlannedCell]) -> dict[str, PlannedCell]:
    families: dict[str, list[PlannedCell]] = {}
    for planned in cells.values():
        cell = planned.cell
        family = cell.model_copy(update={"workload": cell.workload.model_copy(update={"batch": 1})}).id
        families.setdefault(family, []).append(planned)
    linked = dict(cells)
    for members in families.values():
        members.sort(key=lambda planned: planned.cell.workload.batch)
        for smaller, larger in pairwise(members):
            linked[larger.cell.id] = larger.model_copy(update={"smaller": smaller.cell.id})
    return linked


def _check_claims(plan: Plan) -> None:
    for name, planned in plan.studies.items():
        seen: set[str] = set()
        for claim in planned.study.claims:
            path = f"studies/{name}.yaml: claims.{claim.id}"
            if claim.id in seen:
                raise ConfigError(f"{path}: this id is there twice")
            seen.add(claim.id)
            for number, check in enumerate(claim.checks):
                _check_addresses(planned, check, f"{path}.checks.{number}")


def _check_addresses(planned: PlannedStudy, check: Check, path: str) -> None:
    metric = getattr(check, "metric", None)
    if metric is not None and metric not in METRICS:
        raise ConfigError(f"{path}.metric: unknown metric '{metric}'.{did_you_mean(metric, METRICS)}")
    curve = check.kind in ("shape", "frontier")
    for field in ("of", "to", "than_of", "than_to"):
        address = getattr(check, field, None)
        if address is None:
            continue
        experiment, _, rest = address.partition("/")
        if experiment not in planned.rows:
            raise ConfigError(f"{path}.{field}: no experiment '{experiment}'.{did_you_mean(experiment, planned.rows)}")
        rows = planned.rows[experiment]
        known = {row.label for row in rows.values()} if curve else set(rows)
        if rest not in known:
            raise ConfigError(f"{path}.{field}: no cell '{rest}' in '{experiment}'.{did_you_mean(rest, known)}")
        over = getattr(check, "over", None)
        if curve and over not in planned.study.experiments[experiment].sweep:
            raise ConfigError(f"{path}.over: '{experiment}' does not sweep over '{over}'")
    architecture = getattr(check, "architecture", None)
    if architecture is not None and architecture not in cost.architecture_names():
        hint = did_you_mean(architecture, cost.architecture_names())
        raise ConfigError(f"{path}.architecture: unknown architecture '{architecture}'.{hint}")
