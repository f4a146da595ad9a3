"""Does the product run there? The quickstart's plan walked by hand, with the commands that the workflow's rules run.

What it makes stays in a folder of its own: a call that was ended goes on where it was, as the workflow would. The
checkpoint comes from a bundle, since there is no network. Results and report come home as one archive.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_day import pack
from gpu_day.record import Json
from gpu_day.right_device import expect
from gpu_day.stage import ENTRY, Check, Context, Skip

ROOT = ENTRY.parents[1]
ARCHIVE_BYTES = 15 << 20
MORE_S = 240.0
"""Beyond the budget: the last round ends, and processes start and stop."""
ODD = ("error", "wrong", "timeout", "oom")
ROUNDS = Path("results/rounds")
TABLE, VERDICTS, REPORT = Path("results/table.parquet"), Path("results/verdicts.json"), Path("reports")
TINY_STUDY = """\
title: Does the product run here?
document: {title: A question of this benchmark, measured: A tiny model}
prompts: {hello: hello hello hello}
defaults: {checkpoint: tiny, dtype: float32, prompt: hello, new_tokens: 8}
measure: {budget_minutes: 1, samples: 2}
experiments:
  decode:
    question: Does it run?
    cells:
      plain: {title: Plain Transformers}
      no_cache: {title: Without a cache, optimizations: [no_cache]}
claims:
  - id: T1
    kind: identity
    statement: The cache changes no token
    checks:
      - {kind: identity, of: decode/no_cache, to: decode/plain}
"""


def checks(context: Context) -> list[Check]:
    """Each step needs the one before it."""
    steps: list[tuple[str, Callable[[Context], Json], float]] = [
        ("plan", plan, 120),
        ("checkpoints", checkpoints, 180),
        ("limits", limits, 180),
        ("rounds", rounds, context.minutes * 60 + MORE_S),
        ("blocks", blocks, 300),
        ("table", table, 60),
        ("verdicts", verdicts, 60),
        ("report", report, 120),
        ("archive", archive, 60),
    ]
    before = [(), *((f"check:{name}",) for name, _, _ in steps[:-1])]
    return [Check(name, run, need, limit) for (name, run, limit), need in zip(steps, before, strict=True)]


def in_work(context: Context) -> Any:
    """Go to the work folder and write the plan there: what the workflow knows."""
    from claimbench.schema.json_file import write_json

    work = context.work / ("tiny" if context.tiny else "product")
    (work / "studies").mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    flow = _workflow(context)
    path = Path(flow.plan_json)
    if not path.exists():  # also where another call has another budget, which is another plan
        write_json(path, flow.plan.model_dump(mode="json"))
    return flow


@functools.cache
def _workflow(context: Context) -> Any:
    from claimbench.schema.validation import read_yaml
    from claimbench.workflow import jobs

    asked: Any = read_yaml(ROOT / "params.yaml")
    asked |= {"device": context.device, "studies": ["tiny" if context.tiny else "quickstart"], "swap": {}}
    asked["measure"] |= {"budget_minutes": float(context.minutes), "blocks": 1}
    if context.tiny:
        asked["checkpoints"] = {"tiny": "random://tiny-llama?seed=0"}
        Path("studies/tiny.yaml").write_text(TINY_STUDY, encoding="utf-8")
    else:
        shutil.copy(ROOT / "studies" / "quickstart.yaml", "studies/quickstart.yaml")
    return jobs.Workflow(asked, Path("studies"))


def command(*words: object) -> None:
    """A command of the product's own; what it says goes to the log, its last line into the error."""
    last = "it said nothing"
    command = [sys.executable, "-m", "claimbench", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:  # as it comes: a stage that is ended leaves what was said so far
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
    if process.returncode:
        raise RuntimeError(f"claimbench {words[0]} ended with status {process.returncode}: {last}")


def plan(context: Context) -> Json:
    """The plan for this machine: as many cells as the study has, and none that asks for the other device."""
    flow = in_work(context)
    devices = {planned.cell.device for planned in flow.plan.cells.values()}
    expect(devices == {context.device}, f"cells on {context.device}", devices)
    expect(not flow.frontiers, "a study without searches, which are not walked here", flow.frontiers)
    counted = {"cells": len(flow.plan.cells), "groups": len(flow.plan.groups), "blocks": len(flow.results)}
    return counted | {"digest": flow.digest[:12], "machine": flow.plan.machine["key"]}


def checkpoints(context: Context) -> Json:
    """Every checkpoint of the plan, from the bundle where it has a file of weights, verified and cut into shards."""
    from claimbench.checkpoints import manifest

    flow = in_work(context)
    found = {}
    for folder, checkpoint in flow.checkpoints.items():
        fetched = Path(flow.fetched(folder)).parent
        from_bundle(context, checkpoint, fetched)
        command("fetch", "--checkpoint", checkpoint.model_dump_json(), "--output", fetched)
        target = Path("resources/checkpoints") / folder
        words = ["--checkpoint", checkpoint.model_dump_json(), "--fetched", fetched, "--output", target]
        command("shard", *words, *flow.max_shard.split())
        found[checkpoint.name] = manifest.verify(target).sha256
    return {"sha256": found}


def from_bundle(context: Context, checkpoint: Any, into: Path) -> None:
    """Put the bundle's file where `fetch` looks first, as if fetched; `Skip` where it is not in the bundle."""
    from claimbench.checkpoints import fetch
    from claimbench.checkpoints.manifest import File
    from claimbench.schema.json_file import write_json

    if checkpoint.source.startswith(("random://", "file://")) or (into / fetch.SOURCE).exists():
        return
    joined = pack.join(context.bundle, into) if context.bundle else None
    if joined is None:
        raise Skip(f"{checkpoint.name}: not all its parts are in the bundle {context.bundle}")
    path, source, sha256 = joined
    expect(source == checkpoint.source, f"a bundle of {checkpoint.source}", source)
    files = (File(name=path.name, bytes=path.stat().st_size, sha256=sha256),)
    write_json(into / fetch.SOURCE, fetch.Fetched(source=source, files=files).model_dump(mode="json"))


def limits(context: Context) -> Json:
    from claimbench.schema import ceilings

    flow = in_work(context)
    path = Path(flow.ceilings)
    if context.tiny:  # the real ones take a minute: on a CPU that others use they would say nothing
        path.parent.mkdir(parents=True, exist_ok=True)
        ceilings.write(path, ceilings.Ceilings(device=flow.plan.device, machine=flow.plan.machine["key"]))
    elif not path.exists():
        command("ceiling", "--device", context.device, "--machine", flow.plan.machine["key"], "--output", path)
    found: Json = ceilings.read(path, flow.plan.machine["key"], flow.plan.device).model_dump(mode="json")
    expect(context.tiny or (found["read_bytes_per_s"] or 0) > 0, "a bandwidth of memory", found)
    return found


def rounds(context: Context) -> Json:
    """Rounds until every claim is decided or the budget is spent; no arm may have ended oddly."""
    from claimbench.schema import round as round_file

    flow = in_work(context)
    expect(bool(flow.decided), "a study that is measured in rounds", flow.decided)
    (summary,) = flow.decided
    command("rounds", "--plan", flow.plan_json, "--folder", ROUNDS, "--output", summary)
    found = round_file.read_all(Path(summary))
    expect(len(found) > 0, "at least one round", 0)
    arms = [arm.result for record in found.values() for arm in record.arms]
    outcomes = Counter(str(arm.outcome) for arm in arms)
    expect(outcomes["ok"] > 0, "an arm that was timed", dict(outcomes))
    odd = {f"{_named(arm)}: {arm.outcome}: {arm.reason}" for arm in arms if str(arm.outcome) in ODD}
    expect(not odd, "no arm that failed", "; ".join(sorted(odd)))
    absent = {f"{_named(arm)}: {arm.reason}" for arm in arms if str(arm.outcome) == "unavailable"}
    clocks = Counter(sample.clock for arm in arms for sample in arm.samples)
    expect(set(clocks) == {"device" if context.cuda else "host"}, "this device's clock alone", dict(clocks))
    return {"rounds": len(found), "outcomes": dict(outcomes), "unavailable": sorted(absent)}


def _named(result: Any) -> str:
    return "+".join(use.name for use in result.cell.optimizations) or f"plain {result.cell.backend}"


def blocks(context: Context) -> Json:
    """What cannot take turns, in blocks; a study may have none."""
    from claimbench.planning.plan import order
    from claimbench.schema import result

    flow = in_work(context)
    outcomes: Counter[str] = Counter()
    for id, block in order(flow.plan):
        path = flow.cell(id).paths()[block]
        command("measure", *shlex.split(flow.flags(id, block)), "--output", path)
        outcomes[str(result.read(Path(path)).outcome)] += 1
    expect(not set(outcomes) & set(ODD), "no block that failed", dict(outcomes))
    return {"outcomes": dict(outcomes)}


def table(context: Context) -> Json:
    from claimbench.analysis import table_file

    flow = in_work(context)
    words = ["--plan", flow.plan_json, "--ceilings", flow.ceilings, "--rounds", *flow.decided]
    command("aggregate", *words, "--parquet", TABLE, "--csv", TABLE.with_suffix(".csv"))
    rows = len(table_file.read(TABLE, {"plan": flow.plan.seal}).table)
    expect(rows > 0, "rows in the table", rows)
    return {"rows": rows}


def verdicts(context: Context) -> Json:
    from claimbench.schema import verdicts as verdict_file

    flow = in_work(context)
    command("judge", "--plan", flow.plan_json, "--table", TABLE, "--output", VERDICTS)
    judged = {claim.id: str(claim.verdict) for claim in verdict_file.read(VERDICTS).claims}
    asked = {claim.id for planned in flow.plan.studies.values() for claim in planned.study.claims}
    expect(set(judged) == asked, f"a verdict for each of {sorted(asked)}", judged)
    return {"verdicts": judged}


def report(context: Context) -> Json:
    flow = in_work(context)
    words = ["--plan", flow.plan_json, "--table", TABLE, "--verdicts", VERDICTS, "--ceilings", flow.ceilings]
    command("report", *words, "--rounds", *flow.decided, "--output", REPORT)
    text = (REPORT / "report.md").read_text(encoding="utf-8")
    asked = [claim.id for planned in flow.plan.studies.values() for claim in planned.study.claims]
    absent = [id for id in asked if id not in text]
    expect(not absent, "every claim in the report", f"none of {absent}")
    return {"bytes": len(text.encode()), "figures": len(list((REPORT / "figures").glob("*.svg")))}


def archive(context: Context) -> Json:
    """Results and report in one file, small enough to come home."""
    in_work(context)
    path = context.out / "product.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for name in ("results", "reports"):
            file.add(name)
    size = path.stat().st_size
    expect(size <= ARCHIVE_BYTES, f"at most {ARCHIVE_BYTES:,} bytes", f"{size:,}")
    return {"bytes": size}
