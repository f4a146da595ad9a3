"""Whatever a cell has otherwise than its document is seen by comparing the two, and stands at the verdict."""

from __future__ import annotations

from typing import Any

import pytest

from claimbench.planning import deviations
from claimbench.planning.plan import make_plan
from claimbench.schema import study as study_file
from claimbench.schema.cell import Cell, Checkpoint, Protocol, Workload
from claimbench.schema.params import load_params
from claimbench.schema.plan import Row
from claimbench.schema.setting import Setting
from claimbench.schema.validation import parse_yaml, validate

STUDY = """
title: A study
document: {title: A document, setting: %s}
prompts: {story: Once upon a time, several: [Once, "Twice, and once more"]}
defaults: {checkpoint: real, prompt: story, new_tokens: 40, dtype: bfloat16}
experiments: {speed: {question: "How fast?", setting: %s, cells: {plain: %s}}}
"""
CHECKPOINTS = {
    "real": {"source": "file:///model", "architecture": "smollm2-135m"},
    "random": {"source": "random://smollm2-135m?seed=0", "architecture": "smollm2-135m"},
    "large": {"source": "file:///large", "architecture": "mistral-7b"},
    "draft": {"source": "file:///model", "architecture": "smollm2-135m", "keep_layers": 6},
}
MACHINE: Any = {"key": "k", "cpu": {"model": "Example CPU"}, "gpus": [{"name": "NVIDIA A10G"}]}


def row(
    setting: str = "{}",
    cell: str = "{}",
    of_experiment: str = "{}",
    device: Any = "cpu",
    budget: float = 0,
    **more: Any,
) -> Row:
    study = validate(study_file.Study, parse_yaml(STUDY % (setting, of_experiment, cell), "study"), "study")
    study = study.model_copy(update={"measure": study_file.MeasureOverrides(budget_minutes=budget or None)})
    params = load_params({"studies": ["study"], "checkpoints": CHECKPOINTS, **more})
    return make_plan(params, {"study": study}, MACHINE, device).row("study", "speed/plain")


def texts(*arguments: Any, **named: Any) -> list[str]:
    return [deviation.text for deviation in row(*arguments, **named).deviations]


def test_what_runs_as_the_document_has_it_deviates_in_nothing() -> None:
    same = "{hardware: A10G, model: real, dtype: bfloat16, new_tokens: 40, batch: 1, attention: eager}"
    assert texts(same, device="cuda") == []


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("{hardware: A10G}", "device: Example CPU in place of A10G"),
        ("{hardware: 'A100.*80GB'}", "device: Example CPU in place of A100 80GB"),
        ("{model: large}", "model: real (smollm2-135m) in place of large (mistral-7b)"),
        ("{model: gone}", "model: real (smollm2-135m) in place of gone"),
        ("{dtype: float16}", "dtype: bfloat16 in place of float16"),
        ("{attention: sdpa}", "attention: eager in place of sdpa"),
        ("{batch: 2}", "batch: 1 in place of 2"),
        ("{prompt_tokens: 8}", "prompt tokens: None in place of 8"),
        ("{new_tokens: 1000}", "new tokens: 40 in place of 1000"),
        ("{prompt: Twice upon a time}", "prompt: 'Once upon a time' in place of 'Twice upon a time'"),
        ("{cache_length: 4096}", "cache length: a cache that grows in place of 4096"),
        ("{system: text-generation-inference}", "system: transformers in place of text-generation-inference"),
        ("{options: {injection: true}}", "options: injection not set in place of on"),
        ("{warmups: 10, warmup_tokens: 35}", "warm-up: 1 to 3 whole ones in place of 10 of 35 tokens"),
        ("{samples: 50}", "samples: 9 in place of 50"),
        ("{statistic: mean}", "statistic: the mean of blocks' medians in place of mean"),
    ],
)
def test_each_thing_that_differs_is_said_in_one_line(setting: str, text: str) -> None:
    assert text in texts(setting)
    assert text in texts(of_experiment=setting)
    assert text in texts(cell=f"{{setting: {setting}}}")


def test_the_nearer_setting_counts() -> None:
    assert texts("{dtype: float16}", "{setting: {dtype: bfloat16}}", "{dtype: float32}") == []


def test_versions_are_compared_with_those_that_are_installed() -> None:
    assert texts("{versions: {transformers: '>=4.21.3', torch: '>=2.0'}}") == []
    (found,) = texts("{versions: {transformers: 4.36.0}}")
    assert found.startswith("versions: transformers 5.")
    assert found.endswith("in place of 4.36.0")
    assert texts("{versions: {some-server: 1.3.3}}") == [
        "versions: some-server a version that the plan does not know in place of 1.3.3"
    ]


def test_swaps_and_limits_are_seen_without_any_setting() -> None:
    assert texts(swap={"real": "random"}) == ["weights: random ones (random) in place of trained ones (real)"]
    assert texts(limits={"new_tokens": 8}) == ["new tokens: 8 in place of 40"]
    assisted = "{optimizations: [{assisted: {draft: real}}], checkpoint: large}"
    assert texts(cell=assisted, swap={"real": "draft"}) == [
        "draft: draft (smollm2-135m) in place of real (smollm2-135m)"
    ]


def test_rounds_are_no_fifty_samples() -> None:
    found = texts("{samples: 50, statistic: mean}", budget=5.0)
    assert "samples: what 5 minutes of turns give in place of 50" in found
    assert "statistic: medians of rounds in turn in place of mean" in found


def test_a_document_s_own_protocol_deviates_in_nothing() -> None:
    setting = "{warmups: 10, warmup_tokens: 35, samples: 50, statistic: mean}"
    own = "{blocks: 1, protocol: {warmups: 10, warmup_tokens: 35, samples: 50}}"
    assert texts(setting, own, budget=5.0) == []


@pytest.mark.parametrize(
    ("uses", "attention"),
    [([], "eager"), ([{"name": "sdpa", "settings": {"kernel": "math"}}], "sdpa, math kernel")],
)
def test_attention_is_read_off_the_techniques(uses: list[Any], attention: str) -> None:
    checkpoint = Checkpoint(name="real", source="file:///model")
    cell = Cell(
        checkpoint=checkpoint,
        backend="transformers",
        optimizations=uses,
        workload=Workload(prompt="x", new_tokens=1),
        device="cpu",
    )
    assert deviations.attention_of(cell) == attention
    assert deviations.attention_of(cell.model_copy(update={"backend": "engine", "optimizations": ()})) is None


def test_only_other_work_keeps_a_figure_from_being_compared() -> None:
    setting = "{hardware: H100, samples: 50, dtype: float16}"
    assert [each.of for each in row(setting).deviations if each.is_other_work] == ["dtype"]


def test_later_fields_leave_older_cells_their_ids() -> None:
    common: dict[str, Any] = {
        "checkpoint": Checkpoint(name="a", source="file:///a"),
        "backend": "transformers",
        "device": "cpu",
    }
    plain = Cell(workload=Workload(prompt="x", new_tokens=1), **common)
    several = Cell(workload=Workload(prompt="x", others=("y",), new_tokens=1), **common)
    own = Cell(workload=Workload(prompt="x", new_tokens=1), protocol=Protocol(warmup_tokens=35), **common)
    assert len({plain.id, several.id, own.id}) == 3
    assert Setting().with_nearer(Setting(batch=2)).batch == 2
