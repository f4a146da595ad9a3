"""Folders of results as somebody might hand them over: made by the null backend's pace, whole or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from claimbench.analysis import aggregate, table_file
from claimbench.judging.judge import judge
from claimbench.schema import ceilings, sealed, verdicts
from claimbench.schema.json_file import write_json
from claimbench.schema.plan import Plan

STUDY = """
experiments:
  pace:
    question: Is a slower pace slower?
    cells:
      fast: {options: {step_ms: %(fast)s}}
      slow: {options: {step_ms: 9}}
      lost: {options: {fails: kill}}
claims:
  - id: P1
    kind: ratio
    statement: Fast is faster
    checks: [{kind: ratio, metric: decode_tok_s, of: pace/fast, to: pace/slow, expect: above}]
"""


def results_in(lab: Any, folder: Path, fast: float = 3, key: str = "cpu0", **changed: Any) -> Plan:
    """Everything that a finished run leaves in `folder`/results."""
    machine = {"key": key, "cpu": {"model": f"CPU {key}", "cores": 2}, "gpus": [], "memory_gb": 16}
    plan: Plan = lab.plan(changed.pop("study", STUDY % {"fast": fast}), machine=machine, **changed)
    limits = ceilings.Ceilings(device="cpu", machine=key, read_bytes_per_s=40e9)
    lab.write(plan)
    table = aggregate.aggregate(plan, limits)
    results = Path("results")
    write_json(results / "plan" / f"{plan.seal[:12]}.json", plan.model_dump(mode="json"))
    ceilings.write(results / "ceilings" / f"{key}-cpu.json", limits)
    made_of = {"plan": plan.seal, "ceilings": sealed.seal(limits)}
    table_file.write(table, results / "table.parquet", results / "table.csv", made_of)
    made_of = {"plan": plan.seal, "table": table_file.seal(table)}
    verdicts.write(results / "verdicts.json", judge(plan, table).model_copy(update={"made_of": made_of}))
    folder.mkdir(parents=True, exist_ok=True)
    results.rename(folder / "results")
    return plan
