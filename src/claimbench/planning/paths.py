"""Where checkpoints, environments and ceilings lie, and the name that a person knows each cell by."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from claimbench.schema.cell import Checkpoint
from claimbench.schema.json_file import digest
from claimbench.schema.plan import RESULTS, Plan

CHECKPOINTS = Path("resources/checkpoints")

FETCHED = Path("resources/fetched")

ENVIRONMENTS = Path("resources/environments")


def locks_folder() -> Path:
    """`envs`, beside the code where it runs from a clone: another workflow, of which this is a module, has its own."""
    clone = Path(__file__).parents[3] / "envs"
    return Path(os.path.relpath(clone)) if (clone / "cpu.lock").exists() else Path("envs")


def ceilings_path(plan: Plan) -> Path:
    return RESULTS / "ceilings" / f"{plan.machine['key']}-{plan.device}.json"


def raw_files(plan: Plan, rounds: Iterable[str]) -> list[str]:
    """All that was measured for `plan`, and what it was measured for: nothing that follows from other files."""
    name = f"{plan.seal[:12]}.json"
    found = [str(RESULTS / "plan" / name), str(ceilings_path(plan))]
    found += [str(RESULTS / "decided" / name), *rounds] if plan.groups else []
    found += [path for planned in plan.cells.values() for path in planned.paths()]
    return found + [search.path for search in plan.frontiers.values()]


def labels(plan: Plan) -> dict[str, str]:
    """A name a person knows for each cell: the first row that shows it, as `study: experiment/label@...`."""
    names: dict[str, str] = {}
    for study, planned in plan.studies.items():
        for experiment, rows in planned.rows.items():
            for address, row in rows.items():
                if row.cell:
                    names.setdefault(row.cell, f"{study}: {experiment}/{address}")
    return names


def folder_of(plan: Plan, checkpoint: Checkpoint) -> str:
    """A folder's name holds all that its content follows from, so that a change never rewrites one in use."""
    settings = [checkpoint.model_dump(mode="json", exclude={"card"}), plan.params.shard.model_dump(mode="json")]
    return f"{checkpoint.name}-{digest(settings, length=8)}"
