"""A search between swept batches: every trial halves the gap, and what it cannot tell it does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from claimbench.errors import ConfigError, ResultError
from claimbench.measuring.frontier import search
from claimbench.schema.frontier import Frontier, Trial, describe, read


def trial(batch: int, outcome: str = "ok", swept: bool = True) -> Trial:
    return Trial(batch=batch, outcome=outcome, reason=None, swept=swept)


def machine(fits: int, *, breaks_at: int | None = None) -> Any:
    """Attempts on a machine that holds `fits` rows, and the batches that were tried."""
    tried: list[int] = []

    def attempt(batch: int) -> Trial:
        tried.append(batch)
        outcome = "timeout" if batch == breaks_at else "ok" if batch <= fits else "oom"
        return trial(batch, outcome, swept=False)

    return attempt, tried


@pytest.mark.parametrize("fits", range(32, 64))
def test_every_frontier_between_two_swept_batches_is_found_in_five_trials(fits: int) -> None:
    attempt, tried = machine(fits)
    found = search([trial(16), trial(32), trial(64, "oom"), trial(128, "implied-oom")], attempt)
    assert (found.fits, found.fails, found.reason) == (fits, fits + 1, None)
    assert found.searched == len(tried) == 5
    assert len({one.batch for one in found.trials}) == 9


@pytest.mark.parametrize(
    ("swept", "ends", "reason"),
    [
        ([trial(8), trial(16)], (16, None), "no batch of the sweep was out of memory"),
        ([trial(8, "oom"), trial(16, "implied-oom")], (None, 8), "no batch of the sweep fitted"),
        ([trial(8, "unavailable"), trial(16, "unavailable")], (None, None), "no batch of the sweep could be tried"),
    ],
)
def test_without_two_ends_nothing_is_tried(swept: list[Trial], ends: tuple[Any, Any], reason: str) -> None:
    attempt, tried = machine(100)
    found = search(swept, attempt)
    assert ((found.fits, found.fails), found.reason, tried) == (ends, reason, [])


def test_neighbours_need_no_trial() -> None:
    attempt, tried = machine(1)
    assert describe(search([trial(1), trial(2, "oom")], attempt)) == "Batch 1 fits and 2 does not."
    assert tried == []


def test_wrong_outputs_took_their_memory_all_the_same() -> None:
    attempt, _ = machine(3)
    assert search([trial(2, "wrong"), trial(4, "oom")], attempt).fits == 3


def test_a_trial_that_ends_otherwise_ends_the_search_with_its_reason() -> None:
    attempt, tried = machine(10, breaks_at=12)
    found = search([trial(8), trial(16, "oom")], attempt)
    assert (found.fits, found.fails, tried) == (8, 16, [12])
    assert describe(found) == "Between the swept batches: not found, batch 12 ended timeout: None."


def test_a_file_that_is_no_search_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "frontier.json"
    path.write_text('{"fits": "many"}', encoding="utf-8")
    with pytest.raises(ResultError, match=r"not a search of this version of Claimbench .*frontier\.json"):
        read(path)


SWEEP = """
experiments:
  fit:
    question: How many rows fit?
    sweep: {batch: [2, 8], new_tokens: [3, 4]}
    frontier: bisect
    cells: {few: {options: {fits_batch: 5}}, all: {}}
claims:
  - id: F
    kind: shape
    statement: Eight rows do not fit
    checks: [{kind: frontier, of: fit/few, hardware: Example CPU, published: 2}]
"""


def test_each_row_of_batches_has_a_search_of_its_own(lab: Any) -> None:
    plan = lab.plan(SWEEP)
    rows = plan.studies["study"].rows["fit"]
    assert len(plan.frontiers) == 4
    assert rows["few@batch=2,new_tokens=3"].frontier == rows["few@batch=8,new_tokens=3"].frontier
    assert rows["few@batch=2,new_tokens=3"].frontier != rows["few@batch=2,new_tokens=4"].frontier
    (id,) = {
        row.frontier
        for row in rows.values()
        if row.cell in plan.frontiers[rows["all@batch=2,new_tokens=3"].frontier].cells
    }
    batches = [plan.cells[cell].cell.workload.batch for cell in plan.frontiers[id].cells]
    assert batches == [2, 8]


def test_a_search_without_batches_is_an_error_of_the_study(lab: Any) -> None:
    with pytest.raises(ConfigError, match="frontier: expected a sweep over 'batch' to search in"):
        lab.plan(SWEEP.replace("batch: [2, 8], ", ""))


def test_a_claim_about_a_frontier_says_what_was_found_between(lab: Any) -> None:
    from claimbench.judging import judge

    plan = lab.plan(SWEEP.replace(", new_tokens: [3, 4]", ""))
    id = plan.row("study", "fit/few@batch=2").frontier
    found = Frontier(
        fits=5, fails=6, trials=(trial(2), trial(8, "oom"), trial(5, swept=False), trial(6, "oom", swept=False))
    )
    table = lab.table(plan)
    (claim,) = judge.judge(plan, table, frontiers={id: found}).claims
    assert claim.verdict == "supported"
    assert "Between the swept batches, 5 fits and 6 does not (2 trials)." in claim.checks[0].sentence
    (claim,) = judge.judge(plan, table).claims
    assert "Between" not in claim.checks[0].sentence


def test_a_forecast_says_how_many_rows_could_fit_here_and_on_the_document_s_hardware(lab: Any) -> None:
    from claimbench.planning import forecast

    asked = SWEEP.partition("claims:")[0].replace(
        "few: {options: {fits_batch: 5}}, all: {}", "one: {backend: transformers}"
    )
    plan = lab.plan(asked.replace(", new_tokens: [3, 4]", ""), machine={"key": "cpu0", "memory_gb": 25})
    (bound,) = forecast.batch_bounds(plan)
    assert bound.memory_bytes == 25e9
    assert (
        bound.fixed_bytes + bound.batch * bound.row_bytes
        <= 25e9
        < bound.fixed_bytes + (bound.batch + 1) * bound.row_bytes
    )
    assert forecast.bound_text(bound).startswith(f"study: fit/one on 1 x this cpu: {bound.batch} (538.1 MB + ")
