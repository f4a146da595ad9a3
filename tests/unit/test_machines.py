"""Folders of several machines as one report: a column each, and no number that compares two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.handed_over import STUDY, results_in
from tests.unit.projects import Say

from claimbench.exchange import folder, machines
from claimbench.exchange.compare import Side
from claimbench.schema import ceilings
from claimbench.schema.round import Round

ROOT = Path(__file__).parents[2]
COMMITTED = [
    ROOT / "reports/quickstart-gemma-3-270m-amd-epyc-2-cores",
    ROOT / "reports/quickstart-amd-epyc-2-cores",
]


def sides(*names: str | Path) -> list[Side]:
    return [Side(folder.find(Path(name))) for name in names]


def rows(grid: machines.Grid) -> dict[str, list[str]]:
    return dict(grid.rows)


def test_each_machine_has_a_column_and_the_same_cell_a_row(lab: Any, say: Say) -> None:
    for key in ("cpu0", "cpu1", "cpu2"):
        results_in(lab, lab.folder / key, key=key)
    status, out, _ = say("combine", "cpu0", "cpu1", "cpu2", "--output", "made/machines.md")
    assert (status, out) == (0, "the report: made/machines.md\n")
    text = Path("made/machines.md").read_text(encoding="utf-8")
    assert text.startswith("# 3 machines, one report")
    assert "| cell | CPU cpu0 | CPU cpu1 | CPU cpu2 |" in text
    (fast,) = [line for line in text.splitlines() if line.startswith("| pace/fast |") and "33" in line]
    assert fast.count("|") == 5
    assert "–" not in fast
    (lost,) = {line for line in text.splitlines() if line.startswith("| pace/lost |")}
    assert lost.count("error: asked for kill") == 3
    assert text.count("**supported**") == 3
    say("combine", "cpu0", "cpu1", "cpu2", "--output", "again.md")
    assert Path("again.md").read_text(encoding="utf-8") == text


def test_another_cell_and_a_claim_about_it_have_rows_of_their_own(lab: Any) -> None:
    results_in(lab, lab.folder / "a")
    results_in(lab, lab.folder / "b", key="cpu1", study=(STUDY % {"fast": 3}).replace("slow: {", "slow: {batch: 2, "))
    both = sides("a", "b")
    (grid,) = machines.cells(both, "decode_tok_s")
    found = rows(grid)
    assert found["pace/slow"][1] == machines.NONE
    assert found["pace/slow, with workload.batch 2"][0] == machines.NONE
    assert machines.NONE not in found["pace/fast"]
    (claims,) = machines.claims(both)
    assert all(row.count(machines.NONE) == 1 for row in rows(claims).values())
    assert len(claims.rows) == 2


def test_another_model_never_shares_a_row_with_the_first(say: Say) -> None:
    both = sides(*COMMITTED)
    for grid in [*machines.claims(both), *machines.cells(both, "decode_tok_s")]:
        assert all(row.count(machines.NONE) == 1 for row in rows(grid).values()), grid.title
    (decode, *_) = machines.cells(both, "decode_tok_s")
    assert "decode/plain, with model smollm2" in rows(decode)


def test_other_weights_have_a_row_of_their_own(lab: Any) -> None:
    from tests.unit import conftest

    write = lab.write
    for name, sha256 in (("a", "1" * 64), ("b", "2" * 64)):
        lab.write = lambda plan, sha256=sha256: write(
            plan, lambda *each: conftest.measured(*each, checkpoint_sha256=sha256)
        )
        results_in(lab, lab.folder / name)
    (grid,) = machines.cells(sides("a", "b"), "decode_tok_s")
    assert "pace/fast, with weights 222222222222" in rows(grid)


def test_a_claim_that_was_edited_has_a_row_for_each_wording(lab: Any) -> None:
    results_in(lab, lab.folder / "a")
    results_in(lab, lab.folder / "b", study=(STUDY % {"fast": 3}).replace("expect: above", "expect: below"))
    (grid,) = machines.claims(sides("a", "b"))
    assert len(grid.rows) == 2


def test_ceilings_are_the_range_over_rounds_and_what_was_read_alone(lab: Any, monkeypatch: Any) -> None:
    results_in(lab, lab.folder / "a")
    (side,) = sides("a")
    readings = [({"read": 70.6e9}, {"read": 48.1e9}), ({"read": 74.7e9, "float32": 2e12},), ()]
    rounds = {
        f"results/rounds/{number}.json": Round(
            started_at="2024-01-01T00:00:00+00:00", duration_s=1, seed=0, passes=1, arms=(), rates=rates
        )
        for number, rates in enumerate(readings)
    }
    side.folder.__dict__["rounds"] = rounds
    side.folder.__dict__["ceilings"] = ceilings.Ceilings(device="cpu", machine="cpu0", read_bytes_per_s=40e9)
    assert rows(machines.ceilings([side])) == {
        "memory read, GB/s, alone": ["40.0"],
        "memory read, GB/s, in rounds": ["70.6 to 74.7 (2 rounds)"],
        "products in float32, GFLOP/s, in rounds": ["2,000"],
    }


def test_figures_of_others_stand_apart_and_a_damaged_one_is_named(lab: Any, say: Say) -> None:
    results_in(lab, lab.folder / "a")
    sample = Path(__file__).parent / "data/measured_elsewhere/llama-bench.json"
    say("import", str(sample), "--output", "a/results/measured_elsewhere")
    say("combine", "a", "--output", "m.md")
    before, _, after = Path("m.md").read_text(encoding="utf-8").partition("## Measured by others")
    assert "llama-bench" not in before
    assert after.count("llama-bench.json") == 2
    path = sorted(Path("a/results/measured_elsewhere").iterdir())[0]
    path.write_text("{}", encoding="utf-8")
    status, _, err = say("combine", "a", "--output", "m.md")
    assert status == 4
    assert path.name in err
    assert Path("m.md").read_text(encoding="utf-8").count("llama-bench.json") == 1


@pytest.mark.parametrize("damage", ["verdicts.json", "plan"])
def test_a_folder_that_cannot_be_trusted_ends_it_and_writes_nothing(damage: str, lab: Any, say: Say) -> None:
    results_in(lab, lab.folder / "a")
    path = Path("a/results") / damage
    path = next(path.iterdir()) if path.is_dir() else path
    path.write_text("{}", encoding="utf-8")
    status, out, err = say("combine", "a", "--output", "m.md")
    assert (status, out) == (4, "")
    assert err.count("\n") == 1
    assert not Path("m.md").exists()
