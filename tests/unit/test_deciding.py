"""Rounds: who sits together, what is measured next, and what the rounds say in the table and in verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from claimbench import backends
from claimbench.analysis import aggregate, comparing, paired, stats
from claimbench.analysis.protocol import protocol_of
from claimbench.backends import null_model
from claimbench.deciding import decide
from claimbench.deciding.advised import groups_of_advice
from claimbench.deciding.progress import Progress, Undecided, in_groups
from claimbench.errors import ResultError
from claimbench.judging import recommend
from claimbench.judging.judge import judge
from claimbench.measuring.round_process import RoundRequest
from claimbench.planning import cell_cost, forecast, groups
from claimbench.reporting import report
from claimbench.schema import round as round_file
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.plan import Plan, PlannedCell, PlannedGroup
from claimbench.schema.result import Result
from claimbench.schema.round import TWIN, Arm, Round, Turns
from claimbench.schema.verdicts import Needed
from claimbench.workflow import jobs

STUDY = """
experiments:
  speed:
    question: How fast?
    cells:
      plain: {}
      half: {options: {step_ms: 20}}
      near: {options: {step_ms: 10.1}}
  other:
    question: What else?
    cells:
      one: {options: {step_ms: 30}}
      two: {options: {step_ms: 31}}
claims:
  - id: X1
    kind: ratio
    statement: Half is slower
    checks: [{kind: ratio, metric: decode_tok_s, of: speed/half, to: speed/plain, expect: below}]
  - id: X2
    kind: ratio
    statement: Near is the same
    checks: [{kind: ratio, metric: decode_tok_s, of: speed/near, to: speed/plain, expect: same}]
  - id: X3
    kind: ratio
    statement: Across
    checks: [{kind: ratio, metric: decode_tok_s, of: other/one, to: speed/plain, expect: below}]
"""
BUDGET = {"measure": {"budget_minutes": 10, "samples": 3}}


def cell_id(plan: Plan, address: str) -> str:
    return str(plan.row("study", address).cell)


class Machine:
    """Stands in for the processes of a round: results as the null backend would have given them, in no time."""

    def __init__(self, made: Callable[..., Result], seconds: float = 60, noise: float = 0.04) -> None:
        self.made, self.seconds, self.noise = made, seconds, noise
        self.asked: list[RoundRequest] = []
        self.now = self.waited_s = 0.0
        self.fails: dict[str, str] = {}
        self.fails_alone = True

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def measure(self, request: RoundRequest, output: Path) -> Round:
        self.asked.append(request)
        self.now += self.seconds
        arms = []
        for arm in request.arms:
            planned = PlannedCell(cell=arm.block.cell, key=arm.key, blocks=0)
            outcome = self.fails.get(arm.name) if request.in_company or self.fails_alone else None
            if outcome:
                result = Result(
                    cell=arm.block.cell,
                    block=0,
                    key=arm.key,
                    outcome=outcome,
                    reason="so",
                    started_at="t",
                    duration_s=1,
                )
                arms.append(Arm(name=arm.name, result=result))
                continue
            proof = {"seen": True} if arm.proves else {}
            samples = [
                self.made(planned, number + 100 * len(self.asked), self.noise, proof=proof)
                for number in range(request.passes)
            ]
            result = samples[0].model_copy(update={"samples": tuple(one.samples[0] for one in samples)})
            turns = tuple(
                Turns(number=number, places=(0,), begun_ns=0, ended_ns=0, samples=1) for number in range(request.passes)
            )
            arms.append(Arm(name=arm.name, result=result, turns=turns))
        record = Round(
            started_at="t",
            duration_s=self.seconds,
            seed=request.seed,
            passes=request.passes,
            protocol=request.protocol,
            in_company=request.in_company,
            arms=tuple(arms),
        )
        round_file.write(output, record)
        return record


@pytest.fixture
def machine(made: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(made)
    monkeypatch.setattr(decide, "RoundServer", lambda: machine)
    monkeypatch.setattr(decide.time, "monotonic", lambda: machine.now)
    return machine


def decided(plan: Plan, folder: Path) -> tuple[decide.Decider, list[str]]:
    said: list[str] = []
    folder.mkdir(exist_ok=True)
    decider = decide.Decider(plan, folder, said.append)
    decider.run()
    return decider, said


def test_cells_of_an_experiment_sit_together_and_claims_across_experiments_get_a_group(lab: Any) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    titles = {group.title: group for group in plan.groups}
    assert list(titles) == ["study: speed", "study: other", "study: across experiments"]
    assert titles["study: speed"].base == cell_id(plan, "speed/plain")
    assert set(titles["study: across experiments"].cells) == {cell_id(plan, "other/one"), cell_id(plan, "speed/plain")}
    assert all(plan.cells[id].paths() == [] for group in plan.groups for id in group.cells)
    assert plan.budget_minutes == 10


def test_without_a_budget_everything_is_measured_in_blocks(lab: Any) -> None:
    plan = lab.plan(STUDY)
    assert plan.groups == ()
    assert all(planned.blocks for planned in plan.cells.values())


def test_ranks_and_servers_take_turns_and_cold_loads_do_not(lab: Any) -> None:
    study = STUDY.replace("near: {", "near: {page_cache: cold, ").replace("step_ms: 31", "step_ms: 31, devices: 2")
    study = study.replace("one: {", "one: {backend: null_server, ")
    plan = lab.plan(study, more=BUDGET)
    near = plan.cells[cell_id(plan, "speed/near")]
    assert not groups.takes_turns(near.cell)
    assert near.blocks == 3
    assert [group.title for group in plan.groups] == ["study: speed", "study: other", "study: across experiments"]
    assert {plan.cells[id].cell.backend for id in plan.groups[1].cells} == {"null_model", "null_server"}
    assert not any(backends.stands_still(plan.cells[id].cell) for id in plan.groups[1].cells)


def test_whoever_computes_while_others_have_their_turn_is_measured_back_to_back(
    lab: Any, machine: Machine, tmp_path: Path
) -> None:
    plan = lab.plan(STUDY.partition("  other:")[0] + "claims: []\n", more=BUDGET)
    decider, _ = decided(plan, tmp_path / "rounds")
    plain, half, near = (cell_id(plan, f"speed/{name}") for name in ("plain", "half", "near"))
    path, record = next(iter(decider.rounds.items()))
    arms = tuple(
        arm.model_copy(update={"waiting_cpu": 0.4 if arm.result.cell.id == half else 0.01}) for arm in record.arms
    )
    decider.rounds[path] = record.model_copy(update={"arms": arms})
    assert decider.fitting([half, near], plain) == [[plain, near], [plain, half]]
    assert (decider.is_crowded(half, plain), decider.is_crowded(near, plain)) == (True, False)


def test_what_does_not_fit_in_memory_together_sits_in_parts_with_the_base(lab: Any) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    group = plan.groups[0]
    every = groups.that_fit(group.cells, group.base, plan.cells, 1e12)
    one_by_one = groups.that_fit(group.cells, group.base, plan.cells, 1.0)
    assert [set(part) for part in every] == [set(group.cells)]
    assert [len(part) for part in one_by_one] == [2, 2]
    assert all(part[0] == group.base for part in one_by_one)


def test_a_forecast_of_memory_is_of_what_is_loaded_at_a_time(lab: Any) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    group = plan.groups[0]
    sizes = {id: cell_cost.peak_bytes(plan.cells[id].cell) for id in group.cells}
    whole = sum(sizes.values()) + sizes[group.base]
    three = 2 * sizes[group.base] + max(sizes.values())
    share = groups.MEMORY_SHARE
    assert groups.peak_of(group, plan.cells, 0.0)[0] == groups.peak_of(group, plan.cells, 1e15)[0] == whole
    assert groups.peak_of(group, plan.cells, 1.01 * three / share)[0] == three < whole
    assert groups.peak_of(group, plan.cells, 0.5 * three / share) == (max(sizes.values()), group.base)
    for memory_gb, expected in ((1e6, whole), (1e-3, max(sizes.values()))):
        machine = {**plan.machine, "memory_gb": memory_gb}
        alone = plan.model_copy(update={"machine": machine, "groups": (group,)})
        assert forecast.forecast(alone, Ceilings()).peak_bytes == expected


def test_what_fits_only_alone_is_measured_back_to_back_from_the_start(
    lab: Any, machine: Machine, tmp_path: Path
) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    small = plan.model_copy(update={"machine": {**plan.machine, "memory_gb": 0.001}})
    decided(small, tmp_path / "rounds")
    assert not any(request.in_company for request in machine.asked)
    assert all(len({arm.block.cell.id for arm in request.arms}) == 2 for request in machine.asked)


def test_every_comparison_gets_its_rounds_and_undecided_ones_the_rest(
    lab: Any, machine: Machine, tmp_path: Path
) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    decider, said = decided(plan, tmp_path / "rounds")
    speed, other, across = plan.groups
    assert decider.together(*speed.cells) == 2
    assert decider.together(*other.cells) == 2
    assert decider.together(*across.cells) == 2
    assert decider.together(cell_id(plan, "speed/near"), speed.base) > 2  # it alone is undecided
    assert decider.together(cell_id(plan, "speed/half"), speed.base) == 2
    assert machine.now <= plan.budget_minutes * 60
    assert "2 of 3 claims decided" in " ".join(said)
    assert all(request.arms[-1].name == TWIN for request in machine.asked)


def test_proof_is_asked_for_once_and_a_round_begins_with_its_passes_fixed(
    lab: Any, machine: Machine, tmp_path: Path
) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    decided(plan, tmp_path / "rounds")
    proving = [(arm.name, number) for number, request in enumerate(machine.asked) for arm in request.arms if arm.proves]
    assert len(proving) == len({name for name, _ in proving}) == 5
    assert machine.asked[0].passes == decide.FIRST_PASSES
    assert len({request.seed for request in machine.asked}) == len(machine.asked)


def test_a_larger_budget_adds_rounds_to_those_that_are_there(lab: Any, machine: Machine, tmp_path: Path) -> None:
    decided(lab.plan(STUDY, more=BUDGET), tmp_path / "rounds")
    before = {path: path.read_bytes() for path in (tmp_path / "rounds").iterdir()}
    asked, machine.now = len(machine.asked), 0.0
    larger = lab.plan(STUDY, more={"measure": {"budget_minutes": 20, "samples": 3}})
    decider, _ = decided(larger, tmp_path / "rounds")
    assert len(decider.rounds) > len(before)
    assert all(path.read_bytes() == content for path, content in before.items())
    added = machine.asked[asked:]
    seated = {arm.block.cell.id for request in added for arm in request.arms}
    assert {cell_id(larger, "speed/near"), cell_id(larger, "speed/plain")} <= seated
    assert cell_id(larger, "speed/half") not in seated, "its claim was decided, and it has its rounds"


def test_a_cell_that_changed_sits_again_with_its_base_alone(lab: Any, machine: Machine, tmp_path: Path) -> None:
    decided(lab.plan(STUDY, more=BUDGET), tmp_path / "rounds")
    asked, machine.now = len(machine.asked), 0.0
    changed = lab.plan(STUDY.replace("step_ms: 20", "step_ms: 25"), more=BUDGET)
    decided(changed, tmp_path / "rounds")
    first = machine.asked[asked : asked + 2]
    wanted = {cell_id(changed, "speed/half"), cell_id(changed, "speed/plain")}
    assert [{arm.block.cell.id for arm in request.arms} for request in first] == [wanted, wanted]


@pytest.mark.parametrize("fails_alone", [False, True])
def test_out_of_memory_beside_others_is_measured_alone_back_to_back_with_its_base(
    lab: Any, machine: Machine, tmp_path: Path, fails_alone: bool
) -> None:
    """Once it is known to lack memory in company, it sits in no other round."""
    machine.fails, machine.fails_alone = {"study: speed/half": "oom"}, fails_alone
    plan = lab.plan(STUDY, more=BUDGET)
    decider, said = decided(plan, tmp_path / "rounds")
    half, plain = cell_id(plan, "speed/half"), cell_id(plan, "speed/plain")
    seats = [([arm.block.cell.id for arm in request.arms], request.in_company) for request in machine.asked]
    assert next(ids for ids, in_company in seats if not in_company) == [plain, half, plain]
    assert sum(half in ids for ids, in_company in seats if in_company) == 1
    assert any("study: speed/half oom: so" in line for line in said)
    table = aggregate.aggregate(in_groups(plan), Ceilings(), rounds=decider.rounds)
    verdicts = {claim.id: claim.verdict for claim in judge(plan, table).claims}
    assert set(table[table["cell"] == half]["outcome"]) == ({"oom"} if fails_alone else {"ok"})
    assert verdicts["X1"] == ("not runnable here" if fails_alone else "supported")


def test_a_damaged_round_is_left_out_and_told_of(lab: Any, machine: Machine, tmp_path: Path) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    decided(plan, tmp_path / "rounds")
    first = min((tmp_path / "rounds").iterdir())
    first.write_text(
        first.read_text().replace('"seed":', '"seed" :').replace(f'"passes":{decide.FIRST_PASSES}', '"passes":9')
    )
    said: list[str] = []
    decide.Decider(plan, tmp_path / "rounds", said.append)
    assert [line.startswith("left out: a round was edited") for line in said] == [True]


def test_the_summary_lists_its_rounds_and_refuses_others(lab: Any, machine: Machine, tmp_path: Path) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    decider, _ = decided(plan, tmp_path / "rounds")
    round_file.write_all(tmp_path / "summary.json", plan.budget_minutes, decider.rounds)
    assert round_file.read_all(tmp_path / "summary.json") == decider.rounds
    path, record = next(iter(decider.rounds.items()))
    round_file.write(Path(path), record.model_copy(update={"seed": 1}))
    with pytest.raises(ResultError, match="is not the round that"):
        round_file.read_all(tmp_path / "summary.json")


def test_a_ratio_uses_only_rounds_in_which_both_sat(lab: Any, machine: Machine, tmp_path: Path) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    decider, _ = decided(plan, tmp_path / "rounds")
    table = aggregate.aggregate(in_groups(plan), Ceilings(), rounds=decider.rounds)
    frames = aggregate.by_cell(table)
    addresses = ("speed/near", "speed/plain", "speed/half", "other/two")
    near, plain, half, two = (frames[cell_id(plan, address)] for address in addresses)
    together = comparing.paired_rounds([near, plain], [1, -1], "decode_tok_s")
    assert len(together) == decider.together(cell_id(plan, "speed/near"), cell_id(plan, "speed/plain"))
    assert plain["round"].nunique() > len(together)
    assert comparing.paired_rounds([two, half], [1, -1], "decode_tok_s") == []


def test_a_verdict_is_that_of_the_first_look_that_settles_it(lab: Any, machine: Machine, tmp_path: Path) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    decider, _ = decided(plan, tmp_path / "rounds")
    table = aggregate.aggregate(in_groups(plan), Ceilings(), rounds=decider.rounds)
    found = {claim.id: claim for claim in judge(plan, table).claims}
    assert found["X1"].verdict == "supported"
    assert found["X1"].checks[0].blocks == 2
    assert len(found["X1"].checks[0].results) >= 2
    later = table.copy()
    wild = later["round"] == later["round"].max()
    later.loc[wild, "decode_tok_s"] = 1.0
    assert {claim.id: claim for claim in judge(plan, later).claims}["X1"].verdict == "supported"


def test_passes_are_paired_by_their_number() -> None:
    """Drift that both sides share is no difference, whatever its size."""
    drift = np.exp(np.linspace(0, 2, 8))
    rows = [
        pd.DataFrame(
            {
                "round": ["r"] * 8 + ["s"] * 8,
                "pass": [*range(8), *range(8)],
                "total_ms": [*drift, *drift] * np.array(f),
                "weight": 1.0,
            }
        )
        for f in (1.0, 1.1)
    ]
    found = comparing.ratio(rows[::-1], "total_ms").last
    assert found is not None
    assert found.estimate == pytest.approx(1.1)
    assert found.ends == pytest.approx((1.1, 1.1))


def test_generations_of_one_turn_count_as_one() -> None:
    rows = pd.DataFrame({"round": ["r"] * 4, "pass": [0, 0, 1, 1], "m": [1.0, 3.0, 2.0, 2.0], "weight": 1.0})
    (found,) = comparing.paired_rounds([rows], [1.0], "m")
    assert found.logs == (math.log(2), math.log(2))


def test_zero_has_no_ratio() -> None:
    rows = pd.DataFrame({"round": ["r"], "pass": [0], "m": [0.0], "weight": 1.0})
    with pytest.raises(ValueError, match="positive"):
        comparing.paired_rounds([rows], [1.0], "m")


def test_a_round_beside_others_counts_for_half_and_a_void_one_not_at_all() -> None:
    """Whatever its figures are."""
    rows = pd.DataFrame({"round": ["r", "s", "t"], "pass": [0, 0, 0], "m": [1.0, 2.0, 9.0], "weight": [1.0, 0.5, 0.0]})
    assert [found.weight for found in comparing.paired_rounds([rows], [1.0], "m")] == [1.0, 0.5]


def test_a_claim_that_nothing_changes_is_bounded_where_it_is_not_decided(
    lab: Any, machine: Machine, tmp_path: Path
) -> None:
    """No difference was found, and none larger than the interval allows; it is measured further all the same."""
    plan = lab.plan(STUDY, more=BUDGET)
    decider, _ = decided(plan, tmp_path / "rounds")
    table = aggregate.aggregate(in_groups(plan), Ceilings(), rounds=decider.rounds)
    (near,) = [claim for claim in judge(plan, table).claims if claim.id == "X2"]
    (check,) = near.checks
    assert near.verdict == check.verdict == "bounded"
    assert check.low is not None
    assert check.high is not None
    assert check.low < 1 < check.high
    assert f"no difference larger than {max(1 - check.low, check.high - 1):.0%}." in check.sentence
    assert check.needed is not None
    assert "X2" in {each.claim for each in decider.progress().undecided}


def test_a_claim_or_a_rule_that_is_edited_afterwards_shows_in_the_report(
    lab: Any, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured under other claims or rules says so, whenever the report is rendered."""
    plan = lab.plan(STUDY, more=BUDGET)
    decider, _ = decided(plan, tmp_path / "rounds")
    assert {request.protocol for request in machine.asked} == {protocol_of(plan)}
    summary = tmp_path / "summary.json"
    round_file.write_all(summary, 10, decider.rounds)
    table = aggregate.aggregate(in_groups(plan), Ceilings(), rounds=decider.rounds)

    def first_screen(of: Plan) -> str:
        rounds = round_file.read_summary(summary)
        report.render(in_groups(of), table, judge(of, table), Ceilings(), tmp_path / "reports", rounds)
        return (tmp_path / "reports/report.md").read_text(encoding="utf-8").partition("\n## ")[0]

    warning = f"edited after {len(decider.rounds)} rounds of these had been measured"
    assert "edited after" not in first_screen(plan)
    edited = lab.plan(STUDY.replace("to: speed/plain, expect: same", "to: speed/plain, expect: above"), more=BUDGET)
    assert warning in first_screen(edited)
    monkeypatch.setattr(paired, "STEADY", paired.STEADY._replace(inflation=0.1))
    assert warning in first_screen(plan)


def waiting(record: Round, cpu: float) -> Round:
    arms = tuple(arm.model_copy(update={"waiting_cpu": cpu}) for arm in record.arms[:3])
    return record.model_copy(update={"arms": arms + record.arms[3:]})


@pytest.mark.parametrize(
    ("spoil", "said", "weight"),
    [
        (lambda one: waiting(one, 0.1), "arms that waited took 30%", 0.0),
        (lambda one: one.model_copy(update={"conditions": {"slept_s": 40.0}}), "the machine slept for 40 s", 0.0),
        (lambda one: one.model_copy(update={"conditions": {"foreign_cpu": 0.2}}), "other processes took 20%", 0.5),
        (lambda one: one.model_copy(update={"conditions": {"steal": 0.03}}), "the hypervisor took 3%", 1.0),
    ],
)
def test_a_spoilt_round_is_told_of_and_weighed_and_a_void_one_is_measured_again(
    lab: Any, machine: Machine, tmp_path: Path, spoil: Callable[[Round], Round], said: str, weight: float
) -> None:
    """From the file to the comparison: nothing rests on a round that a rule voids, and it does not count as one."""
    plan = lab.plan(STUDY, more=BUDGET)
    decider, _ = decided(plan, tmp_path / "rounds")
    half, plain = cell_id(plan, "speed/half"), cell_id(plan, "speed/plain")
    before = decider.together(half, plain)
    path = next(path for path, one in decider.rounds.items() if half in {arm.result.cell.id for arm in one.arms})
    decider.rounds[path] = spoil(decider.rounds[path])
    table = aggregate.aggregate(in_groups(plan), Ceilings(), rounds=decider.rounds)
    frames = aggregate.by_cell(table)
    found = comparing.paired_rounds([frames[half], frames[plain]], [1, -1], "total_ms")
    assert [one.weight for one in found] == [each for each in (weight, *[1.0] * (before - 1)) if each]
    assert decider.together(half, plain) == (before if weight else before - 1)
    assert said in str(table[(table["cell"] == half) & (table["path"] == path)]["flags"].iloc[0])


def test_where_every_round_was_disturbed_that_is_why_nothing_is_said(
    lab: Any, machine: Machine, tmp_path: Path
) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    decider, _ = decided(plan, tmp_path / "rounds")
    half, plain = cell_id(plan, "speed/half"), cell_id(plan, "speed/plain")
    sat = decider.together(half, plain)
    for path, one in decider.rounds.items():
        decider.rounds[path] = one.model_copy(update={"conditions": {"foreign_cpu": 0.51}})
    judged = judge(plan, aggregate.aggregate(in_groups(plan), Ceilings(), rounds=decider.rounds))
    (check,) = next(claim for claim in judged.claims if claim.id == "X1").checks
    assert check.sentence == (
        f"Not judged: {sat} rounds in which speed/half and speed/plain sat, each disturbed too much to count."
    )
    assert {each.reason for each in judged.left_out if each.cell == half} == {recommend.VOID}
    rows = [aggregate.by_cell(aggregate.aggregate(in_groups(plan), Ceilings(), rounds=decider.rounds))[half]] * 2
    assert comparing.void_rounds(rows, "decode_tok_s") == sat
    assert comparing.void_rounds(rows, "load_s") == 0, "a start is compared by blocks"
    path = min(decider.rounds)
    decider.rounds[path] = decider.rounds[path].model_copy(update={"conditions": {}})
    rows = [aggregate.by_cell(aggregate.aggregate(in_groups(plan), Ceilings(), rounds=decider.rounds))[half]] * 2
    assert comparing.void_rounds(rows, "decode_tok_s") == 0, "one of them counts"


def test_how_a_process_starts_is_compared_by_blocks_each_alone(lab: Any) -> None:
    """In company another one may load meanwhile, and a first call is whole only once."""
    study = STUDY.replace("metric: decode_tok_s, of: speed/half", "metric: load_s, of: speed/half")
    plan = lab.plan(study, more=BUDGET)
    blocks = {address: plan.cells[cell_id(plan, f"speed/{address}")].blocks for address in ("half", "plain", "near")}
    assert blocks == {"half": 3, "plain": 3, "near": 0}
    rows = [
        pd.DataFrame({"round": ["r", "r", None, None], "block": [0, 0, 1, 2], "load_s": [9.0, 9.0, *own], "pass": 0.0})
        for own in ((1.0, 1.0), (2.0, 2.0))
    ]
    found = comparing.ratio([rows[1], rows[0]], "load_s").last
    assert found is not None
    assert found.estimate == pytest.approx(2.0)


def test_a_cell_that_was_never_twice_in_a_pass_has_no_floor(lab: Any, machine: Machine, tmp_path: Path) -> None:
    """Back to back, the base and its twin have no pass in common."""
    rows = pd.DataFrame(
        {"round": ["r"] * 4, "block": [0, 0, 1, 1], "pass": [0, 1, 2, 3], "total_ms": [1.0] * 4, "weight": 1.0}
    )
    assert comparing.twins(rows, "total_ms").last is None


def test_whoever_may_measure_on_does_not_look_in_between() -> None:
    """After five rounds there is no look: what they show is not seen before the sixth, or the end."""
    rows = pd.DataFrame({"round": list("abcde"), "pass": 0, "total_ms": [1.0, 1.1, 1.2, 1.1, 1.0], "weight": 1.0})
    found = comparing.ratio([rows, rows.assign(total_ms=1.0)], "total_ms")
    assert [look.rounds for look in found.looks] == [2, 3, 4, 5]
    assert [look.rounds for look in found.at_planned_looks().looks] == [2, 3, 4]


def test_the_twin_counts_as_its_base(lab: Any, machine: Machine, tmp_path: Path) -> None:
    """The base of a comparison is the mean of both in each pass: half the noise of one."""
    plan = lab.plan(STUDY, more=BUDGET)
    decider, _ = decided(plan, tmp_path / "rounds")
    table = aggregate.aggregate(in_groups(plan), Ceilings(), rounds=decider.rounds)
    frames = aggregate.by_cell(table)
    half, plain = frames[cell_id(plan, "speed/half")], frames[cell_id(plan, "speed/plain")]
    first = half["round"].iloc[0]
    both = plain[plain["round"] == first]
    assert len(both) == 2 * len(half[half["round"] == first])
    (logs, _), *_ = comparing.paired_rounds([half, plain], [1, -1], "total_ms")
    means = both.groupby("pass")["total_ms"].mean()
    of = half[half["round"] == first].set_index("pass")["total_ms"]
    assert logs == pytest.approx([math.log(of[number] / means[number]) for number in sorted(of.index)])


def test_a_cell_that_sat_twice_in_a_round_has_one_block_there(lab: Any, machine: Machine, tmp_path: Path) -> None:
    """Two processes of one minute are not two experiments: one round alone has no interval, whoever sat twice."""
    plan = lab.plan(STUDY, more=BUDGET)
    decider, _ = decided(plan, tmp_path / "rounds")
    base = cell_id(plan, "speed/plain")
    sat_twice = {
        path
        for path, one in decider.rounds.items()
        if any(arm.name == TWIN and arm.result.cell.id == base for arm in one.arms)
    }
    first, second, *_ = sorted(sat_twice)
    for paths in ([first], [first, second]):
        rounds = {path: decider.rounds[path] for path in paths}
        table = aggregate.aggregate(in_groups(plan), Ceilings(), rounds=rounds)
        rows = aggregate.by_cell(table)[base]
        assert rows["block"].nunique() == 2 * len(paths)
        blocks = aggregate.blocks_in(rows, "step_ms")
        assert [len(block) for block in blocks] == [2 * rounds[path].passes for path in paths]
        found = stats.interval(blocks)
        assert found is not None
        assert (found.low is None) == (len(paths) == 1)


def test_waiting_for_another_study_on_the_same_device_spends_no_budget(
    lab: Any, machine: Machine, tmp_path: Path
) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    decider = decide.Decider(plan, tmp_path, print)
    machine.now, machine.waited_s = 900.0, 800.0
    assert decider.left_s == 500.0


def test_a_third_round_is_reserved_before_a_second_one_gets_more_passes(
    lab: Any, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments, claims = STUDY.partition("  other:")[0], STUDY.partition("claims:")[2].partition("  - id: X3")[0]
    plan = lab.plan(f"{experiments}claims:{claims}", more=BUDGET)
    half = plan.cells[cell_id(plan, "speed/half")].cell
    monkeypatch.setattr(decide.Decider, "go_on", lambda *_, **__: False)
    monkeypatch.setattr(decide.Decider, "complete", lambda _: None)
    for restless, spare_s in ((False, 600 - 60 - 100), (True, 600 - 60 - 100 - 100)):
        machine.asked, machine.now = [], 0.0
        folder = tmp_path / str(restless)
        monkeypatch.setattr(comparing, "is_restless", lambda cell, restless=restless: restless and cell == half)
        monkeypatch.setattr(decide.Decider, "expected_s", lambda *_: 100.0)
        monkeypatch.setattr(decide.Decider, "turns_s", lambda *_: 0.0)
        decided(plan, folder)
        assert machine.asked[1].turns_s == pytest.approx(spare_s)
        assert len(machine.asked) == (3 if restless else 2)


def test_a_cell_gets_the_passes_that_should_settle_its_claims(lab: Any, machine: Machine, tmp_path: Path) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    decider = decide.Decider(plan, tmp_path, print)
    half, plain, near = (cell_id(plan, f"speed/{name}") for name in ("half", "plain", "near"))

    def asked(passes: int | None) -> dict[str, int]:
        check = Undecided("X1", (half, plain), Needed(rounds=3, minutes=1.0, passes=passes))
        return decider.turns([plain, half, near], Progress(3, (check,)))

    assert asked(2) == {plain: 3, half: 3, near: decide.FEWEST}
    assert asked(1)[half] == decide.FEWEST
    assert asked(100)[half] == asked(None)[half] == decide.MOST
    other = Undecided("X2", (plain, "elsewhere"), Needed(rounds=3, minutes=1.0, passes=100))
    assert decider.turns([plain, half], Progress(3, (other,))) == {plain: decide.FEWEST, half: decide.FEWEST}


def test_a_claim_that_one_check_refutes_asks_for_no_more_rounds(lab: Any, machine: Machine, tmp_path: Path) -> None:
    checks = [
        "{kind: ratio, metric: decode_tok_s, of: speed/half, to: speed/plain, expect: above}",
        "{kind: ratio, metric: decode_tok_s, of: speed/near, to: speed/plain, expect: same}",
    ]
    before = STUDY.partition("claims:")[0]
    few = {"measure": {"budget_minutes": 3, "samples": 3}}  # which do not settle what is near its limit

    def undecided(*asked: str, name: str) -> set[str]:
        study = f"{before}claims: [{{id: X1, kind: ratio, statement: Both, checks: [{', '.join(asked)}]}}]\n"
        machine.now = 0.0
        decider = decide.Decider(lab.plan(study, more=few), tmp_path / name, print)
        decider.run()
        return {check.claim for check in decider.progress().undecided}

    assert undecided(checks[1], name="alone") == {"X1"}
    assert undecided(*checks, name="both") == set()
    load = "{kind: value, metric: load_s, of: speed/plain, expect: {at_most: 0}}"
    assert undecided(checks[1], load, name="start") == {"X1"}, "blocks have a say in how a cell starts"


def test_a_round_that_may_not_end_within_the_budget_is_not_begun(
    lab: Any, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one took 90 s: another is begun with a sixth more left, and not with 3 % more."""
    plan = lab.plan(STUDY, more=BUDGET)
    decider = decide.Decider(plan, tmp_path, print)
    monkeypatch.setattr(decide.Decider, "seat_s", lambda *_: 10.0)
    monkeypatch.setattr(decide.Decider, "turn_s", lambda *_: 10.0)
    half, plain = (cell_id(plan, f"speed/{name}") for name in ("half", "plain"))
    needed = Needed(rounds=3, minutes=0.1, passes=2)
    found = Progress(1, (Undecided("X1", (half, plain), needed),))
    took_s = 3 * 10.0 + decide.FEWEST * 3 * 10.0
    for left_s, is_begun in ((took_s * 1.03, False), (took_s * 1.17, True)):
        machine.now = 600 - left_s
        assert decider.go_on(found) == is_begun


def test_where_one_round_cannot_settle_a_claim_its_passes_are_those_that_pay(
    lab: Any, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that takes four times as long as a pass is worth twice as many passes; what rounds differ by, fewer."""
    plan = lab.plan(STUDY, more=BUDGET)
    decider = decide.Decider(plan, tmp_path, print)
    half, plain = (cell_id(plan, f"speed/{name}") for name in ("half", "plain"))
    monkeypatch.setattr(decide.Decider, "turn_s", lambda *_: 1.0)

    def passes(start_s: float, pass_to_round_sd: float) -> int:
        monkeypatch.setattr(decide.Decider, "seat_s", lambda *_: start_s)
        needed = Needed(rounds=48, minutes=20.0, passes=None, pass_to_round_sd=pass_to_round_sd)
        check = Undecided("X1", (half, plain), needed)
        return decider.turns([plain, half], Progress(3, (check,)))[half]

    assert passes(4.0, 1.5) == 3
    assert passes(1.0, 1.5) == passes(4.0, 1.0) == decide.FEWEST
    assert passes(16.0, 1.5) == decide.MOST


def without_its_plain_run(plan: Plan) -> Plan:
    """An experiment whose rows are compared with each other, and whose plain run is another cell."""
    half, plain, near = (cell_id(plan, f"speed/{name}") for name in ("half", "plain", "near"))
    known = {id: each.model_copy(update={"reference": plain}) for id, each in plan.cells.items()}
    (group,) = groups._with_witnesses([PlannedGroup(title="alone", cells=(half, near), base=half)], known)
    return plan.model_copy(update={"cells": known, "groups": (group,)})


def test_a_reference_that_no_experiment_shows_sits_once_for_its_tokens(
    lab: Any, machine: Machine, tmp_path: Path
) -> None:
    plan = without_its_plain_run(lab.plan(STUDY.partition("  other:")[0] + "claims: []\n", more=BUDGET))
    plain = cell_id(plan, "speed/plain")
    assert plan.groups[0].witnesses == (plain,)
    decided(plan, tmp_path / "rounds")
    asked = [request for request in machine.asked if request.group == "alone"]
    seats = [[arm for arm in request.arms if arm.block.cell.id == plain] for request in asked]
    assert [len(each) for each in seats] == [1] + [0] * (len(seats) - 1)
    assert (seats[0][0].turns, seats[0][0].proves) == (1, False)


def test_what_claims_leave_of_the_budget_goes_to_what_to_switch_on(lab: Any, machine: Machine, tmp_path: Path) -> None:
    """Cells sit with what they would replace as often as an interval needs, and not once more."""
    plan = without_its_plain_run(lab.plan(STUDY.partition("  other:")[0] + "claims: []\n", more=BUDGET))
    half, plain, near = (cell_id(plan, f"speed/{name}") for name in ("half", "plain", "near"))
    decider, said = decided(plan, tmp_path / "rounds")
    last = machine.asked[-1]
    assert last.group == "what to switch on (alone)"
    assert sorted(arm.block.cell.id for arm in last.arms) == sorted([plain, half, near, plain])
    assert last.arms[0].block.cell.id == last.arms[-1].block.cell.id == plain
    assert [arm.name for arm in last.arms].count(TWIN) == 1
    assert {decider.together(id, plain) for id in (half, near)} == {paired.STEADY.least}
    assert any("now: what to switch on (alone), 3 cells" in line for line in said)
    table = aggregate.aggregate(in_groups(plan), Ceilings(), rounds=decider.rounds)
    judged = judge(plan, table)
    asked = {(each.cell, each.reference) for each in (*judged.recommendations, *judged.left_out)}
    assert asked == {(half, plain), (near, plain)}
    assert not [each for each in judged.left_out if each.reason == recommend.TOO_FEW and each.objective != "memory"]
    decided(plan, tmp_path / "rounds")
    assert machine.asked[-1] is last


@pytest.mark.parametrize(("start_s", "waits"), [(1.0, False), (20.0, True)])
def test_what_no_claim_names_waits_for_the_claims_where_it_takes_long(
    lab: Any, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_s: float, waits: bool
) -> None:
    """A server that takes a while to start does not take it from a claim."""
    study = STUDY.replace(
        "of: speed/near, to: speed/plain, expect: same", "of: speed/half, to: speed/plain, expect: below"
    )
    plan = lab.plan(study, more=BUDGET)
    half, plain, near = (cell_id(plan, f"speed/{name}") for name in ("half", "plain", "near"))
    monkeypatch.setattr(decide.Decider, "seat_s", lambda _, id: start_s if id == near else 1.0)
    decider, _ = decided(plan, tmp_path / "rounds")
    second = [
        [arm.block.cell.id for arm in request.arms] for request in machine.asked if request.group == "study: speed"
    ]
    assert (half in second[1], near in second[1]) == (True, not waits)
    assert {decider.together(id, plain) for id in (half, near)} == {paired.STEADY.least}


def test_where_time_is_lacking_the_dearest_is_left_out_and_named(
    lab: Any, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = STUDY.replace(
        "of: speed/near, to: speed/plain, expect: same", "of: speed/half, to: speed/plain, expect: below"
    )
    plan = lab.plan(study, more=BUDGET)
    near = cell_id(plan, "speed/near")
    monkeypatch.setattr(decide.Decider, "seat_s", lambda _, id: 1e9 if id == near else 1.0)
    _, said = decided(plan, tmp_path / "rounds")
    assert "left out for lack of time: study: speed/near (study: speed)" in said
    assert sum(near in {arm.block.cell.id for arm in request.arms} for request in machine.asked) == 1


@pytest.mark.parametrize("name", ["plain", "near"])
def test_what_ended_otherwise_is_no_advice_and_gets_no_more_rounds(
    lab: Any, machine: Machine, tmp_path: Path, name: str
) -> None:
    plan = without_its_plain_run(lab.plan(STUDY.partition("  other:")[0] + "claims: []\n", more=BUDGET))
    failing = cell_id(plan, f"speed/{name}")
    machine.fails = {decide.labels(plan).get(failing, failing): "unavailable"}
    decided(plan, tmp_path / "rounds")
    advice = [request for request in machine.asked if request.group.startswith("what to switch on")]
    assert failing not in {arm.block.cell.id for request in advice for arm in request.arms}
    assert bool(advice) == (name == "near")


def test_what_takes_no_turns_is_not_seated_for_advice(lab: Any) -> None:
    plan = without_its_plain_run(lab.plan(STUDY.partition("  other:")[0] + "claims: []\n", more=BUDGET))
    alone = plan.model_copy(update={"groups": tuple(g.model_copy(update={"witnesses": ()}) for g in plan.groups)})
    asked = [
        [len(list(groups_of_advice(each, lambda _, is_worth=is_worth: is_worth))) for is_worth in (True, False)]
        for each in (plan, alone)
    ]
    assert asked == [[1, 0], [0, 0]]


def test_a_claim_that_the_budget_will_hardly_settle_waits_for_cells_that_no_claim_names(
    lab: Any, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = lab.plan(STUDY, more=BUDGET)
    half, plain = (cell_id(plan, f"speed/{name}") for name in ("half", "plain"))
    done: list[str] = []
    undecided: list[Undecided] = []
    monkeypatch.setattr(decide.Decider, "progress", lambda *_: Progress(1, tuple(undecided)))
    monkeypatch.setattr(decide.Decider, "sit_all", lambda *_: None)
    monkeypatch.setattr(decide.Decider, "complete", lambda _: done.append("the others"))
    monkeypatch.setattr(decide.Decider, "measure", lambda *_: (done.append("the claim"), undecided.clear()))
    for minutes, order in ((9.0, ["the claim", "the others"]), (11.0, ["the others", "the claim"])):
        undecided.append(Undecided("X1", (half, plain), Needed(rounds=3, minutes=minutes, passes=2)))
        done.clear()
        decide.Decider(plan, tmp_path, print).run()
        assert done == order


def test_a_count_that_is_the_same_each_time_is_known_after_one_round(
    lab: Any, machine: Machine, tmp_path: Path
) -> None:
    """Even of cells that need three rounds otherwise: bytes of weights do not vary."""
    rows = [pd.DataFrame({"round": ["a"], "pass": 0, "weights_bytes": [n], "weight": 1.0}) for n in (500.0, 1000.0)]
    once = comparing.ratio(rows, "weights_bytes", paired.RESTLESS)
    assert once.looks[-1].ends is None
    (known,) = once.of_counts().looks
    assert known.ends == pytest.approx((0.5, 0.5))
    varies = comparing.ratio([rows[0].assign(weights_bytes=[1.0]), rows[1]], "weights_bytes")
    assert varies._replace(rounds=(*once.rounds, *varies.rounds)).of_counts().looks == varies.looks
    study = STUDY.replace("metric: decode_tok_s, of: speed/half", "metric: weights_bytes, of: speed/half")
    plan = lab.plan(study.replace("expect: below", "expect: same", 1), more=BUDGET)
    decider, _ = decided(plan, tmp_path / "rounds")
    first = dict(list(decider.rounds.items())[: len(plan.groups)])
    table = aggregate.aggregate(in_groups(plan), Ceilings(), rounds=first)
    assert {claim.id: claim.verdict for claim in judge(plan, table).claims}["X1"] == "supported"


def test_a_number_above_its_ceiling_says_whether_it_or_the_ceiling_is_in_doubt(
    lab: Any, machine: Machine, tmp_path: Path
) -> None:
    """A slow minute slows both: each round has the limits that were read in it; the best of all is the machine's."""
    plan = lab.plan(STUDY.partition("  other:")[0] + "claims: []\n", more=BUDGET)
    plain, half = (cell_id(plan, f"speed/{name}") for name in ("plain", "half"))  # steps of 10 and 20 ms
    decider, _ = decided(plan, tmp_path / "rounds")

    def flags(step_weights: int, *read: float) -> dict[str, set[str]]:
        rounds = {}
        for (path, record), rate in zip(decider.rounds.items(), read, strict=False):
            memory = {"step_weights": step_weights, "kv_cache": 0}
            arms = tuple(
                arm.model_copy(update={"result": arm.result.model_copy(update={"memory": memory})})
                for arm in record.arms
            )
            rates = ({"read": rate / 2, "float32": 1e15}, {"read": rate, "float32": 1e14})
            rounds[path] = record.model_copy(update={"arms": arms, "rates": rates})
        table = aggregate.aggregate(in_groups(plan), Ceilings(), rounds=rounds)
        assert table.loc[table["cell"] == plain, "ceiling_ms"].iloc[0] == pytest.approx(step_weights / read[0] * 1e3)
        return {id: set(judge(plan, table).cells[id].flags) for id in (plain, half)}

    number = "above its ceiling, the best that this machine was ever seen to do: the number is in doubt"
    reading = "above its ceiling as read in the same round, not above this machine's best: the reading is in doubt"
    assert len(decider.rounds) > 1
    assert flags(15_000_000, 1e9, 1e9) == {plain: {number}, half: set()}
    assert flags(15_000_000, 1e9, 2e9) == {plain: {reading}, half: set()}
    assert flags(15_000_000, 2e9, 2e9) == {plain: set(), half: set()}
    assert flags(50_000_000, 1e9, 1e9) == {plain: {number}, half: {number}}


def test_an_arm_is_asked_for_with_what_it_needs_and_with_what_is_known_of_it(
    lab: Any, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = lab.plan(STUDY.partition("  other:")[0] + "claims: []\n", more=BUDGET)
    decider, _ = decided(plan, tmp_path / "rounds")
    first, later = machine.asked[0], machine.asked[-1]
    assert all(arm.generation_s is None and arm.python is None for arm in first.arms)
    assert all(arm.generation_s is not None and arm.generation_s > 0 for arm in later.arms)
    half = cell_id(plan, "speed/half")
    monkeypatch.setattr(null_model, "ENVIRONMENT", "vllm")
    python = decider.request(half, "half").python
    assert python == "resources/environments/vllm/bin/python"
    assert "resources/environments/vllm/stamp.json" in _inputs_of(plan)


def _inputs_of(plan: Plan) -> list[str]:
    flow = jobs.Workflow.__new__(jobs.Workflow)
    flow.plan = plan
    return flow.in_rounds


def test_what_is_said_at_the_end_is_what_the_report_says(
    lab: Any, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last round may be no planned look: whoever might measure on does not see it, and the report does."""
    study = STUDY.partition("  other:")[0] + STUDY[STUDY.index("claims:") : STUDY.index("  - id: X2")]
    plan = lab.plan(study, more=BUDGET)
    decider, _ = decided(plan, tmp_path / "rounds")
    monkeypatch.setattr(comparing.Comparison, "at_planned_looks", lambda self: self._replace(looks=self.looks[:0]))
    assert [check.claim for check in decider.progress().undecided] == ["X1"]
    assert decider.progress(is_over=True).text == "1 of 1 claims decided"
