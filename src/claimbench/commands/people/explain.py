"""One cell: why it would run or not, and from which files its number comes, down to each sample."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claimbench.errors import ConfigError, ResultError

if TYPE_CHECKING:
    from claimbench.exchange.folder import ResultsFolder
    from claimbench.exchange.tracing import Named, Record
    from claimbench.schema.plan import Plan

ABOUT = "one cell: why it would run here or not, and from which files its number comes, down to raw samples"
EXAMPLES = (
    "claimbench explain decode/sdpa",
    "claimbench explain quickstart:batching/plain@batch=8 --samples",
    "claimbench explain decode/sdpa --folder runs/smollm2",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cell", help="experiment/label, study:experiment/label@batch=8, or the beginning of its id")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="a project, a run or results, e.g. runs/smollm2; default: here"
    )
    parser.add_argument("--samples", action="store_true", help="every timed generation, as it was recorded")


def run(arguments: argparse.Namespace) -> int | None:
    from claimbench.commands import output
    from claimbench.exchange import tracing

    plan, results = _plan(arguments.folder)
    row = tracing.find(plan, arguments.cell)
    output.say(f"{row.study}: {row.address}")
    for line in _what(plan, row):
        output.say(f"  {line}")
    if row.cell is None:
        return None
    if results is None:
        output.say("  no results yet: nothing has measured it")
        return None
    return _records(results, row, arguments.samples)


def _plan(folder: Path) -> tuple[Plan, ResultsFolder | None]:
    """The plan of the results that are in `folder`, else the one that its params.yaml makes."""
    from claimbench.exchange import folder as results
    from claimbench.schema.validation import read_yaml
    from claimbench.workflow import jobs

    if folder.is_dir() and any(results.is_results(folder / inner) for inner in ("", *results.INSIDE)):
        found = results.find(folder)
        return found.plan, found
    if not (folder / "params.yaml").exists():
        raise ConfigError(f"{folder}: neither results nor a params.yaml in it: name another with --folder")
    import contextlib

    with contextlib.chdir(folder):
        return jobs.plan_for(read_yaml(Path("params.yaml")), Path("studies")), None


def _what(plan: Plan, row: Named) -> Iterator[str]:
    """Its settings, and whether it would run here."""
    from claimbench.planning.availability import missing_requirement

    shown = plan.row(row.study, row.address)
    yield from (f"differs from what was asked: {text}" for text in shown.deviations)
    if row.cell is None:
        yield f"does not run: {shown.unavailable}"
        return
    planned = plan.cells[row.cell]
    cell, work = planned.cell, planned.cell.workload
    uses = [f"{use.name}{_settings(use.settings)}" for use in cell.optimizations]
    yield f"cell {row.cell}: {cell.backend}{_settings(cell.options)}; {', '.join(uses) or 'no optimizations'}"
    yield f"model {cell.checkpoint.name}, {cell.checkpoint.source}, {cell.dtype} on {cell.device}"
    length = f"{work.prompt_tokens} tokens" if work.prompt_tokens else "a prompt as it is"
    yield f"{length}, {work.new_tokens} new ones, batch {work.batch}"
    known = [f"{name} {version}" for name, version in planned.key.libraries.items()]
    yield f"key {planned.key.id}: code {planned.key.code}, machine {planned.key.machine}, {', '.join(known)}"
    missing = missing_requirement(cell)
    yield f"would not run here: {missing}" if missing else "would run here"
    how = f"{planned.blocks} blocks, each in a fresh process" if planned.blocks else "rounds, in turn with others"
    yield f"measured in {how}"


def _settings(settings: dict[str, Any]) -> str:
    said = {name: value for name, value in settings.items() if value not in (None, {}, [])}
    return f" ({', '.join(f'{name} {value}' for name, value in said.items())})" if said else ""


def _records(results: ResultsFolder, row: Named, with_samples: bool) -> int | None:
    from claimbench.commands import output
    from claimbench.exchange import tracing

    assert row.cell is not None
    bad = None
    for line in _numbers(results, row):
        output.say(f"  {line}")
    found = list(tracing.records(results, row.cell))
    output.say(f"  from {len(found)} files:" if found else "  no results yet: nothing has measured it")
    for one in found:
        if isinstance(one, ResultError):
            output.note(f"left out: {one}")
            bad = ResultError.exit_status
            continue
        output.say(f"    {_line(one)}")
        if with_samples and one.result.samples:
            heads = ("sample", "total, ms", "first token, ms", "median step, ms", "tokens' sha256")
            columns = [
                output.Column(f"      {head}" if not place else head, is_number=True)
                for place, head in enumerate(heads)
            ]
            output.table(columns, [list(tracing.sample_text(n, each)) for n, each in enumerate(one.result.samples)])
    return bad


def _line(one: Record) -> str:
    samples = f", {len(one.result.samples)} samples" if one.result.samples else ""
    reason = f": {one.result.reason}" if one.result.reason else ""
    doubts = f"; {'; '.join(one.doubts)}" if one.doubts else ""
    counts = "" if one.counts else "; does not count"
    return f"{one.path}: {one.what}, {one.result.outcome.value}{reason}{samples}{doubts}{counts}"


def _numbers(results: ResultsFolder, row: Named) -> Iterator[str]:
    """What the verdicts say of it, and the claims that rest on it."""
    from claimbench.commands import answer
    from claimbench.formatting import interval

    if row.cell is None or not (results.path / "verdicts.json").exists():
        return
    cell = results.verdicts.cells.get(row.cell)
    if cell is None:
        return
    yield f"{cell.outcome.value}{f': {cell.reason}' if cell.reason else ''}"
    for metric in ("decode_tok_s", "prefill_ms"):
        if metric in cell.metrics:
            found = cell.metrics[metric]
            yield f"{metric} {interval(found.interval)}, of medians {', '.join(f'{one:.4g}' for one in found.blocks)}"
    yield f"tokens: {answer.agreement(cell)}"
    for claim in results.verdicts.claims:
        if claim.study == row.study and any(row.address in (check.of, check.to) for check in claim.checks):
            yield f"claim {claim.id}, {claim.verdict.value}: {claim.statement}"
