"""Parameters and studies -> every cell, its key, the files of its results, and the claims about it. Pure.

Whatever can be known to be wrong before a device is taken is an error here, by file and key.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from claimbench import optimizations
from claimbench.cost_model import cost
from claimbench.cost_model.hardware import HARDWARE
from claimbench.errors import ConfigError, did_you_mean
from claimbench.planning.deviations import deviations_of
from claimbench.planning.expand import expand, reference_of
from claimbench.planning.groups import comparisons, groups_of
from claimbench.planning.result_key import key_of
from claimbench.schema.cell import Cell, Device
from claimbench.schema.checks import Check
from claimbench.schema.deviation import Deviation
from claimbench.schema.json_file import digest
from claimbench.schema.machine import MachineIdentity
from claimbench.schema.metrics import METRICS
from claimbench.schema.params import Params
from claimbench.schema.plan import RESULTS, Plan, PlannedCell, PlannedFrontier, PlannedGroup, PlannedStudy, Row
from claimbench.schema.study import Study


def sweep_suffix(sweep: Mapping[str, object]) -> str:
    """What the swept values add to a row's address: `@batch=8,new_tokens=64`; nothing where there are none."""
    return "@" + ",".join(f"{key}={value}" for key, value in sweep.items()) if sweep else ""


class PlannedCells:
    """The cells of all studies, each once, however many rows show it."""

    def __init__(self, params: Params, machine_key: str) -> None:
        self.params, self.machine_key = params, machine_key
        self.by_id: dict[str, PlannedCell] = {}

    def add(self, cell: Cell, blocks: int, reference: str | None = None) -> str:
        """The cell's id; a cell without a reference is its own. Who asks for most blocks and samples gets them."""
        id = cell.id
        known = self.by_id.get(id)
        if known is None:
            key = key_of(cell, self.machine_key, self.params.measure.series)
            exact = optimizations.is_exact(cell)
            self.by_id[id] = PlannedCell(cell=cell, key=key, blocks=blocks, reference=reference or id, exact=exact)
        else:
            most = max(known.cell, cell, key=lambda one: one.protocol.samples)
            changed: dict[str, object] = {"cell": most, "blocks": max(known.blocks, blocks)}
            if reference and known.reference == id != reference:  # it was met as a reference, or in a study of its type
                changed["reference"] = reference
            self.by_id[id] = known.model_copy(update=changed)
        return id


def make_plan(params: Params, studies: dict[str, Study], machine: MachineIdentity, device: Device) -> Plan:
    """Every cell that `studies` ask for, on `device` of `machine`.

    Raises:
        ConfigError: unknown names, clashing optimizations, impossible workloads, claims about missing cells.
    """
    cells = PlannedCells(params, machine["key"])
    planned: dict[str, PlannedStudy] = {}
    for name, study in studies.items():
        _check_hardware(study, f"studies/{name}.yaml")
        rows = {
            experiment: _rows(
                study, experiment, params, device, machine, f"studies/{name}.yaml: experiments.{experiment}", cells
            )
            for experiment in study.experiments
        }
        planned[name] = PlannedStudy(study=study, rows=rows)
    searches, planned = _with_frontiers(planned, cells.by_id)
    _check_claims(planned)
    in_rounds = {name: each for name, each in planned.items() if _budget_minutes(params, studies[name])}
    searched = {id for search in searches.values() for id in search.cells}
    groups = groups_of(in_rounds, cells.by_id)
    for id in _in_rounds_alone(groups, in_rounds.values()) - searched:
        cells.by_id[id] = cells.by_id[id].model_copy(update={"blocks": 0})
    return Plan(
        device=device,
        machine=machine,
        params=params,
        cells=_link_batches(cells.by_id),
        studies=planned,
        frontiers=searches,
        groups=groups,
        budget_minutes=sum(_budget_minutes(params, studies[name]) for name in in_rounds) if groups else 0.0,
    )


def _in_rounds_alone(groups: Sequence[PlannedGroup], studies: Collection[PlannedStudy]) -> set[str]:
    """Cells that need no blocks beside their rounds.

    Those need them that a claim compares with what takes no turns, or by how they start.
    """
    seated = {id for group in groups for id in group.everyone}
    mixed = [sides for planned in studies for sides in comparisons(planned) if not set(sides) <= seated]
    starts = [sides for planned in studies for sides in comparisons(planned, of_start=True)]
    return seated - {id for sides in (*mixed, *starts) for id in sides}


def _budget_minutes(params: Params, study: Study) -> float:
    """For the study's rounds; 0 where it is measured in blocks. What params.yaml sets is for all studies together."""
    if params.measure.budget_minutes:
        return params.measure.budget_minutes / len(params.studies)
    return study.measure.budget_minutes or 0.0


def _rows(
    study: Study, name: str, params: Params, device: Device, machine: MachineIdentity, path: str, cells: PlannedCells
) -> dict[str, Row]:
    """The rows of experiment `name` by address; their cells, and the references of these, are added to `cells`."""
    experiment = study.experiments[name]
    blocks = experiment.blocks or study.measure.blocks or params.measure.blocks
    rows: dict[str, Row] = {}
    asked_for: dict[str, str | None] = {}
    for expanded in expand(params, study, experiment, device, path):
        cell, missing, asked = expanded.resolve()
        if cell is not None and asked_for.setdefault(cell.checkpoint.name, asked) != asked:
            first, used = asked_for[cell.checkpoint.name], cell.checkpoint.name
            missing = f"params.yaml swap puts '{used}' in place of '{first}' and of '{asked}': the same cell"
            cell = None
        id, departs = None, tuple[Deviation, ...]()
        if cell is not None:
            reference = cells.add(reference_of(cell, expanded.usual_dtype), blocks=1)
            id = cells.add(cell, expanded.study_cell.blocks or blocks, reference)
            departs = deviations_of(expanded, cells.by_id[id], machine, _budget_minutes(params, study))
        rows[expanded.label + sweep_suffix(expanded.sweep)] = Row(
            label=expanded.label,
            title=expanded.study_cell.title or expanded.label.replace("_", " "),
            sweep=expanded.sweep,
            cell=id,
            unavailable=missing,
            published=expanded.published(),
            deviations=departs,
            asked=expanded.asked() if study.document.hardware else None,
        )
    return rows


def order(plan: Plan) -> list[tuple[str, int]]:
    """(cell id, block) in the order to measure: every cell's block 0 before any block 1.

    Inside a round experiments are shuffled, and cells inside an experiment: what is compared is measured within
    minutes, since a machine that others use is another one half an hour later.
    """
    shuffle = random.Random(plan.params.measure.seed)  # noqa: S311 - an order, not a secret
    experiments = _experiments(plan)
    sequence = []
    for block in range(max((planned.blocks for planned in plan.cells.values()), default=0)):
        for experiment in shuffle.sample(sorted(experiments), k=len(experiments)):
            ids = sorted(id for id in experiments[experiment] if plan.cells[id].blocks > block)
            sequence += [(id, block) for id in shuffle.sample(ids, k=len(ids))]
    return sequence


def _experiments(plan: Plan) -> dict[tuple[str, str], list[str]]:
    """(study, experiment) -> ids of its cells, each under the first that shows it; references alone go under ""."""
    first: dict[str, tuple[str, str]] = {}
    for study, planned in plan.studies.items():
        for experiment, rows in planned.rows.items():
            for row in rows.values():
                if row.cell:
                    first.setdefault(row.cell, (study, experiment))
    found: dict[tuple[str, str], list[str]] = {}
    for id in plan.cells:
        found.setdefault(first.get(id, ("", "")), []).append(id)
    return found


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


def _with_frontiers(
    studies: dict[str, PlannedStudy], cells: dict[str, PlannedCell]
) -> tuple[dict[str, PlannedFrontier], dict[str, PlannedStudy]]:
    """The searches that experiments ask for, one for each row of batches, and the studies with their ids."""
    searches: dict[str, PlannedFrontier] = {}
    linked: dict[str, PlannedStudy] = {}
    for name, planned in studies.items():
        rows = dict(planned.rows)
        for experiment in (one for one, asked in planned.study.experiments.items() if asked.frontier):
            swept: dict[str, list[str]] = {}
            for row in rows[experiment].values():
                if row.cell:
                    swept.setdefault(_line_of(row), []).append(row.cell)
            ids = {line: _search(members, cells, searches) for line, members in swept.items()}
            rows[experiment] = {
                address: row.model_copy(update={"frontier": ids[_line_of(row)] if row.cell else None})
                for address, row in rows[experiment].items()
            }
        linked[name] = planned.model_copy(update={"rows": rows})
    return searches, linked


def _line_of(row: Row) -> str:
    """What its row of batches has in common."""
    return row.label + sweep_suffix({key: value for key, value in row.sweep.items() if key != "batch"})


def _search(members: list[str], cells: dict[str, PlannedCell], searches: dict[str, PlannedFrontier]) -> str:
    members = sorted(set(members), key=lambda id: cells[id].cell.workload.batch)
    id = digest(members)
    path = RESULTS / "measure" / id / cells[members[0]].key.id / "frontier.json"
    searches[id] = PlannedFrontier(cells=tuple(members), path=str(path))
    return id


def _check_hardware(study: Study, where: str) -> None:
    named = study.document.hardware
    if named is not None and named not in HARDWARE:
        raise ConfigError(f"{where}: document.hardware: unknown '{named}'.{did_you_mean(named, HARDWARE)}")


def _check_claims(studies: Mapping[str, PlannedStudy]) -> None:
    for name, planned in studies.items():
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
