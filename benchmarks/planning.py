"""How planning and Snakemake scale: studies of many cells that were measured already, in a scratch folder.

    python benchmarks/planning.py 100 1000 10000

`plan`: params and study to a plan with all that the rules ask of it. `snakemake -n`: nothing is measured yet. `no-op`:
everything is. `render`: table, verdicts and report from the results.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from claimbench.schema import result
from claimbench.schema.plan import Plan
from claimbench.schema.result import Result, Sample
from claimbench.schema.validation import read_yaml
from claimbench.workflow.jobs import Workflow

ROOT = Path(__file__).parent.parent
COLUMNS = ("cells", "plan", "snakemake -n", "no-op", "render", "no-op of all")


def lay_out(folder: Path, cells: int) -> None:
    """A workflow whose one study sweeps over `cells` workloads of the null backend."""
    for name in ("workflow", "profiles", "envs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder / "Snakefile")
    side = max(10, cells // 100)
    study = {
        "title": "Many cells",
        "document": {"title": "Many cells"},
        "prompts": {"hello": "Hello"},
        "defaults": {"checkpoint": "tiny", "backend": "null_model", "prompt": "hello"},
        "experiments": {
            "many": {
                "question": "How long does planning take?",
                "cells": {"plain": {}},
                "sweep": {
                    "new_tokens": list(range(1, side + 1)),
                    "prompt_tokens": list(range(1, cells // side + 1)),
                },
            }
        },
    }
    params = {
        "studies": ["many"],
        "device": "cpu",
        "measure": {"blocks": 1},
        "checkpoints": {"tiny": {"source": "random://tiny-llama?seed=0", "architecture": "tiny-llama"}},
    }
    (folder / "studies").mkdir()
    (folder / "studies/many.yaml").write_text(json.dumps(study), encoding="utf-8")
    (folder / "params.yaml").write_text(json.dumps(params), encoding="utf-8")


def plan(folder: Path) -> Plan:
    """What the Snakefile asks when it is read, and each job when it is made."""
    flow = Workflow(read_yaml(folder / "params.yaml"), folder / "studies")
    for id, planned in flow.plan.cells.items():
        for block, _ in enumerate(planned.paths()):
            flow.inputs(id, block)
            flow.flags(id, block)
    assert len(flow.priority) == len(flow.results)
    return flow.plan


def fabricate(folder: Path, plan: Plan) -> None:
    """A sealed result at each path of the plan, with the pace of one token a millisecond."""
    for planned in plan.cells.values():
        tokens = planned.cell.workload.new_tokens
        sample = Sample(
            wall_ns=tokens * 1_000_000,
            step_ns=(1_000_000,) * tokens,
            step_tokens=(1,) * tokens,
            tokens_sha256=f"{tokens:064x}",
        )
        for block, path in enumerate(planned.paths()):
            record = Result(
                cell=planned.cell,
                block=block,
                key=planned.key,
                outcome="ok",
                started_at="2026-01-01T00:00:00+00:00",
                duration_s=1.0,
                samples=(sample,),
                tokens=(1,) * tokens,
            )
            result.write(folder / path, record)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def snakemake(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "snakemake", "--cores", "all", *arguments]
    done = subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")


def row(cells: int) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="claimbench-planning-") as scratch:
        folder = Path(scratch)
        lay_out(folder, cells)
        planned = plan(folder)
        times = [
            len(planned.cells),
            seconds(lambda: plan(folder)),
            seconds(lambda: snakemake(folder, "-n", "measured")),
        ]
        fabricate(folder, planned)
        snakemake(folder, "measured")
        times.append(seconds(lambda: snakemake(folder, "measured")))
        snakemake(folder, "ceiling")
        times.append(seconds(lambda: snakemake(folder, "all")))
        times.append(seconds(lambda: snakemake(folder, "all")))
        return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=int, nargs="+", help="how many cells a study has; a multiple of 100")
    print(" | ".join(COLUMNS))
    for cells in parser.parse_args().cells:
        first, *times = row(cells)
        print(" | ".join([f"{first:.0f}", *(f"{time:.1f} s" for time in times)]), flush=True)


if __name__ == "__main__":
    main()
