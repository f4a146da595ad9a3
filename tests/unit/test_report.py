"""The report, rendered from invented but consistent results through the real plan, table and verdicts."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from claimbench import aggregate, judge, report, result
from claimbench.params import load_params, parse_yaml, validate
from claimbench.plan import Plan, PlannedCell, make_plan
from claimbench.result import Fidelity, Result, Sample
from claimbench.study import Study

PARAMS = """
device: cpu
studies: [rates, latency]
checkpoints:
  small: {source: "random://smollm2-135m?seed=0", architecture: smollm2-135m}
measure: {blocks: 3, samples: 3}
"""

RATES = """
title: Tokens per second of a small model
document: {title: A document | with a bar, url: "https://example.org/a", setting: "one A10G, batch 1"}
prompts: {story: Once upon a time}
defaults: {checkpoint: small, prompt: story, new_tokens: 32}
planned: {backends: [tgi]}
experiments:
  methods:
    question: Which method is the fastest?
    show: rates
    cells:
      plain: {title: No optimizations, published: {tok_s: 25.97}}
      no_cache: {title: Without a cache, optimizations: [no_cache], published: {tok_s: 4.84}}
      int8: {title: 8-bit weights, optimizations: [bitsandbytes_int8]}
      flash: {title: Flash attention, optimizations: [flash_attention_2], published: {tok_s: 20.73}}
      tgi: {title: One GPU TGI, backend: tgi, published: {tok_s: 29.95}}
  grid:
    question: How does time per token fall with batch?
    show: grid
    sweep: {batch: [1, 8, 32, 128]}
    cells:
      plain:
        title: plain
        published: {ms_per_token: {1: 230.38, 8: 31.78, 32: 10.89, 128: oom}}
      int8: {title: int8, optimizations: [bitsandbytes_int8]}
claims:
  - id: A1
    kind: ratio
    statement: A cache makes <decoding> faster
    published: about 5x
    checks: [{kind: ratio, metric: tok_s, of: methods/plain, to: methods/no_cache, expect: above, published: 5.4}]
  - id: A2
    kind: ratio
    statement: 8-bit weights decode faster
    checks: [{kind: ratio, metric: decode_tok_s, of: methods/int8, to: methods/plain, expect: above}]
  - id: A3
    kind: ratio
    statement: TGI is faster
    note: A note.
    checks: [{kind: ratio, metric: tok_s, of: methods/tgi, to: methods/plain, expect: above, published: 1.15}]
  - id: A4
    kind: shape
    statement: Time per token falls as 1/batch
    checks: [{kind: shape, metric: ms_per_token, of: grid/plain, over: batch, expect: {about: -1, within: 0.5}}]
"""

LATENCY = """
title: Latency against length
document: {title: An issue}
prompts: {story: Once upon a time}
defaults: {checkpoint: small, prompt: story, new_tokens: 8}
experiments:
  lengths:
    question: Does a step take longer behind a longer prompt?
    show: curves
    sweep: {batch: [1, 8], prompt_tokens: [64, 256, 1024]}
    cells:
      plain: {title: plain}
      no_cache: {title: no cache, optimizations: [no_cache]}
  gain:
    question: Does SDPA pay?
    show: bars
    cells:
      plain: {title: eager attention, published: {decode_tok_s: 20}}
      sdpa: {title: SDPA, optimizations: [sdpa], published: {decode_tok_s: 30}}
      lookup: {title: prompt lookup, optimizations: [prompt_lookup]}
claims: []
"""

MACHINE: dict[str, Any] = {
    "key": "0123456789ab",
    "cpu": {"model": "Example CPU", "cores": 2, "instruction_sets": ["avx2"]},
    "memory_gb": 16,
    "gpus": [],
    "system": "Linux 6.1",
}
CEILINGS = {"read_bytes_per_s": 12e9, "matmul_flops_per_s": {"float32": 2e11, "bfloat16": 3e11}, "threads": 2}
SLOWER = {"no_cache": 5.0, "bitsandbytes_int8": 1.4, "sdpa": 0.9, "prompt_lookup": 0.7}

Invent = Callable[[PlannedCell, int], Result]


class Inputs(NamedTuple):
    plan: Plan
    table: pd.DataFrame
    verdicts: dict[str, Any]


def invent(planned: PlannedCell, block: int) -> Result:
    """A block as a machine might have measured it: 60 ms a step, dearer by technique and batch, with noise."""
    cell = planned.cell
    common: dict[str, Any] = {
        "cell": cell,
        "block": block,
        "key": planned.key,
        "started_at": "2024-01-01T00:00:00Z",
        "duration_s": 9.0,
        "machine": MACHINE,
    }
    workload = cell.workload
    if cell.uses("flash_attention_2"):
        return Result(**common, outcome="unavailable", reason="flash-attn needs a CUDA device")
    if workload.batch > 32:
        return Result(**common, outcome="oom", reason=f"batch {workload.batch} <does> not fit")
    noise = random.Random(f"{cell.id}{block}")  # noqa: S311 - an invented measurement
    prompt = workload.prompt_tokens or 12
    lossy = cell.uses("bitsandbytes_int8")
    step_ms = 60.0 * (1 + 0.01 * workload.batch) * (1 + prompt / 2000) * noise.uniform(0.99, 1.01)
    for use in cell.optimizations:
        step_ms *= SLOWER.get(use.name, 1.0)
    samples = []
    for _ in range(cell.protocol.samples):
        steps = [int(1e6 * prompt * workload.batch * noise.uniform(0.99, 1.01)) + 40_000_000]
        steps += [int(step_ms * 1e6 * noise.uniform(0.99, 1.01)) for _ in range(workload.new_tokens - 1)]
        samples.append(
            Sample(
                wall_ns=sum(steps),
                step_ns=tuple(steps),
                step_tokens=(1,) * len(steps),
                tokens_sha256="b" * 64 if lossy else "a" * 64,
            )
        )
    tokens = tuple(range(workload.new_tokens))
    weights = 135_000_000 if lossy else 538_000_000
    return Result(
        **common,
        outcome="ok",
        flags=("a neighbour used the CPU",) if lossy and block == 0 else (),
        load_ns=2_000_000_000,
        first_call_ns=3_000_000_000,
        samples=tuple(samples),
        prompt_tokens=prompt,
        tokens=(*tokens[:-2], 0, 0) if lossy else tokens,
        memory={
            "weights": weights,
            "step_weights": weights,
            "kv_cache": 46_080 * workload.batch * (prompt + workload.new_tokens),
            "rss_before_load": 400_000_000,
            "rss_after_load": 400_000_000 + weights,
            "rss_peak": 600_000_000 + weights + 46_080 * workload.batch * (prompt + workload.new_tokens),
        },
        fidelity=Fidelity(positions=32, kl_mean_nats=0.0213, kl_max_nats=0.4, top1_agreement=0.97) if lossy else None,
    )


def fail(planned: PlannedCell, block: int) -> Result:
    return Result(
        cell=planned.cell,
        block=block,
        key=planned.key,
        outcome="unavailable",
        reason="asked to be unavailable",
        started_at="2024-01-01T00:00:00Z",
        duration_s=0.1,
    )


def build(folder: Path, studies: dict[str, str], invented: Invent, params: str = PARAMS) -> Inputs:
    """Results under `folder`/results, and what the pipeline's own stages make of them."""
    parsed = {name: validate(Study, parse_yaml(text, name), name) for name, text in studies.items()}
    plan = make_plan(load_params(parse_yaml(params, "params.yaml")), parsed, MACHINE, "cpu")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for planned in plan.cells.values():
            for block, path in enumerate(planned.paths()):
                result.write(Path(path), invented(planned, block))
        table = aggregate.aggregate(plan, CEILINGS)
    finally:
        os.chdir(before)
    return Inputs(plan, table, judge.judge(plan, table).model_dump(mode="json"))


def render(inputs: Inputs, folder: Path) -> str:
    report.render(inputs.plan, inputs.table, inputs.verdicts, CEILINGS, folder / "reports")
    return (folder / "reports" / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Inputs, str]:
    folder = tmp_path_factory.mktemp("project")
    inputs = build(folder, {"rates": RATES, "latency": LATENCY}, invent)
    return folder, inputs, render(inputs, folder)
