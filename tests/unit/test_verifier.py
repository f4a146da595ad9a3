"""What was judged follows from the raw results, by a program that shares no code with the one that judged it."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.test_deciding import Machine

from claimbench import optimizations
from claimbench.analysis import aggregate, comparing, validity
from claimbench.cost_model import cost, weight_bytes
from claimbench.deciding import decide
from claimbench.judging.judge import judge
from claimbench.measuring.round_process import RoundRequest
from claimbench.schema import round as round_file
from claimbench.schema import verdicts
from claimbench.schema.card import Card
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.cell import Checkpoint, OptimizationUse
from claimbench.schema.frontier import Frontier
from claimbench.schema.json_file import write_json
from claimbench.schema.plan import Plan, PlannedCell
from claimbench.schema.result import Result
from claimbench.schema.round import Arm, Round, Turns
from claimbench.schema.sealed import seal_of

ROOT = Path(__file__).parent.parent.parent
VERIFIER = ROOT / "verifier" / "verify.py"
REPORTS = ROOT / "reports"
RAW = sorted(path.parent for path in REPORTS.rglob("verdicts.json"))
WITHOUT_RAW_RESULTS = {
    "bigcode-amd-epyc-2-cores/report.md": "measured before raw results were kept beside reports",
    "serving-amd-epyc-2-cores/report.md": "measured before raw results were kept beside reports",
}
AGREES = "claims follow from their raw results"


def verified(*arguments: Path) -> tuple[int, str]:
    """The verifier's exit status and what it prints."""
    sys.path.insert(0, str(VERIFIER.parent))
    try:
        claims, wrong = importlib.import_module("verify").verify(*arguments)
    finally:
        sys.path.remove(str(VERIFIER.parent))
    return bool(wrong), "\n".join(wrong) or f"{claims} {AGREES}"


def report_of(run: Path) -> list[Path]:
    return [path for path in (run.parent / "report.md",) if path.exists()]


def test_it_imports_nothing_of_the_package() -> None:
    for path in VERIFIER.parent.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                own = name in {other.stem for other in VERIFIER.parent.glob("*.py")}
                top = name.partition(".")[0]
                assert own or top in ("numpy", "scipy") or top in sys.stdlib_module_names, f"{path}: {name}"


@pytest.mark.parametrize("run", RAW, ids=lambda run: str(run.relative_to(REPORTS)))
def test_every_committed_report_follows_from_its_raw_results(run: Path) -> None:
    claims = json.loads((run / "verdicts.json").read_text(encoding="utf-8"))["verdicts"]["claims"]
    assert verified(run, *report_of(run)) == (0, f"{len(claims)} {AGREES}")


def test_it_runs_as_a_program_and_says_by_its_exit_status_what_it_found(run: Path) -> None:
    def program() -> tuple[int, str]:
        done = subprocess.run([sys.executable, str(VERIFIER), str(run)], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert program() == (0, f"16 {AGREES}\n")
    first_round(run).unlink()
    status, said = program()
    assert status == 1
    assert "cannot be read" in said


def test_a_report_without_raw_results_is_known_by_name() -> None:
    with_raw = {path for run in RAW for path in report_of(run)}
    lacking = {str(path.relative_to(REPORTS)) for path in REPORTS.rglob("report.md") if path not in with_raw}
    assert lacking == set(WITHOUT_RAW_RESULTS)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A committed run of the default study that may be edited."""
    folder = tmp_path / "run"
    shutil.copytree(REPORTS / "quickstart-amd-epyc-2-cores" / "results", folder)
    return folder


def edited(path: Path, kind: str, edit: Callable[[Any], None], reseals: bool = True) -> str:
    """Edit what a sealed file holds; its new seal."""
    envelope = json.loads(path.read_text(encoding="utf-8"))
    edit(envelope[kind])
    envelope["seal"] = seal_of(envelope[kind]) if reseals else envelope["seal"]
    path.write_text(json.dumps(envelope), encoding="utf-8")
    return str(envelope["seal"])


def first_round(run: Path) -> Path:
    return min((run / "rounds").glob("*.json"))


def faster(record: Any) -> None:
    """Every generation of the first arm in half its time."""
    for sample in record["arms"][0]["result"]["samples"]:
        sample["step_ns"] = [step // 2 for step in sample["step_ns"]]


@pytest.mark.parametrize("reseals", [False, True])
@pytest.mark.parametrize(
    ("key", "value"), [("verdict", "refuted"), ("estimate", 7.5), ("low", 0.5), ("high", 99.0), ("sentence", None)]
)
def test_an_edited_check_is_found(run: Path, key: str, value: object, reseals: bool) -> None:
    def edit(found: Any) -> None:
        check = found["claims"][0]["checks"][0]
        check[key] = re.sub(r"is [\d.]+ times", "is 9.87 times", check["sentence"]) if key == "sentence" else value

    edited(run / "verdicts.json", "verdicts", edit, reseals)
    status, said = verified(run)
    assert status == 1
    assert ("seal does not match" in said) != reseals
    assert "quickstart/Q1" in said


@pytest.mark.parametrize("reseals", [False, True])
def test_an_edited_claim_a_lost_one_and_an_edited_number_of_a_cell_are_found(run: Path, reseals: bool) -> None:
    def claim(found: Any) -> None:
        found["claims"][1]["verdict"] = "refuted"

    def lost(found: Any) -> None:
        del found["claims"][2]

    def cell(found: Any) -> None:
        next(iter(found["cells"].values()))["metrics"]["step_ms"]["low"] *= 0.99

    def gain(found: Any) -> None:
        found["recommendations"][0]["gain"] *= 1.01

    before = (run / "verdicts.json").read_bytes()
    for edit, name in ((claim, "quickstart/Q2"), (lost, "quickstart/Q3"), (cell, "step_ms"), (gain, "gains")):
        edited(run / "verdicts.json", "verdicts", edit, reseals)
        status, said = verified(run)
        assert status == 1
        assert name in said
        (run / "verdicts.json").write_bytes(before)


def test_an_edited_round_is_found_however_well_it_is_sealed(run: Path) -> None:
    edited(first_round(run), "round", faster, reseals=False)
    assert "seal does not match" in verified(run)[1]
    seal = edited(first_round(run), "round", faster)
    assert "is not as it decided" in verified(run)[1]
    (summary,) = (run / "decided").glob("*.json")

    def lists_it(found: Any) -> None:
        found["seals"][f"results/rounds/{first_round(run).name}"] = seal

    edited(summary, "rounds", lists_it)
    status, said = verified(run)
    assert status == 1
    assert "seal" not in said
    assert "estimate" in said


def test_a_missing_round_and_one_that_was_left_out_are_found(run: Path) -> None:
    gone = first_round(run)
    content = gone.read_bytes()
    gone.unlink()
    assert f"{gone.name} cannot be read" in verified(run)[1]
    gone.write_bytes(content)
    (summary,) = (run / "decided").glob("*.json")

    def leaves_it_out(found: Any) -> None:
        del found["seals"][f"results/rounds/{gone.name}"]

    edited(summary, "rounds", leaves_it_out)
    status, said = verified(run)
    assert status == 1
    assert f"{gone.name} was left out" in said


def test_an_edited_plan_is_found(run: Path) -> None:
    (plan,) = (run / "plan").glob("*.json")
    content = json.loads(plan.read_text(encoding="utf-8"))
    content["params"]["measure"]["tolerance"] = 0.5
    plan.write_text(json.dumps(content), encoding="utf-8")
    status, said = verified(run)
    assert status == 1
    assert "the plan is not the one that was judged" in said


def test_a_report_that_says_otherwise_is_found(tmp_path: Path) -> None:
    run = next(run for run in RAW if report_of(run))
    report = tmp_path / "report.md"
    said = report_of(run)[0].read_text(encoding="utf-8")
    for before, after in (
        ("**supported**", "**refuted**"),
        ("- *supported*: ", "- *refuted*: "),
        ("| supported |", "| refuted |"),
        (re.search(r" is [\d.,]+ times that of", said).group(), " is 987 times that of"),  # type: ignore[union-attr]
        (": inside the range", ": below the range"),
    ):
        assert before in said
        report.write_text(said.replace(before, after, 1), encoding="utf-8")
        assert verified(run, report)[0] == 1


STUDY = """
experiments:
  speed:
    question: How fast?
    cells:
      plain: {}
      close: {options: {step_ms: 9.7}}
      far: {options: {step_ms: 20}}
      other: {options: {step_ms: 10.05, token: 2}}
      broken: {options: {fails: error}}
      wrong: {options: {fails: nan}}
  other:
    question: What else?
    cells:
      one: {options: {step_ms: 30}}
      two: {options: {step_ms: 31, first_call_ms: 5}}
  rows:
    question: What do rows cost?
    sweep: {batch: [1, 2, 4]}
    cells:
      swept: {options: {row_ms: 2}}
      flat: {options: {fits_batch: 2}}
  cold:
    question: How does it start?
    hold: {page_cache: cold}
    cells:
      first: {}
      second: {options: {step_ms: 12}}
  elsewhere:
    question: How was it there?
    cells:
      longer: {options: {step_ms: 21}, new_tokens: 6, setting: {new_tokens: 600, model: large}}
      sampled: {options: {step_ms: 20.5}, setting: {samples: 50}}
claims:
"""
RATIO_METRICS = ("decode_tok_s", "step_ms", "prefill_ms", "weights_bytes", "step_weights_bytes", "compile_s_extra")
PAIRS = (("close", "plain"), ("far", "close"), ("other", "other"), ("broken", "plain"), ("wrong", "far"))
RANGES = ("above", "same", "below", {"about": 1.0, "within": 0.1}, {"at_least": 0.5, "at_most": 0.97})
GAINS = (("other/one", "other/two"), ("speed/close", "speed/plain"), ("speed/far", "speed/plain"))
MODELS = ("mistral-7b", "starcoder", "santacoder", "bloom-176b", "llama-2-7b", "tinyllama-1.1b")


def check(kind: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, **fields}


CHECKS = [
    *(
        check("ratio", metric=metric, of=f"speed/{of}", to=f"speed/{to}", expect=expect)
        for metric in RATIO_METRICS
        for of, to in PAIRS
        for expect in RANGES
    ),
    *(check("ratio", metric=one, of="cold/second", to="cold/first", expect="above") for one in ("load_s", "step_ms")),
    *(
        check("gain", metric="tok_s", of="speed/far", to="speed/plain", than_of=of, than_to=to, expect=expect)
        for of, to in GAINS
        for expect in ("below", "same")
    ),
    *(
        check("shape", metric=metric, of=of, to=to, over="batch", expect={"at_most": most})
        for metric in ("step_ms", "decode_tok_s", "load_s")
        for of, to in (("rows/swept", None), ("rows/swept", "rows/flat"), ("rows/flat", None))
        for most in (-0.5, 0.1, 0.5, 1.2)
    ),
    *(check("identity", of=f"speed/{of}", to="speed/plain") for of in ("close", "other", "plain", "broken")),
    *(
        check("value", metric=metric, of=of, expect={"at_least": least})
        for metric, least in (("tokens_per_step", 0.9), ("weights_bytes", 1000.0), ("step_ms", 9.9), ("load_s", 0.1))
        for of in ("speed/plain", "cold/first", "speed/broken")
    ),
    *(
        check("outcome", of=of, expect=expect, reason_contains=why)
        for of in ("speed/plain", "speed/broken", "speed/wrong", "rows/flat@batch=4")
        for expect in ("ok", "error", "wrong", "oom")
        for why in (None, "asked", "something else")
    ),
    *(
        check("absolute", metric="step_ms", of=of, hardware=hardware, published=published)
        for of in ("speed/plain", "speed/broken", "cold/first")
        for hardware in ("A100", "Example")
        for published in (10.0, 30.0)
    ),
    *(
        check("frontier", of=of, hardware=hardware, published=published)
        for of in ("rows/flat", "rows/swept")
        for hardware in ("A100", "Example")
        for published in (1, 2, 4, 8)
    ),
    *(
        check("computed", quantity=of, architecture=one, length=7, bandwidth=1e9, expect={"at_least": 1e10})
        for of in ("weight_bytes", "kv_bytes", "weight_read_ms")
        for one in MODELS
    ),
    *(
        check(
            "ratio", metric="step_ms", of=of, to="speed/plain", expect="above", there={"hardware": where, "expect": at}
        )
        for of in ("speed/close", "speed/far", "elsewhere/longer", "elsewhere/sampled")
        for where in ("A100", "Example")
        for at in ({"at_least": 1.5}, {"about": 2.0, "within": 0.05})
    ),
    *(
        check("absolute", metric="step_ms", of=of, hardware="Example", published=10.0, expect={"at_most": most})
        for of in ("speed/plain", "elsewhere/longer", "elsewhere/sampled")
        for most in (9.0, 12.0)
    ),
]
FITNESS: list[dict[str, Any]] = [
    {"device": "cuda"},
    {"device": "cpu"},
    {"needs": {"model": True}},
    {"needs": {"trained": True}},
    {"needs": {"draft": True}},
    {"needs": {"checkpoint_gb": 0.5}},
    {"needs": {"checkpoint_gb": 0.6}},
]


def claims_of(seed: int) -> list[dict[str, Any]]:
    """A claim for each of some checks of every kind, and some of several."""
    random = np.random.default_rng(seed)
    kinds = list(dict.fromkeys(one["kind"] for one in CHECKS))
    of_kind = [[one for one in CHECKS if one["kind"] == kind] for kind in kinds]
    drawn = [one[n] for one in of_kind for n in random.choice(len(one), size=min(8, len(one)), replace=False)]
    computed = [one for one in drawn if one["kind"] == "computed"]
    measured = [one for one in drawn if one["kind"] != "computed"]
    several = [
        [together[n] for n in random.integers(len(together), size=2)]
        for together, times in ((measured, 60), (computed, 6))
        for _ in range(times)
    ]
    departing = [one for one in CHECKS if str(one.get("of")).startswith("elsewhere/")]
    claims = [{"checks": each} for each in [*([one] for one in [*drawn, *departing]), *several]]
    for claim in claims:
        claim["kind"] = "computed" if claim["checks"][0] in computed else "any"
        claim |= FITNESS[random.integers(len(FITNESS))] if random.random() < 0.4 else {}
    claims += [{"checks": [one], "kind": "any", "needs": {"model": True}} for one in departing]
    return [{"id": f"C{n}", "statement": "It is so", **claim} for n, claim in enumerate(claims)]


def noisy(made: Callable[..., Result], random: np.random.Generator) -> Callable[..., Result]:
    """Results as a shared machine gives them: passes, processes and token counts vary, and memory, energy and files."""

    def make(planned: PlannedCell, block: int, spread: float = 0.002, **changed: Any) -> Result:
        found = made(planned, block, spread, **changed)
        if found.outcome != "ok":
            return found
        fused = {"fusions": [int(random.integers(3)), 1], "compiled_regions": 7}
        ran = {"compile_model": {"compiled_regions": int(random.integers(3))}, "fused_gelu": fused, "lossy": "so"}
        counts = {"recompiles": int(random.integers(0, 2)), "calls": 3, "optimizations": ran}
        counts |= {"kernels": ["math"] * int(random.integers(3)) + ["flash"]}
        place = int(random.integers(2 * len(found.tokens)))
        tokens = tuple(9 if n == place else token for n, token in enumerate(found.tokens))
        kept = {"rss_peak": int(random.integers(1000, 2000)), "device_used": 5}
        return found.model_copy(
            update={
                "load_ns": int(random.integers(1e8, 3e8)),
                "memory": {**found.memory, **kept},
                "proof": {**found.proof, **counts},
                "tokens": tokens,
                "energy_mj": int(random.integers(100, 200)),
                "telemetry": {"checkpoint": {"bytes": 10_000_000, "cached_bytes": 5_000_000}},
            }
        )

    return make


def written(plan: Plan, rounds: dict[str, Round]) -> None:
    """What a run leaves in `results`, from its blocks and rounds on."""
    write_json(Path(f"results/plan/{plan.seal[:12]}.json"), plan.model_dump(mode="json"))
    round_file.write_all(Path(f"results/decided/{plan.seal[:12]}.json"), 10, rounds)
    table = aggregate.aggregate(plan, Ceilings(), rounds=rounds)
    judged = judge(plan, table, frontiers={id: Frontier(fits=2, fails=4, trials=()) for id in plan.frontiers})
    verdicts.write(Path("results/verdicts.json"), judged.model_copy(update={"made_of": {"plan": plan.seal}}))


def is_unfit(check: verdicts.CheckVerdict) -> bool:
    """Whether it was measured, and cannot decide its claim."""
    return check.verdict == verdicts.Verdict.NOT_RUNNABLE and check.estimate is not None


ROUNDS = (1, 2, 0, 9)


@pytest.mark.parametrize("seed", range(len(ROUNDS)))
def test_every_kind_of_check_is_derived_alike_from_rounds_and_from_blocks(
    lab: Any, made: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    random = np.random.default_rng(seed)
    make = noisy(made, random)
    machine = SharedMachine(make, random)
    monkeypatch.setattr(decide, "RoundServer", lambda: machine)
    monkeypatch.setattr(decide.time, "monotonic", lambda: machine.now)
    text = STUDY + "  " + json.dumps(claims_of(seed))
    in_rounds = {"measure": {"budget_minutes": 10 + 20 * seed, "samples": 3}}
    plan = lab.plan(text, blocks=1 + seed, more=in_rounds if ROUNDS[seed] else {})
    assert bool(plan.groups) == bool(ROUNDS[seed])
    lab.write(plan, make)
    decider = decide.Decider(plan, Path("results/rounds"), print)
    for number in range(ROUNDS[seed]):
        for group in plan.groups:
            decider.measure(group, group.everyone[number % 2 :], {}, 1 + (number + seed) % 6, 10.0)
    rounds = decider.rounds
    written(plan, rounds)
    status, said = verified(Path("results"))
    assert status == 0, said
    found = verdicts.read(Path("results/verdicts.json")).claims
    assert {one.verdict for one in found} >= {*verdicts.Verdict} - {verdicts.Verdict.BOUNDED}
    assert any("not " not in check.sentence.lower() for one in found for check in one.checks if is_unfit(check))


MEASURED = """
experiments:
  speed:
    question: How fast?
    cells: {plain: {options: {step_ms: 2}}, slow: {options: {step_ms: 4}}}
claims:
- id: X1
  kind: ratio
  statement: Slow is slower, with the same tokens
  checks:
  - {kind: ratio, metric: decode_tok_s, of: speed/slow, to: speed/plain, expect: below}
  - {kind: identity, of: speed/slow, to: speed/plain}
"""


@pytest.mark.pipeline
def test_a_study_that_was_measured_in_rounds_just_now_follows_from_them(lab: Any) -> None:
    plan = lab.plan(MEASURED, more={"measure": {"budget_minutes": 0.1, "samples": 2}})
    decider = decide.Decider(plan, Path("results/rounds"), print)
    decider.run()
    written(plan, decider.rounds)
    assert len(decider.rounds) >= 1
    assert verified(Path("results")) == (0, f"1 {AGREES}")
    edited(max(Path("results/rounds").glob("*.json")), "round", faster)
    assert verified(Path("results"))[0] == 1


def test_what_compiles_or_quantises_is_known_to_differ_from_process_to_process(lab: Any) -> None:
    cell = next(iter(lab.plan(MEASURED).cells.values())).cell
    sys.path.insert(0, str(VERIFIER.parent))
    compiled = importlib.import_module("verify").COMPILED
    sys.path.remove(str(VERIFIER.parent))
    for name in optimizations.names():
        module = optimizations.find(name)
        with_it = cell.model_copy(update={"optimizations": (OptimizationUse(name=name),)})
        imports = getattr(module, "IMPORTS", ())
        asks_the_compiler = module.SEAM == "compile" or any("_inductor" in one for one in imports)
        assert comparing.is_restless(with_it) == (name in compiled or not module.EXACT), name
        assert comparing.is_restless(with_it) >= asks_the_compiler, name
    for name in ("fused_softmax", "fused_gelu", "fused_layer_norm"):
        for how, restless in (("compile", True), (None, False)):
            use = OptimizationUse(name=name, settings={"how": how} if how else {})
            assert comparing.is_restless(cell.model_copy(update={"optimizations": (use,)})) == restless


def test_a_round_weighs_what_the_rules_say_at_each_of_their_limits() -> None:
    sys.path.insert(0, str(VERIFIER.parent))
    weight_of = importlib.import_module("raw").weight_of
    sys.path.remove(str(VERIFIER.parent))
    for rule in validity.RULES:
        for value in (rule.above, rule.above * 1.001 + 1e-9):
            waits = value if rule.condition == "waiting_cpu" else 0.0
            seen = {"conditions": {rule.condition: value}, "arms": [{"waiting_cpu": waits / 2}] * 2}
            assert weight_of(seen) == validity.weight({rule.condition: value}), (rule, value)


def test_a_round_that_others_disturbed_weighs_by_what_its_twins_differ(made: Callable[..., Result], lab: Any) -> None:
    sys.path.insert(0, str(VERIFIER.parent))
    weight_of = importlib.import_module("raw").weight_of
    sys.path.remove(str(VERIFIER.parent))
    planned = next(iter(lab.plan(MEASURED).cells.values()))
    weights = []
    for slower in (1.0, 1.03, 0.96, 1.2):
        arms = []
        for name, factor in (("other", 1), ("base", 1), ("twin", slower)):
            result = made(planned, 0)
            if name == "other":
                result = result.model_copy(update={"cell": planned.cell.model_copy(update={"dtype": "bfloat16"})})
            samples = [one.model_copy(update={"wall_ns": int(one.wall_ns * factor)}) for one in result.samples]
            turns = [Turns(number=n, places=(0,), begun_ns=0, ended_ns=0, samples=1) for n in range(len(samples))]
            result = result.model_copy(update={"samples": tuple(samples)})
            arms.append(Arm(name=name, result=result, turns=tuple(turns)))
        shared = {"started_at": "t", "duration_s": 1.0, "seed": 0, "passes": 3, "arms": tuple(arms)}
        for beside in (0.0, 1.0):
            record = Round(**shared, conditions={"beside": beside})
            own = weight_of(record.model_dump(mode="json"))
            assert own == validity.weight(validity.of_round(record))
            weights.append(own)
    assert weights == [1, 1, 1, 0.5, 1, 0.5, 1, 0]


def test_bytes_of_weights_are_those_that_the_cost_model_has() -> None:
    sys.path.insert(0, str(VERIFIER.parent))
    held = importlib.import_module("fitness").held_bytes
    sys.path.remove(str(VERIFIER.parent))
    counted = {"model_type": "x", "layers": 2, "hidden": 8, "vocabulary": 10, "in_layers": 900, "matrices": 800}
    counted |= {"weights": 1000, "largest": 100, "widest": 20}
    mixture = {"weights": 600, "biases": 50, "count": 8, "active": 2}
    stored = {"stored": {"bits": 4.5}, "quantized": "gptq"}
    in_files = {"held": {"I32": 300, "F16": 80, "F32": 40}}
    cards = [counted, counted | stored, counted | stored | {"stored_bytes": in_files}, counted | {"stored_bytes": None}]
    cards += [counted | {"stored": {"bits": 5.0, "experts_alone": True}, "experts": mixture, "quantized": "mxfp4"}]
    names = [path.stem for path in cost.ARCHITECTURES.glob("*.json")]
    known = [Checkpoint(name="x", source="random://x", architecture=name) for name in names]
    known += [one.model_copy(update={"keep_layers": 2}) for one in known]
    known += [Checkpoint(name="x", source="file:///x", architecture=None, card=Card(**card)) for card in cards]
    known += [Checkpoint(name="x", source="x", architecture="llama-2-7b", card=Card(**card)) for card in cards]
    for checkpoint in known:
        model = cost.decoder_of(checkpoint)
        for width in (1, 2, 4):
            own = held(checkpoint.model_dump(mode="json"), width)
            assert own == (None if model is None else pytest.approx(weight_bytes.held_bytes(model, width)))


class SharedMachine(Machine):
    """Its rounds are spoilt now and then, as those of a shared machine are."""

    def __init__(self, made: Callable[..., Result], random: np.random.Generator) -> None:
        super().__init__(made, seconds=20, noise=float(random.choice([0.005, 0.04, 0.1])))
        self.random = random

    def measure(self, request: RoundRequest, output: Path) -> Round:
        for arm in request.arms:
            planned = PlannedCell(cell=arm.block.cell, key=arm.key, blocks=0)
            if (alone := self.made(planned, 0)).outcome != "ok":
                self.fails[arm.name] = alone.outcome
        found = super().measure(request, output)
        names = ["foreign_cpu", "steal", "swapped_mb", "throttled", "slept_s", "clock_gap", "beside"]
        name = str(self.random.choice(names))
        conditions = {name: float(self.random.choice([0.0, 0.01, 0.12, 0.2, 0.6, 2.0]))}
        waiting = [
            arm.model_copy(update={"waiting_cpu": float(self.random.choice([0, 0.005, 0.02]))}) for arm in found.arms
        ]
        found = found.model_copy(update={"conditions": conditions, "arms": tuple(waiting)})
        round_file.write(output, found)
        return found
