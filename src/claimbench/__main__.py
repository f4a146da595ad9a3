"""The command line: one subcommand per stage. The only place that parses arguments, prints and exits."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claimbench import __version__
from claimbench.errors import ClaimbenchError, ConfigError, SourceError

if TYPE_CHECKING:
    from claimbench.schema.ceilings import Ceilings
    from claimbench.schema.plan import Plan

Handler = Callable[[argparse.Namespace], None]


def _machine(arguments: argparse.Namespace) -> None:
    from claimbench.schema.json_file import write_json
    from claimbench.system import machine

    write_json(arguments.output, machine.identify())


def _plan(arguments: argparse.Namespace) -> None:
    from claimbench.schema.json_file import write_json
    from claimbench.workflow import jobs

    plan = jobs.plan_for(json.loads(arguments.params), Path(arguments.studies))
    if jobs.digest_of(plan) != arguments.digest:
        raise ConfigError("the code, the studies or the libraries changed while the workflow ran: start it again")
    write_json(arguments.output, plan.model_dump(mode="json"))
    for other in set(arguments.output.parent.glob("*.json")) - {arguments.output}:
        other.unlink()


def _fetch(arguments: argparse.Namespace) -> None:
    from claimbench.checkpoints import fetch
    from claimbench.schema.cell import Checkpoint

    fetch.fetch(Checkpoint.model_validate_json(arguments.checkpoint), arguments.output)


def _shard(arguments: argparse.Namespace) -> None:
    from claimbench.checkpoints import shard
    from claimbench.schema.cell import Checkpoint

    checkpoint = Checkpoint.model_validate_json(arguments.checkpoint)
    most = int(arguments.max_shard_mb * 1e6) if arguments.max_shard_mb else None
    shard.shard(checkpoint, arguments.fetched, arguments.output, most)


def _checkpoints(arguments: argparse.Namespace) -> None:
    from claimbench.checkpoints import manifest
    from claimbench.schema.json_file import write_json

    found = [manifest.read(path.parent) for path in arguments.manifests]
    summary = {
        m.checkpoint: {
            "sha256": m.sha256,
            "source": m.source,
            "revision": m.revision,
            "parameters": m.parameters,
            "weight_bytes": m.weight_bytes,
        }
        for m in found
    }
    write_json(arguments.output, summary)


def _measure(arguments: argparse.Namespace) -> None:
    from claimbench.measuring import measure
    from claimbench.planning import target_machine
    from claimbench.schema.cell import Cell
    from claimbench.schema.plan import read as read_plan
    from claimbench.schema.result import Key
    from claimbench.workflow import progress

    key = Key.model_validate_json(arguments.key)
    target_machine.expect_here(key.machine)
    for folder in filter(None, (arguments.checkpoint, arguments.draft)):
        if not folder.is_dir():
            raise SourceError(f"there is no checkpoint at {folder}: `snakemake fetched` makes it")
    cell = Cell.model_validate_json(arguments.cell)
    line = progress.Line(read_plan(arguments.plan) if arguments.plan.exists() else None, cell, arguments.block)
    print(line.before(), file=sys.stderr, flush=True)
    record = measure.measure(
        cell,
        arguments.block,
        key,
        arguments.output,
        checkpoint=arguments.checkpoint,
        draft=arguments.draft,
        reference=Cell.model_validate_json(arguments.reference) if arguments.reference else None,
        reference_checkpoint=arguments.reference_checkpoint,
        smaller=arguments.smaller,
        python=arguments.python,
    )
    print(line.after(record), file=sys.stderr, flush=True)


def _rounds(arguments: argparse.Namespace) -> None:
    from claimbench.deciding import decide
    from claimbench.planning import target_machine
    from claimbench.schema import round as round_file
    from claimbench.schema.plan import read as read_plan

    plan = read_plan(arguments.plan)
    target_machine.expect_here(plan.machine["key"])
    arguments.folder.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    decider = decide.Decider(plan, arguments.folder, say)
    decider.run()
    say(f"{decider.progress(is_over=True).text} in {len(decider.rounds)} rounds")
    round_file.write_all(arguments.output, plan.budget_minutes, decider.rounds)
    for other in set(arguments.output.parent.glob("*.json")) - {arguments.output}:
        other.unlink()


def _frontier(arguments: argparse.Namespace) -> None:
    from claimbench.measuring import frontier
    from claimbench.planning import target_machine
    from claimbench.schema.cell import Cell
    from claimbench.schema.frontier import describe
    from claimbench.schema.result import Key

    key = Key.model_validate_json(arguments.key)
    target_machine.expect_here(key.machine)
    found = frontier.find(
        Cell.model_validate_json(arguments.cell),
        key,
        arguments.swept,
        arguments.output,
        checkpoint=arguments.checkpoint,
        draft=arguments.draft,
        python=arguments.python,
    )
    print(f"    {describe(found)}", file=sys.stderr, flush=True)


def _ceiling(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from claimbench.measuring import ceiling
    from claimbench.planning import target_machine
    from claimbench.schema import ceilings

    target_machine.expect_here(arguments.machine)
    ceilings.write(arguments.output, ceiling.measure_ceilings(arguments.device, arguments.machine))


def _selftest(arguments: argparse.Namespace) -> None:
    from claimbench.measuring import selftest
    from claimbench.schema.params import load_params
    from claimbench.schema.validation import read_yaml
    from claimbench.system import machine

    here = machine.identify()
    asked = load_params(read_yaml(arguments.params)).device if arguments.params.exists() else "auto"
    cell = selftest.default_cell(machine.resolve_device(asked, here))
    arguments.output.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    rounds = selftest.run(cell, selftest.prepare(), here["key"], arguments.minutes, arguments.output, say)
    print("\n".join(selftest.report(rounds)))


def _aggregate(arguments: argparse.Namespace) -> None:
    from claimbench.analysis import aggregate, table_file
    from claimbench.schema import round as round_file

    plan, limits, made_of = _what_a_table_is_made_of(arguments)
    rounds = round_file.read_all(arguments.rounds) if arguments.rounds else {}
    table = aggregate.aggregate(plan, limits, rounds=rounds)
    table_file.write(table, arguments.parquet, arguments.csv, made_of)


def _what_a_table_is_made_of(arguments: argparse.Namespace) -> tuple[Plan, Ceilings, dict[str, str]]:
    """The plan, this machine's ceilings, and their seals by name, with that of the rounds where there are any."""
    from claimbench.schema import ceilings, sealed
    from claimbench.schema import round as round_file
    from claimbench.schema.plan import read as read_plan

    plan = read_plan(arguments.plan)
    limits = ceilings.read(arguments.ceilings, plan.machine["key"], plan.device)
    made_of = {"plan": plan.seal, "ceilings": sealed.seal(limits)}
    if arguments.rounds:
        made_of["rounds"] = sealed.seal(round_file.read_summary(arguments.rounds))
    return plan, limits, made_of


def _judge(arguments: argparse.Namespace) -> None:
    from claimbench.analysis import table_file
    from claimbench.judging import judge
    from claimbench.schema import frontier, verdicts
    from claimbench.schema.plan import read as read_plan

    plan = read_plan(arguments.plan)
    read = table_file.read(arguments.table, {"plan": plan.seal})
    found = {id: frontier.read(Path(search.path)) for id, search in plan.frontiers.items()}
    judged = judge.judge(plan, read.table, frontiers=found)
    made_of = {"plan": plan.seal, "table": read.seal}
    verdicts.write(arguments.output, judged.model_copy(update={"made_of": made_of}))


def _report(arguments: argparse.Namespace) -> None:
    from claimbench.analysis import table_file
    from claimbench.reporting import report
    from claimbench.schema import round as round_file
    from claimbench.schema import sealed, verdicts

    plan, limits, made_of = _what_a_table_is_made_of(arguments)
    read = table_file.read(arguments.table, made_of)
    judged = verdicts.read(arguments.verdicts)
    sealed.require_made_of(arguments.verdicts, judged.made_of, {"plan": plan.seal, "table": read.seal}, "judge")
    rounds = round_file.read_summary(arguments.rounds) if arguments.rounds else None
    report.render(plan, read.table, judged, limits, arguments.output, rounds)


def _forecast(arguments: argparse.Namespace) -> None:
    from claimbench import formatting
    from claimbench.planning import forecast, model_lines, paths
    from claimbench.schema import ceilings
    from claimbench.schema.validation import read_yaml
    from claimbench.workflow import jobs

    plan = jobs.plan_for(read_yaml(arguments.params), Path(arguments.studies))
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
        print(f"memory: about {expected.peak_bytes / 1e9:.1f} GB, for {labels.get(expected.hungriest, 'a reference')}")
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
    from claimbench.deciding.decide import ROUNDS, Decider
    from claimbench.planning import forecast

    print(f"rounds: at most {formatting.duration(plan.budget_minutes * 60)}, or until every claim is decided")
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


def _schema(arguments: argparse.Namespace) -> None:
    from claimbench.schema.params import json_schemas

    for name, schema in json_schemas().items():
        path, text = arguments.output / name, json.dumps(schema, indent=2, sort_keys=True) + "\n"
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            raise ConfigError(f"{path} is not what the code says: run `make schema`")


def _environment(arguments: argparse.Namespace) -> None:
    from claimbench.workflow import environments

    environments.build(arguments.lock, arguments.folder, arguments.output)


def _from_file(text: str) -> str:
    """An argument that may be long: itself, or what the file holds that it names behind an `@`."""
    return Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="claimbench", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="STAGE")

    def command(name: str, handler: Handler, about: str, **flags: dict[str, Any]) -> None:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(handler=handler)
        for flag, settings in flags.items():
            added.add_argument(f"--{flag.replace('_', '-')}", **settings)

    path: dict[str, Any] = {"type": Path, "required": True}
    maybe_path: dict[str, Any] = {"type": Path}
    text: dict[str, Any] = {"required": True}
    long: dict[str, Any] = {"required": True, "type": _from_file}
    command("machine", _machine, "say what this machine is, for a plan made elsewhere", output=path)
    command(
        "plan", _plan, "write every cell, its key and its files", params=long, studies=text, digest=text, output=path
    )
    command("fetch", _fetch, "bring a checkpoint's files here", checkpoint=text, output=path)
    command(
        "shard",
        _shard,
        "write a checkpoint as safetensors shards with a manifest",
        checkpoint=text,
        fetched=path,
        output=path,
        max_shard_mb={"type": float},
    )
    command(
        "checkpoints",
        _checkpoints,
        "one small file that says which weights are here",
        manifests={"type": Path, "nargs": "*", "default": []},
        output=path,
    )
    command(
        "measure",
        _measure,
        "measure one block of one cell",
        cell=long,
        key=text,
        block={"type": int, "required": True},
        plan=path,
        output=path,
        checkpoint=maybe_path,
        draft=maybe_path,
        reference={"default": "", "type": _from_file},
        reference_checkpoint=maybe_path,
        smaller=maybe_path,
        python={"default": sys.executable},
    )
    command(
        "frontier",
        _frontier,
        "search between the batches of a sweep for the largest that fits",
        cell=long,
        key=text,
        swept={"type": Path, "nargs": "+", "required": True},
        output=path,
        checkpoint=maybe_path,
        draft=maybe_path,
        python={"default": sys.executable},
    )
    command("ceiling", _ceiling, "measure this machine's limits", device=text, machine=text, output=path)
    command(
        "selftest",
        _selftest,
        "what this machine can tell apart: a model against itself, and against itself slowed down",
        minutes={"type": float, "default": 10.0},
        params={"type": Path, "default": Path("params.yaml")},
        output={"type": Path, "default": Path("results/selftest")},
    )
    command(
        "rounds",
        _rounds,
        "measure in rounds until every claim is settled or the budget is spent",
        plan=path,
        folder=path,
        output=path,
    )
    command(
        "aggregate",
        _aggregate,
        "results to one tidy table",
        plan=path,
        rounds=maybe_path,
        ceilings=path,
        parquet=path,
        csv=path,
    )
    command("judge", _judge, "a verdict for every claim", plan=path, table=path, output=path)
    command(
        "report",
        _report,
        "render the report",
        plan=path,
        table=path,
        verdicts=path,
        ceilings=path,
        rounds=maybe_path,
        output=path,
    )
    command(
        "forecast",
        _forecast,
        "what a run will take: blocks, time, memory, disk",
        params={"type": Path, "default": Path("params.yaml")},
        studies={"default": "studies"},
    )
    command(
        "schema",
        _schema,
        "JSON schemas of params.yaml and studies, for editors",
        output=path,
        check={"action": "store_true"},
    )
    command(
        "environment", _environment, "build a backend's environment from its lock", lock=path, folder=path, output=path
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    from claimbench.system.redaction import guard_last_resort, redact

    parsed = _parser().parse_args(arguments)
    guard_last_resort()
    try:
        parsed.handler(parsed)
    except ClaimbenchError as error:
        from claimbench.schema.lines import located

        print(f"claimbench: {located(redact(str(error)))}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"claimbench: cannot write{where}: {error.strerror}. What was measured before is kept.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
