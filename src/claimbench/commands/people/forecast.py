"""What a run will take, before it runs."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claimbench.schema.ceilings import Ceilings
    from claimbench.schema.plan import Plan

ABOUT = "what a run will take: blocks, time, memory, disk"
EXAMPLES = (
    "claimbench forecast",
    "claimbench forecast --params runs/smollm2/params.yaml --studies runs/smollm2/studies",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml here")
    parser.add_argument("--studies", default="studies", help="folders of studies, by colons; default: studies here")


def run(arguments: argparse.Namespace) -> None:
    from claimbench import formatting
    from claimbench.planning import forecast, model_lines, paths
    from claimbench.schema import ceilings
    from claimbench.schema.validation import read_yaml
    from claimbench.workflow import jobs

    plan = jobs.plan_for(read_yaml(arguments.params), *map(Path, arguments.studies.split(os.pathsep)))
    path = paths.ceilings_path(plan)
    known = path.exists()
    limits = ceilings.read(path, plan.machine["key"], plan.device) if known else ceilings.Ceilings()
    expected = forecast.forecast(plan, limits)
    labels = paths.labels(plan)
    for id, count in sorted(expected.missing_by_cell.items(), key=lambda item: labels.get(item[0], "~")):
        each, seen = forecast.block_seconds(plan.cells[id], limits)
        source = "seen" if seen else "estimated"
        print(f"  {labels.get(id, 'reference')}: {count} x {formatting.duration(each)} ({source})")
    if expected.blocks_total:
        print(f"{expected.blocks_missing} of {expected.blocks_total} blocks are to be measured on {plan.device}")
    older = forecast.older_results(plan)
    if older:
        print(
            f"{older} results of these cells are of another version of the code or a library, or of another machine: "
            "they are kept, they count in no table, and their cells are measured anew"
        )
    if plan.groups:
        _forecast_rounds(plan, limits)
    if expected.blocks_total:
        share = f"{expected.measured_share:.0%} of the blocks were seen before"
        print(f"time: about {formatting.duration(expected.seconds)} ({share})")
    if expected.hungriest:
        hungriest = labels.get(expected.hungriest, "a reference")
        print(f"memory: about {expected.peak_bytes / 1e9:.1f} GB at a time (largest: {hungriest})")
    print(f"disk: about {expected.disk_bytes / 1e9:.1f} GB of checkpoints to fetch and write")
    for line in model_lines.model_lines(plan, limits):
        print(f"  {line}")
    bounds = forecast.batch_bounds(plan)
    if bounds:
        print("rows that could fit at most, by weights and cache alone:")
    for bound in bounds:
        print(f"  {forecast.bound_text(bound)}")


def _forecast_rounds(plan: Plan, limits: Ceilings) -> None:
    """What the budget will probably decide: by the rounds that are there, or by how far it goes."""
    from claimbench import formatting
    from claimbench.deciding.decide import Decider
    from claimbench.deciding.round_files import ROUNDS
    from claimbench.planning import forecast

    print(f"rounds: at most {formatting.duration(plan.budget_minutes * 60)}, or until all is decided")
    for each in forecast.resolutions(plan, limits):
        cells = formatting.count(each.cells, "cell")
        told = "no ratio, for lack of time" if math.isinf(each.difference) else f"ratios {each.difference:.0%} from 1"
        print(f"  {each.title}: {cells}, about {each.passes:.0f} passes: enough to tell {told}")
    decider = Decider(plan, ROUNDS, print)
    if not decider.rounds:
        return
    progress = decider.progress()
    print(f"so far {progress.text}")
    for check in progress.undecided:
        minutes = check.needed.minutes if check.needed else None
        when = "no budget would" if minutes is None else f"about {formatting.duration(minutes * 60)} more would"
        print(f"  {check.claim}: {when}")
