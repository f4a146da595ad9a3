"""check, compare and explain, on folders that are whole, damaged, of other cells, or no folders of results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.handed_over import STUDY, results_in
from tests.unit.projects import Say

from claimbench.exchange import compare
from claimbench.measuring.selftest import CHECKPOINT
from claimbench.schema.cell import Cell, OptimizationUse, Workload
from claimbench.schema.interval import Interval
from claimbench.schema.outcome import Outcome

ROOT = Path(__file__).parents[2]
COMMITTED = [
    ROOT / "reports/quickstart-gemma-3-270m-amd-epyc-2-cores",
    ROOT / "reports/quickstart-amd-epyc-2-cores",
]


def states(out: str) -> dict[str, str]:
    """Part -> state, of what `check` printed."""
    return {line[:12].strip(): line[12:].split()[0] for line in out.splitlines()[1:]}


def test_a_whole_folder_passes_wherever_it_is_named_from(lab: Any, say: Say) -> None:
    results_in(lab, lab.folder / "theirs")
    for named in ("theirs", "theirs/results"):
        status, out, _ = say("check", named)
        assert status == 0
        assert set(states(out).values()) == {"ok"}
    assert "every number" in out


@pytest.mark.parametrize("folder", COMMITTED, ids=str)
def test_the_results_beside_committed_reports_pass(folder: Path, say: Say) -> None:
    status, out, _ = say("check", str(folder))
    assert status == 0, out
    assert "made again  ok" in out


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


DAMAGE: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "an edited result": (
        lambda at: edit(first(at, "measure/*/*/1.json"), lambda text: text.replace('"wall_ns":', '"wall_ns":1', 1)),
        4,
        "results",
    ),
    "a result cut short": (lambda at: edit(first(at, "measure/*/*/0.json"), lambda text: text[:200]), 4, "results"),
    "a result in another's place": (
        lambda at: first(at, "measure/*/*/0.json").write_bytes(first(at, "measure/*/*/1.json").read_bytes()),
        4,
        "results",
    ),
    "a missing result": (lambda at: first(at, "measure/*/*/2.json").unlink(), 5, "results"),
    "edited verdicts": (
        lambda at: edit(at / "verdicts.json", lambda text: text.replace('"supported"', '"refuted"')),
        4,
        "verdicts",
    ),
    "no verdicts": (lambda at: (at / "verdicts.json").unlink(), 5, "verdicts"),
    "an edited plan": (lambda at: edit(first(at, "plan/*"), lambda text: text.replace("9", "8", 1)), 4, "plan"),
    "edited ceilings": (
        lambda at: edit(first(at, "ceilings/*"), lambda text: text.replace("4", "5", 1)),
        4,
        "ceilings",
    ),
    "no ceilings": (lambda at: first(at, "ceilings/*").unlink(), 5, "ceilings"),
    "a table that is none": (lambda at: (at / "table.parquet").write_bytes(b"x"), 4, "table"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_or_missing_is_named(name: str, lab: Any, say: Say) -> None:
    damage, expected, part = DAMAGE[name]
    results_in(lab, lab.folder / "theirs")
    damage(lab.folder / "theirs/results")
    status, out, err = say("check", "theirs")
    assert status == expected, out + err
    assert any(line.split()[:2] in ([part, "bad"], [part, "missing"]) for line in out.splitlines()), out
    assert "every number" not in out
    assert "Delete it" not in out, "these are results of somebody else"


def test_verdicts_that_do_not_follow_from_the_results_are_found_though_their_seals_are_whole(
    lab: Any, say: Say
) -> None:
    from claimbench.schema import verdicts

    results_in(lab, lab.folder / "theirs")
    path = lab.folder / "theirs/results/verdicts.json"
    read = verdicts.read(path)
    claims = tuple(claim.model_copy(update={"verdict": verdicts.Verdict.REFUTED}) for claim in read.claims)
    verdicts.write(path, read.model_copy(update={"claims": claims}))
    status, out, err = say("check", "theirs")
    assert status == 4
    assert "P1 is supported and not refuted" in out
    assert "cannot be trusted" in err


@pytest.mark.parametrize(
    "command", [["check"], ["compare", "whole"], ["claims", "--results"], ["explain", "x", "--folder"]]
)
def test_what_is_no_folder_of_results_is_told_in_one_line(command: list[str], lab: Any, say: Say) -> None:
    results_in(lab, lab.folder / "whole")
    (lab.folder / "empty").mkdir()
    (lab.folder / "file").write_text("x", encoding="utf-8")
    for named, words in (("nowhere", "nowhere"), ("empty", "empty"), ("file", "file")):
        status, out, err = say(*command, named)
        assert status in (2, 4)
        assert out == ""
        assert err.count("\n") == 1
        assert words in err


def test_the_same_cells_of_two_folders_get_a_ratio_and_a_slower_one_a_status(lab: Any, say: Say) -> None:
    results_in(lab, lab.folder / "a", key="cpu0")
    results_in(lab, lab.folder / "b", key="cpu1")
    status, out, err = say("compare", "a", "b")
    assert status == 0, out + err
    assert "two machines" in out
    assert "0 verdicts flipped" in err
    (fast,) = [line for line in out.splitlines() if "pace/fast" in line]
    assert "1.00" in fast


def slower_invent(lab: Any, folder: Path, step_ms: float) -> None:
    """The same cells, measured at another pace, as a slower library would."""
    from tests.unit import conftest

    usual = conftest.measured

    def slow(planned: Any, block: int) -> Any:
        found = usual(planned, block)
        if planned.cell.options.get("step_ms") != 3:
            return found
        longer = tuple(
            one.model_copy(update={"step_ns": (one.step_ns[0], *(int(step_ms * 1e6 + n) for n in range(4)))})
            for one in found.samples
        )
        return found.model_copy(update={"samples": longer})

    write = lab.write
    lab.write = lambda plan: write(plan, slow)
    try:
        results_in(lab, folder)
    finally:
        lab.write = write


def test_a_slower_cell_and_a_verdict_that_flipped_give_status_5(lab: Any, say: Say) -> None:
    results_in(lab, lab.folder / "a")
    slower_invent(lab, lab.folder / "b", 30)
    status, out, err = say("compare", "a", "b", "--metric", "decode_tok_s", "weights_bytes")
    assert status == 5
    assert any("pace/fast" in line and " worse" in line for line in out.splitlines())
    assert any("pace/slow" in line and " worse" not in line for line in out.splitlines())
    assert "supported -> refuted" in out
    assert "1 verdicts flipped" in err
    assert say("compare", "b", "a")[0] == 5, "a verdict flipped, for the better even so"
    status, out, _ = say("compare", "a", "b", "--json")
    assert {one["state"] for one in json.loads(out)} >= {"worse"}


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (STUDY.replace("slow: {", "slow: {new_tokens: 6, "), "new_tokens"),
        (
            STUDY.replace("slow: {", "slow: {checkpoint: large, "),
            "model small and large",
        ),
        (STUDY.replace("slow:", "slowest:").replace("pace/slow", "pace/slowest"), "not in"),
    ],
)
def test_cells_that_are_not_the_same_are_refused_with_the_difference(
    study: str, words: str, lab: Any, say: Say
) -> None:
    results_in(lab, lab.folder / "a")
    results_in(lab, lab.folder / "b", study=study % {"fast": 3})
    status, out, _ = say("compare", "a", "b")
    assert status == 0
    refused = [line for line in out.splitlines() if " refused " in line]
    assert any(words in line for line in refused)
    assert all("pace/fast" not in line for line in refused)


def test_a_claim_about_other_cells_is_no_flip(say: Say) -> None:
    status, out, err = say("compare", *map(str, COMMITTED))
    assert status == 4
    assert "nothing in" in err
    assert "supported -> refuted" in out
    flips = [line for line in out.splitlines() if line.startswith("quickstart") and " -> " in line]
    assert flips
    assert all("not compared" in line for line in flips)


def test_an_edited_claim_is_not_compared(lab: Any, say: Say) -> None:
    results_in(lab, lab.folder / "a")
    results_in(lab, lab.folder / "b", study=(STUDY % {"fast": 3}).replace("expect: above", "expect: below"))
    status, out, _ = say("compare", "a", "b")
    assert status == 0
    assert "edited: not compared" in out


def test_a_cell_that_no_longer_runs_is_worse(lab: Any, say: Say) -> None:
    from tests.unit import conftest

    results_in(lab, lab.folder / "a")
    write = lab.write

    def out_of_memory(planned: Any, block: int) -> Any:
        if planned.cell.options.get("step_ms") == 9:
            return conftest.measured(planned, block).model_copy(
                update={"outcome": Outcome.OOM, "reason": "no memory", "samples": ()}
            )
        return conftest.measured(planned, block)

    lab.write = lambda plan: write(plan, out_of_memory)
    results_in(lab, lab.folder / "b")
    status, out, _ = say("compare", "a", "b")
    assert status == 5
    assert any("pace/slow" in line and "worse" in line and "ok and oom: no memory" in line for line in out.splitlines())


def test_verdicts_of_another_plan_are_refused(lab: Any, say: Say) -> None:
    results_in(lab, lab.folder / "a")
    results_in(lab, lab.folder / "b", key="cpu1")
    (lab.folder / "b/results/verdicts.json").replace(lab.folder / "a/results/verdicts.json")
    for asked in (["compare", "a", "a"], ["combine", "a"]):
        status, out, err = say(*asked)
        assert (status, out) == (4, "")
        assert "does not follow from the plan" in err


def test_other_weights_are_refused(lab: Any, say: Say) -> None:
    from tests.unit import conftest

    write = lab.write
    for name, sha256 in (("a", "1" * 64), ("b", "2" * 64)):
        lab.write = lambda plan, sha256=sha256: write(
            plan, lambda *each: conftest.measured(*each, checkpoint_sha256=sha256)
        )
        results_in(lab, lab.folder / name)
    status, out, _ = say("compare", "a", "b")
    assert status == 4
    assert "other weights were loaded (111111111111 and 222222222222)" in out


def test_the_interval_of_a_ratio_holds_both_intervals() -> None:
    found = compare.ratio(Interval(20, 18, 22, 3), Interval(10, 9.5, 10.5, 3))
    assert found.estimate == 2
    assert found.low is not None
    assert found.high is not None
    assert 20 / 10.5 > found.low > 18 / 10.5
    assert 20 / 9.5 < found.high < 22 / 9.5
    exact = compare.ratio(Interval(20, 20, 20, 3), Interval(10, 9.5, 10.5, 3))
    assert exact.low == pytest.approx(20 / 10.5)
    assert compare.ratio(Interval(20), Interval(10, 9, 11, 3)).ends is None
    wider = compare.ratio(Interval(20, 18, 22, 3), Interval(10, 9.5, 10.5, 3), 0.999)
    assert wider.low is not None
    assert wider.low < found.low


def test_a_cell_leads_to_its_files_and_to_every_sample(lab: Any, say: Say) -> None:
    plan = results_in(lab, lab.folder / "a")
    status, out, _ = say("explain", "pace/fast", "--folder", "a", "--samples")
    assert status == 0
    id = next(row.cell for row in plan.studies["study"].rows["pace"].values() if row.label == "fast")
    for block in range(3):
        assert f"{id}/{plan.cells[id].key.id}/{block}.json: block {block}, ok" in out
    assert out.count("first token, ms") == 3
    assert "claim P1, supported" in out
    for asked in ("study:pace/fast", "study: pace/fast", "fast", id[:8]):
        assert say("explain", asked, "--folder", "a")[1].splitlines()[0] == "study: pace/fast"
    status, _, err = say("explain", "pace/fats", "--folder", "a")
    assert status == 2
    assert "Did you mean" in err
    assert "pace/fast" in err
    assert "error: asked for kill" in say("explain", "lost", "--folder", "a")[1]


def test_a_damaged_result_is_named_and_the_others_are_shown(lab: Any, say: Say) -> None:
    results_in(lab, lab.folder / "a")
    path = first(lab.folder / "a/results", "measure/*/*/1.json")
    path.write_text("{}", encoding="utf-8")
    labels = [say("explain", label, "--folder", "a") for label in ("fast", "slow", "lost")]
    assert sorted(status for status, _, _ in labels) == [0, 0, 4]
    (told,) = [(out, err) for status, out, err in labels if status == 4]
    assert path.name in told[1]
    assert "block 0" in told[0]
    assert "block 2" in told[0]


def test_a_cell_without_results_says_so(project: Path, say: Say) -> None:
    from tests.unit.projects import written

    written("random://tiny-llama?seed=0")
    status, out, _ = say("explain", "one/only")
    assert status == 0
    assert "would run here" in out
    assert "no results yet" in out
    status, _, err = say("explain", "one/only", "--folder", "studies")
    assert status == 2
    assert "neither results nor a params.yaml" in err


def test_techniques_that_differ_are_told_in_full() -> None:
    work = Workload(prompt="x", new_tokens=1)
    settings = {"sdpa": {"kernel": "math"}, "prompt_lookup": {"tokens": 10}}
    names = ["sdpa", "static_cache", "compile_layer", "prompt_lookup"]
    uses = tuple(OptimizationUse(name=name, settings=settings.get(name, {})) for name in names)
    plain, one, other = (
        Cell(checkpoint=CHECKPOINT, backend="transformers", workload=work, device="cpu", optimizations=some)
        for some in ((), uses[:2], uses)
    )
    assert compare.differences(one, other) == [
        "optimizations sdpa (kernel=math) + static_cache"
        " and sdpa (kernel=math) + static_cache + compile_layer + prompt_lookup (tokens=10)"
    ]
    assert compare.differences(plain, one) == ["optimizations nothing and sdpa (kernel=math) + static_cache"]


def test_long_texts_are_told_from_where_they_differ() -> None:
    """A prompt of a few sentences whose last word is another one, and one that ends earlier."""
    shared = "The keeper of the lighthouse opened the map and looked for an island in the "
    north, south, short = (
        Cell(checkpoint=CHECKPOINT, backend="transformers", workload=Workload(prompt=text, new_tokens=1), device="cpu")
        for text in (f"{shared}north", f"{shared}south", shared.strip())
    )
    assert compare.differences(north, south) == ["workload.prompt ...nd in the north and ...nd in the south"]
    assert compare.differences(short, south) == ["workload.prompt ...and in the and ...and in the south"]
    begins = north.model_copy(update={"workload": Workload(prompt=f"X{shared}", new_tokens=1)})
    assert compare.differences(begins, south) == [
        "workload.prompt XThe keeper of the lighthouse opened ... and The keeper of the lighthouse opened t..."
    ]
