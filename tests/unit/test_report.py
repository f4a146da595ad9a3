"""The report, rendered from invented but consistent results through the real plan, table and verdicts."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import yaml

from claimbench.__main__ import main
from claimbench.analysis import aggregate, table_file
from claimbench.judging import judge
from claimbench.planning.plan import make_plan
from claimbench.reporting import claims, report
from claimbench.reporting.origin import origin_of
from claimbench.reporting.report_data import ReportData
from claimbench.schema import ceilings, result, sealed, verdicts
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.outcome import Outcome
from claimbench.schema.params import load_params
from claimbench.schema.plan import Plan, PlannedCell
from claimbench.schema.result import Fidelity, Result, Sample
from claimbench.schema.study import Study
from claimbench.schema.validation import parse_yaml, validate
from claimbench.schema.verdicts import Verdicts

PARAMS = """
device: cpu
studies: [rates, latency]
checkpoints:
  small: {source: "random://smollm2-135m?seed=0", architecture: smollm2-135m}
measure: {blocks: 3, samples: 3}
"""

RATES = """
title: Tokens per second of a small model
document: {title: A document | with a bar, url: "https://example.org/a", measured: "one A10G, batch 1"}
prompts: {story: Once upon a time}
defaults: {checkpoint: small, prompt: story, new_tokens: 32}
planned: {backends: [some_server]}
experiments:
  methods:
    question: Which method is the fastest?
    show: rates
    cells:
      plain: {title: No optimizations, published: {tok_s: 25.97}}
      no_cache: {title: Without a cache, optimizations: [no_cache], published: {tok_s: 4.84}}
      int8: {title: 8-bit weights, optimizations: [bitsandbytes_int8]}
      flash: {title: Flash attention, optimizations: [flash_attention_2], published: {tok_s: 20.73}}
      tgi: {title: One GPU TGI, backend: some_server, published: {tok_s: 29.95}}
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
CEILINGS = Ceilings(
    device="cpu",
    machine=MACHINE["key"],
    read_bytes_per_s=16e9,
    matmul_flops_per_s={"float32": 8e12, "bfloat16": 9e12},
    threads=2,
)
SLOWER = {"no_cache": 5.0, "bitsandbytes_int8": 1.4, "sdpa": 0.9, "prompt_lookup": 0.7}

Invent = Callable[[PlannedCell, int], Result]


class Inputs(NamedTuple):
    plan: Plan
    table: pd.DataFrame
    verdicts: Verdicts


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
    return Inputs(plan, table, judge.judge(plan, table))


def render(inputs: Inputs, folder: Path) -> str:
    origin = origin_of(inputs.plan, inputs.plan.seal[:12], None)
    report.render(inputs.plan, inputs.table, inputs.verdicts, CEILINGS, folder / "reports", origin=origin)
    return (folder / "reports" / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Inputs, str]:
    folder = tmp_path_factory.mktemp("project")
    inputs = build(folder, {"rates": RATES, "latency": LATENCY}, invent)
    return folder, inputs, render(inputs, folder)


def test_the_same_inputs_give_the_same_bytes(project: tuple[Path, Inputs, str], tmp_path: Path) -> None:
    folder, inputs, _ = project
    render(inputs, tmp_path)
    first, second = folder / "reports", tmp_path / "reports"
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    assert len([name for name in names if name.endswith(".svg")]) >= 8
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_it_renders_from_what_is_written_without_torch(project: tuple[Path, Inputs, str], tmp_path: Path) -> None:
    _, inputs, text = project
    arguments = [*stage_on(tmp_path, inputs, "report"), "--output", str(tmp_path / "reports")]
    script = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from claimbench.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    assert (tmp_path / "reports" / "report.md").read_text(encoding="utf-8") == text


def stage_on(folder: Path, inputs: Inputs, stage: str) -> list[str]:
    """The command line of `stage`, on `inputs` as they are written."""
    plan = f"{inputs.plan.seal[:12]}.json"
    (folder / plan).write_text(inputs.plan.model_dump_json(), encoding="utf-8")
    ceilings.write(folder / "ceilings.json", CEILINGS)
    made_of = {"plan": inputs.plan.seal, "ceilings": sealed.seal(CEILINGS)}
    table_file.write(inputs.table, folder / "table.parquet", folder / "table.csv", made_of)
    made_of["table"] = table_file.seal(inputs.table)
    verdicts.write(folder / "verdicts.json", inputs.verdicts.model_copy(update={"made_of": made_of}))
    flags = {"plan": plan, "table": "table.parquet"}
    if stage == "report":
        flags |= {"verdicts": "verdicts.json", "ceilings": "ceilings.json"}
    return [stage, *(text for flag, name in flags.items() for text in (f"--{flag}", str(folder / name)))]


@pytest.mark.parametrize("stage", ["judge", "report"])
def test_an_older_table_is_refused_in_a_sentence(
    project: tuple[Path, Inputs, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    older = project[1]._replace(table=project[1].table.drop(columns=["tpot_ms", "load_itl_ms"]))
    assert main([*stage_on(tmp_path, older, stage), "--output", str(tmp_path / "out")]) == 4
    assert capsys.readouterr().err == (
        f"claimbench: {tmp_path / 'table.parquet'}: the table is of another version: it lacks tpot_ms, load_itl_ms. "
        "Delete it and run again: the stage `aggregate` makes it anew\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"seal": "", "verdicts": {"schema_version": 2}}', "the stage `judge` makes them anew"),
        ('{"schema_version": 1}', "not verdicts of this version of Claimbench"),
        ("[]", "not verdicts of this version of Claimbench"),
        ("{", "not verdicts of this version of Claimbench"),
    ],
)
def test_verdicts_of_another_version_are_refused_in_a_sentence(
    project: tuple[Path, Inputs, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    asked = stage_on(tmp_path, project[1], "report")
    (tmp_path / "verdicts.json").write_text(content, encoding="utf-8")
    assert main([*asked, "--output", str(tmp_path / "out")]) == 4
    error = capsys.readouterr().err
    assert error.endswith(f": {tmp_path / 'verdicts.json'}\n")
    assert said in error
    assert error.count("\n") == 1


def test_the_stages_judge_and_report_give_what_their_functions_give(
    project: tuple[Path, Inputs, str], tmp_path: Path
) -> None:
    _, inputs, text = project
    assert main([*stage_on(tmp_path, inputs, "judge"), "--output", str(tmp_path / "again.json")]) == 0
    again = verdicts.read(tmp_path / "again.json")
    assert again.model_copy(update={"made_of": {}}) == inputs.verdicts
    assert set(again.made_of) == {"plan", "ceilings", "table", "table_file"}
    assert main([*stage_on(tmp_path, inputs, "report"), "--output", str(tmp_path / "reports")]) == 0
    assert (tmp_path / "reports" / "report.md").read_text(encoding="utf-8") == text


def test_it_opens_with_verdicts_and_what_to_switch_on(project: tuple[Path, Inputs, str]) -> None:
    text = project[2]
    assert "**2 supported, 1 refuted, 0 undecided, 1 not runnable here.**" in text.split("\n## ")[0]
    heads = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert heads == [
        "What to switch on here",
        "The machine",
        "The studies",
        "The claims",
        "What was unavailable, and why",
        "How to reproduce this exactly",
    ]


def test_advice_has_its_interval_and_its_cost(project: tuple[Path, Inputs, str]) -> None:
    latency, _, memory = re.split(r"^### For ", project[2].split("## The machine")[0], flags=re.MULTILINE)[1:]
    (row,) = [line for line in latency.splitlines() if line.startswith("| `prompt_lookup`")]
    assert re.search(r"1\.\d+x \[1\.\d+x, 1\.\d+x\] \(decode tokens per second\)", row)
    assert "same tokens" in row
    (row,) = [line for line in memory.splitlines() if line.startswith("| `bitsandbytes_int8`") and "batch 1," in line]
    assert "x the decode speed; other tokens: 94 % agree, KL 0.0213 nats" in row


def rows_of(text: str, question: str) -> list[list[str]]:
    """The cells of the first table behind the heading `question`."""
    section = text.split(f"#### {question}")[1].split("\n#### ")[0]
    lines = next(part for part in section.split("\n\n") if part.startswith("|")).splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert {len(row) for row in cells} == {len(cells[0])}
    return [cells[0], *cells[2:]]


def test_rates_stand_beside_their_ceiling_and_the_published_figure(project: tuple[Path, Inputs, str]) -> None:
    head, plain, _, int8, flash, tgi = rows_of(project[2], "Which method is the fastest?")
    assert head[:5] == [
        "",
        "tok/s, end to end [95 % interval]",
        "ceiling here",
        "% of it",
        "published, tok/s, end to end",
    ]
    assert plain[0] == "No optimizations"
    assert re.fullmatch(r"1\d\.\d+ \[1\d\.\d+, 1\d\.\d+\]", plain[1])
    assert plain[4] == "25.97"
    measured, ceiling, share = float(plain[1].split()[0]), float(plain[2]), float(plain[3].removesuffix(" %"))
    assert share == pytest.approx(100 * measured / ceiling, abs=1)
    assert int8[-1] == "differ; 94 % agree, up to the first difference at 30; KL 0.0213 nats; top-1 97 %"
    assert int8[0].endswith("<sup>1</sup>")
    assert flash[1] == "**unavailable** <sup>2</sup>"
    assert tgi[1] == "**unavailable** <sup>3</sup>"
    assert tgi[4] == "29.95"
    notes = ["<sup>1</sup> a neighbour used the CPU", "<sup>2</sup> flash-attn needs a CUDA device"]
    assert all(note in project[2] for note in [*notes, "<sup>3</sup> this version has no backend 'some_server' yet"])


def test_a_grid_has_a_column_a_batch_and_oom_cells(project: tuple[Path, Inputs, str]) -> None:
    head, plain, published, int8 = rows_of(project[2], "How does time per token fall with batch?")
    assert head == ["batch", "1", "8", "32", "128"]
    assert published == ["*plain, published*", "*230.38*", "*31.78*", "*10.89*", "*oom*"]
    assert plain[4] == int8[4] == "**oom** <sup>1</sup>"
    assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]<br>\d+ % of [\d.]+", plain[1])
    assert "batch 128 &lt;does&gt; not fit" in project[2]
    assert "<does>" not in project[2]


def test_curves_have_a_table_and_a_figure_for_each_group(project: tuple[Path, Inputs, str]) -> None:
    folder, _, text = project
    section = text.split("#### Does a step take longer behind a longer prompt?")[1].split("\n#### ")[0]
    titles = re.findall(r"^\*\*(.*)\*\*$", section, flags=re.MULTILINE)
    assert titles == [
        f"{what}, by prompt tokens; batch {batch}" for what in ("decode step, ms", "prefill, ms") for batch in (1, 8)
    ]
    names = {path.name for path in (folder / "reports" / "figures").iterdir()}
    for metric in ("step_ms", "prefill_ms"):
        for batch in (1, 8):
            assert f"latency--lengths--{metric}--batch-{batch}.svg" in names


def test_bars_compare_with_the_first_cell_and_the_published_ratio(project: tuple[Path, Inputs, str]) -> None:
    head, eager, sdpa, lookup = rows_of(project[2], "Does SDPA pay?")
    ours, theirs = head.index("times better than the first row [95 % interval]"), head.index("published, times better")
    assert eager[ours] == "1 (the base)"
    assert re.fullmatch(r"1\.[01]\d*x \[[\d.]+x, [\d.]+x\]", sdpa[ours])
    assert sdpa[theirs] == "1.50x"
    assert lookup[theirs] == "–"


def test_every_claim_has_a_verdict_a_sentence_and_links(project: tuple[Path, Inputs, str]) -> None:
    folder, inputs, text = project
    claims = text.split("## The claims")[1].split("## What was unavailable")[0]
    for claim in inputs.verdicts.claims:
        (line,) = [line for line in claims.splitlines() if line.startswith(f"| [{claim.id}](")]
        assert f"**{claim.verdict}**" in line
        part = claims.split(f'<a id="claim-rates-{claim.id.lower()}">')[1].split("<a id=")[0]
        for check in claim.checks:
            assert check.sentence.split("<")[0] in part
            for path in check.results:
                assert f"](../{path})" in part
    for link in re.findall(r"\]\((\.\./[^)]*)\)", text):
        assert (folder / "reports" / link).is_file(), link
    assert "A cache makes &lt;decoding&gt; faster" in claims


def test_every_figure_exists_is_linked_and_described(project: tuple[Path, Inputs, str]) -> None:
    folder, _, text = project
    images = re.findall(r"!\[([^\]]*)\]\((figures/[^)]*)\)", text)
    assert all(alt for alt, _ in images)
    first = re.findall(r'<img [^>]*src="(figures/[^"]*)" alt="([^"]*)"', text)
    assert len(first) == 1, "the study with claims about ratios has one"
    assert all(
        claim in first[0][1] for claim in ("A1 A cache makes &lt;decoding&gt; faster: supported", "A3 TGI", "A4 Time")
    )
    images += [(alt, path) for path, alt in first]
    there = {f"figures/{path.name}" for path in (folder / "reports" / "figures").iterdir()}
    assert there == {path for _, path in images}
    for path in there:
        root = ElementTree.parse(folder / "reports" / path).getroot()  # noqa: S314 - written by this very test
        space = "{http://www.w3.org/2000/svg}"
        assert root.findtext(f"{space}title")
        assert root.findtext(f"{space}desc")


def test_links_inside_the_report_lead_somewhere(project: tuple[Path, Inputs, str]) -> None:
    text = project[2]
    targets = re.findall(r"\]\(#([^)]*)\)", text)
    assert targets
    assert all(f'<a id="{target}">' in text for target in targets)


def test_what_was_unavailable_is_listed_with_its_reason(project: tuple[Path, Inputs, str]) -> None:
    section = project[2].split("## What was unavailable, and why")[1].split("\n## ")[0]
    assert "| unavailable | flash-attn needs a CUDA device | rates: methods/Flash attention |" in section
    assert (
        "| oom | batch 128 &lt;does&gt; not fit | rates: grid/plain · batch 128<br>rates: grid/int8 · batch 128 |"
        in section
    )
    assert "| rates: A3 |" in section


def test_parameters_in_the_report_are_parameters_again(project: tuple[Path, Inputs, str]) -> None:
    _, inputs, text = project
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert load_params(parse_yaml(block, "report.md")) == inputs.plan.params
    assert inputs.plan.machine["key"] in text


def metrics_in(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "reports" / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics) == {"machine", MACHINE["key"]}
    found: dict[str, Any] = metrics[MACHINE["key"]]
    return found


def leaves(value: Any) -> list[Any]:
    return [leaf for each in value.values() for leaf in leaves(each)] if isinstance(value, dict) else [value]


def test_metrics_are_few_and_stand_under_the_machine(project: tuple[Path, Inputs, str]) -> None:
    folder, inputs, _ = project
    metrics = metrics_in(folder)
    assert metrics["verdicts"] == {"supported": 2, "refuted": 1, "bounded": 0, "undecided": 0, "not_runnable_here": 1}
    assert metrics["read_gb_s"] == 16
    exact = inputs.verdicts.cells[str(inputs.plan.row("rates", "methods/plain").cell)].metrics["tok_s"].value
    assert metrics["rates"]["methods"]["tok_s"] == float(f"{exact:.4g}")
    assert metrics["latency"]["gain"]["best_times"] == pytest.approx(1 / 0.7, rel=0.05)
    assert len(leaves(metrics)) <= 20


def test_metrics_of_a_large_study_stay_few_and_say_what_they_leave_out(tmp_path: Path) -> None:
    study = parse_yaml(LATENCY, "latency")
    study["experiments"] = {f"gain_{n}": study["experiments"]["gain"] for n in range(16)}
    inputs = build(
        tmp_path, {"latency": yaml.safe_dump(study)}, invent, PARAMS.replace("[rates, latency]", "[latency]")
    )
    render(inputs, tmp_path)
    metrics = metrics_in(tmp_path)
    assert metrics["experiments_left_out"] == 2
    assert list(metrics["latency"]["gain_13"]) == ["decode_tok_s"]
    assert len(leaves(metrics)) <= 22


def test_plots_are_tidy(project: tuple[Path, Inputs, str]) -> None:
    plots = project[0] / "reports" / "plots"
    decode = list(csv.DictReader((plots / "decode.csv").read_text(encoding="utf-8").splitlines()))
    assert {"rates: methods/plain", "latency: gain/sdpa"} <= {row["cell"] for row in decode}
    assert all(float(row["low"]) <= float(row["tok_s"]) <= float(row["high"]) for row in decode)
    curves = list(csv.DictReader((plots / "curves.csv").read_text(encoding="utf-8").splitlines()))
    panel = [row for row in curves if row["panel"] == "latency: lengths, step_ms by prompt_tokens"]
    assert {row["series"] for row in panel} == {f"{name} · batch {b}" for name in ("plain", "no cache") for b in (1, 8)}
    assert {row["x"] for row in panel} == {"64", "256", "1024"}


def test_it_renders_where_nothing_could_run(tmp_path: Path) -> None:
    inputs = build(tmp_path, {"rates": RATES, "latency": LATENCY}, fail)
    text = render(inputs, tmp_path)
    assert "**0 supported, 0 refuted, 0 undecided, 4 not runnable here.**" in text
    assert text.count("Nothing that was measured here gives") == 3
    assert "![" not in text
    assert list((tmp_path / "reports" / "figures").iterdir()) == []
    assert "asked to be unavailable" in text
    assert set(metrics_in(tmp_path)) == {"verdicts", "read_gb_s"}


def test_it_renders_with_no_study(project: tuple[Path, Inputs, str], tmp_path: Path) -> None:
    _, inputs, _ = project
    plan = inputs.plan.model_copy(update={"cells": {}, "studies": {}})
    empty = inputs.verdicts.model_copy(update={"claims": (), "cells": {}, "recommendations": ()})
    text = render(Inputs(plan, inputs.table.iloc[:0], empty), tmp_path)
    assert "No study was planned." in text
    assert "The studies make no claims." in text


def test_one_cell_alone_and_thirty_cells(tmp_path: Path) -> None:
    title = "a very long title that names every setting of this cell twice, and then once more for good measure $x$"
    many = "\n".join(f"      c{i}: {{title: '{i} {title}', new_tokens: {i + 2}}}" for i in range(30))
    study = f"""
title: Sizes
document: {{title: none}}
prompts: {{story: Once upon a time}}
defaults: {{checkpoint: small, prompt: story, new_tokens: 8}}
experiments:
  one:
    question: One?
    cells: {{only: {{title: only}}}}
  many:
    question: Many?
    show: rates
    cells:
{many}
"""
    inputs = build(tmp_path, {"sizes": study}, invent, PARAMS.replace("[rates, latency]", "[sizes]"))
    text = render(inputs, tmp_path)
    assert len(rows_of(text, "One?")) == 2
    assert len(rows_of(text, "Many?")) == 31
    svg = (tmp_path / "reports" / "figures" / "sizes--many.svg").read_text(encoding="utf-8")
    assert svg.count("a very long title") >= 30


def test_an_earlier_figure_does_not_linger(project: tuple[Path, Inputs, str], tmp_path: Path) -> None:
    stale = tmp_path / "reports" / "figures" / "stale.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("<svg/>", encoding="utf-8")
    render(project[1], tmp_path)
    assert not stale.exists()


def test_departures_from_the_document_are_said_once(tmp_path: Path) -> None:
    params = PARAMS.replace("[rates, latency]", "[rates]") + "limits: {new_tokens: 8}\n"
    inputs = build(tmp_path, {"rates": RATES}, invent, params)
    deviation = inputs.plan.row("rates", "methods/plain").deviations[0].text
    section = render(inputs, tmp_path).split("#### Which method is the fastest?")[1].split("\n#### ")[0]
    assert section.count(deviation) == 1
    assert f"Not as the document has it: {deviation}" in section


def test_a_wrong_output_gives_no_number(tmp_path: Path) -> None:
    def invent_wrong(planned: PlannedCell, block: int) -> Result:
        good = invent(planned, block)
        if not planned.cell.uses("bitsandbytes_int8"):
            return good
        return fail(planned, block).model_copy(update={"outcome": Outcome.WRONG, "reason": "the logits hold NaN"})

    inputs = build(tmp_path, {"rates": RATES}, invent_wrong, PARAMS.replace("[rates, latency]", "[rates]"))
    text = render(inputs, tmp_path)
    int8 = rows_of(text, "Which method is the fastest?")[3]
    assert int8[1].startswith("**wrong**")
    assert "the logits hold NaN" in text
    svg = (tmp_path / "reports" / "figures" / "rates--methods.svg").read_text(encoding="utf-8")
    assert "wrong output" in svg
    assert metrics_in(tmp_path)["rates"]["methods"]["best_times"] == 1


def test_a_claims_reason_is_told_once():
    wide = "The interval reaches beyond the range that would decide."
    doubted = wide[:-1] + ". In doubt: one: the GPU throttled."
    assert not claims._adds(f"{wide} {doubted}", [wide, doubted])
    assert not claims._adds(f"{wide} Not judged: two ended oom.", [wide, "two ended oom"])
    assert claims._adds(f"{wide} Something else.", [wide])


def test_what_departs_from_the_document_stands_at_the_verdict_in_the_first_table(tmp_path: Path) -> None:
    params = PARAMS.replace("[rates, latency]", "[rates]") + "limits: {new_tokens: 8}\n"
    text = render(build(tmp_path, {"rates": RATES}, invent, params), tmp_path)
    above = text.partition("## What to switch on here")[0]
    first = next(line for line in above.splitlines() if line.startswith("| claim |"))
    claims = [line for line in above.split(first)[1].splitlines() if line.startswith("| [")]
    said = "Of every claim that was measured, this is not as the document has it: " in above
    assert said or "not as the document has it" in first
    assert "new tokens" in (above.partition(first)[0] if said else " ".join(claims))
    assert "Not as the document has it: " in text.split("## The claims")[1]


def test_what_departs_alike_for_every_claim_is_said_once_above_them(tmp_path: Path) -> None:
    inputs = build(tmp_path, {"rates": RATES}, invent, PARAMS.replace("[rates, latency]", "[rates]"))
    data = ReportData(inputs.plan, inputs.table, inputs.verdicts, CEILINGS)
    told = claims.claims_of(data)[0].claims
    for first, second, rounds, alike, rest in (
        (("model",), ("model",), 3, ("model",), ((), ())),
        (("model",), (), 3, (), (("model",), ())),
        (("model",), (), 0, ("model",), ((), ())),
        (("model",), ("device", "model"), 3, ("model",), ((), ("device",))),
        (("device",), ("model",), 3, (), (("device",), ("model",))),
        ((), (), 3, (), ((), ())),
    ):
        pair = (told[0]._replace(differs=first, rounds=3), told[1]._replace(differs=second, rounds=rounds))
        table = claims._table(data, "rates", "Rates", [claims.StudyClaims("rates", "Rates", pair)])
        assert (table.alike, tuple(one.differs for one in table.claims)) == (alike, rest)
        assert table.departs == any(rest)


def test_a_row_of_which_nothing_was_compiled_says_so_in_its_title(tmp_path: Path) -> None:
    def uncompiled(planned: PlannedCell, block: int) -> Result:
        made = invent(planned, block)
        proof = {"optimizations": {"compile_wrapped": {"compiled_regions": 0}, "fused_softmax": {"fusions": [0, 0]}}}
        return made.model_copy(update={"proof": proof}) if planned.cell.uses("bitsandbytes_int8") else made

    inputs = build(tmp_path, {"rates": RATES}, uncompiled, PARAMS.replace("[rates, latency]", "[rates]"))
    rows = rows_of(render(inputs, tmp_path), "Which method is the fastest?")
    assert [row[0] for row in rows if "nothing was" in row[0]] == [rows[3][0]]
    assert "(nothing was compiled and nothing was fused)" in rows[3][0]


def test_a_technique_that_is_not_about_compiling_is_not_told_that_nothing_was(tmp_path: Path) -> None:
    def in_c(planned: PlannedCell, block: int) -> Result:
        proof = {"optimizations": {"weight_int8": {"compiled_regions": 0}, "cpp_block": {"shared": True}}}
        return invent(planned, block).model_copy(update={"proof": proof})

    inputs = build(tmp_path, {"rates": RATES}, in_c, PARAMS.replace("[rates, latency]", "[rates]"))
    assert "nothing was compiled" not in render(inputs, tmp_path)
