"""Reports that are kept in git, each beside the raw results that it was made from.

A kept report is a folder: `report.md`, `report.html`, their figures, and `results/` with the plan, the ceilings, the
blocks and the rounds as they were measured. A plain folder, since every link of the report leads into it, and git
compresses it by itself. Whatever is judged and shown is made from it anew, so a change of judging or of the report's
words shows up as a difference.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from claimbench.analysis import aggregate, table_file
from claimbench.analysis.hours import hours_of
from claimbench.errors import ResultError
from claimbench.judging import judge
from claimbench.planning.paths import ceilings_path, raw_files
from claimbench.reporting import report
from claimbench.reporting.origin import origin_of
from claimbench.schema import ceilings, frontier, sealed, verdicts
from claimbench.schema import round as round_file
from claimbench.schema.plan import RESULTS, Plan
from claimbench.schema.plan import read as read_plan
from claimbench.workflow import derived_files

SHOWN = ("report.md", "report.html", "figures", "results/verdicts.json")
"""What is made of raw results; metrics and plots are DVC's."""
OTHERS = ("metrics.json", "plots")


def kept(reports: Path) -> list[Path]:
    """Every kept report below `reports`."""
    return sorted(path.parents[2] for path in reports.glob("*/results/plan/*.json"))


def keep(plan_file: Path, root: Path, folder: Path) -> None:
    """Copy what the plan at `plan_file` was measured to from the project `root` into `folder`, and render it there.

    Raises:
        ResultError: the folder keeps another report already, or what is measured is not whole.
    """
    if folder.exists():
        raise ResultError(f"{folder} is there already: keep the report under another name, or delete it first")
    for name in _raw_files(read_plan(plan_file), plan_file, root):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target)
    render(folder)


def _raw_files(plan: Plan, plan_file: Path, root: Path) -> list[str]:
    decided = root / RESULTS / "decided" / plan_file.name
    wanted = raw_files(plan, round_file.read_summary(decided).seals if plan.groups else ())
    missing = [name for name in wanted if not (root / name).is_file()]
    if missing:
        raise ResultError(f"{missing[0]} is missing: `snakemake --cores all` measures what is not there yet")
    return wanted


def render(folder: Path) -> None:
    """Judge the kept results in `folder` anew and write its report, in place of the one that is there."""
    with contextlib.chdir(folder):
        _render(Path())
    for name in OTHERS:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _render(output: Path) -> None:
    """Of the results in this folder."""
    (plan_file,) = (RESULTS / "plan").glob("*.json")
    plan = read_plan(plan_file)
    decided = RESULTS / "decided" / plan_file.name
    summary = round_file.read_summary(decided) if plan.groups else None
    limits = ceilings.read(ceilings_path(plan), plan.machine["key"], plan.device)
    table = aggregate.aggregate(plan, limits, rounds=round_file.read_all(decided) if summary else {})
    searches = {id: frontier.read(Path(search.path)) for id, search in plan.frontiers.items()}
    judged = judge.judge(plan, table_file.as_written(table), frontiers=searches)
    verdicts.write(RESULTS / "verdicts.json", judged.model_copy(update={"made_of": _made_of(plan, limits, summary)}))
    origin = origin_of(plan, plan_file.stem, hours_of(plan, summary.seals if summary else ()))
    report.render(plan, table_file.as_written(table), judged, limits, output, summary, origin=origin, root="")


def _made_of(plan: Plan, limits: ceilings.Ceilings, rounds: round_file.Rounds | None) -> dict[str, str]:
    """The seals of what is kept, by name. A table is not: verdicts and report are made of it in memory."""
    results = derived_files.made_of_results(path for each in plan.cells.values() for path in each.paths())
    made_of = {"plan": plan.seal, "ceilings": sealed.seal(limits), "results": results}
    return made_of | ({"rounds": sealed.seal(rounds)} if rounds else {})


def differences(folder: Path) -> list[str]:
    """The files of the kept report in `folder` that are not what its raw results come to today."""
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name) / "kept"
        shutil.copytree(folder / "results", fresh / "results")
        render(fresh)
        files = {path.relative_to(parent) for parent in (folder, fresh) for path in _shown_in(parent)}
        return sorted(str(path) for path in files if _bytes(folder / path) != _bytes(fresh / path))


def _shown_in(folder: Path) -> list[Path]:
    return [path for name in SHOWN for path in [folder / name, *(folder / name).glob("*")] if path.is_file()]


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
