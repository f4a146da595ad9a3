"""A mistake in params.yaml or in a study is one sentence: file, key path, what was expected, what arrived."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from claimbench.errors import ConfigError
from claimbench.planning import plan
from claimbench.schema import params, validation
from claimbench.schema.cell import Workload
from claimbench.schema.plan import Plan
from claimbench.schema.study import Study

Change = Callable[[dict[str, Any]], Any]

PARAMS: dict[str, Any] = {
    "studies": ["small"],
    "checkpoints": {
        "real": {"source": "hf://org/name@main", "architecture": "smollm2-135m"},
        "random": {"source": "random://smollm2-135m?seed=0", "architecture": "smollm2-135m"},
        "large": {"source": "random://mistral-7b?seed=0", "architecture": "mistral-7b"},
    },
}
STUDY: dict[str, Any] = {
    "title": "A small study",
    "document": {"title": "None"},
    "prompts": {"hello": "Hello", "long": "Once upon a time"},
    "defaults": {"checkpoint": "real", "prompt": "hello", "new_tokens": 4},
    "experiments": {
        "speed": {
            "question": "Which is faster?",
            "cells": {"plain": {}, "cached": {"optimizations": ["static_cache"], "published": {"tok_s": 25.97}}},
        },
        "batching": {"question": "How many?", "cells": {"plain": {}}, "sweep": {"batch": [1, 8, 64]}},
    },
    "claims": [
        {
            "id": "T1",
            "kind": "ratio",
            "statement": "It is faster",
            "checks": [
                {"kind": "ratio", "metric": "tok_s", "of": "speed/cached", "to": "speed/plain", "expect": "above"},
                {
                    "kind": "shape",
                    "metric": "step_ms",
                    "of": "batching/plain",
                    "over": "batch",
                    "expect": {"at_most": 0.5},
                },
            ],
        }
    ],
}


def changed(value: dict[str, Any], change: Change) -> dict[str, Any]:
    fresh = copy.deepcopy(value)
    change(fresh)
    return fresh


def nothing(document: dict[str, Any]) -> None:
    """The change that changes nothing."""


def planned(of_params: Change = nothing, of_study: Change = nothing, device: Any = "cpu") -> Plan:
    values = params.load_params(changed(PARAMS, of_params))
    study = validation.validate(Study, changed(STUDY, of_study), "studies/small.yaml")
    return plan.make_plan(values, {"small": study}, {"key": "here"}, device)


def put(path: str, value: Any) -> Change:
    """A change that sets the key at `path`, whose parts are separated by dots."""

    def change(document: Any) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in parents:
            document = document[part]
        document[last] = value

    return change


def drop(path: str) -> Change:
    def change(document: Any) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in parents:
            document = document[part]
        del document[last]

    return change


def error_of(action: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        action()
    return str(caught.value)


def test_the_documents_of_these_tests_are_valid() -> None:
    assert len(planned().cells) == 4  # plain and cached, and two larger batches


CELL = "experiments.speed.cells.cached"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("titel", "x"), "titel: unknown key 'titel'. Did you mean 'title'?"),
        (put("defaults.bach", 1), "defaults.bach: unknown key 'bach'. Did you mean 'batch'?"),
        (put("experiments.speed.sweeep", {}), "experiments.speed.sweeep: unknown key 'sweeep'. Did you mean 'sweep'?"),
        (put(f"{CELL}.promt", "x"), f"{CELL}.promt: unknown key 'promt'. Did you mean 'prompt'?"),
        (put("measure", {"block": 1}), "measure.block: unknown key 'block'. Did you mean 'blocks'?"),
        (put("planned", {"backend": []}), "planned.backend: unknown key 'backend'. Did you mean 'backends'?"),
        (put("claims.0.note_", "x"), "claims.0.note_: unknown key 'note_'. Did you mean 'note'?"),
        (
            put("claims.0.checks.0.metrics", "x"),
            "claims.0.checks.0.metrics: unknown key 'metrics'. Did you mean 'metric'?",
        ),
        (
            put("claims.0.checks.1.expect", {"at_leest": 1}),
            "claims.0.checks.1.expect.at_leest: unknown key 'at_leest'. Did you mean 'at_least'?",
        ),
        (
            put("claims.0.checks.0.expect", {"at_leest": 1}),
            "claims.0.checks.0.expect.at_leest: unknown key 'at_leest'. Did you mean 'at_least'?",
        ),
        (
            put("defaults.sampling", {"temprature": 1}),
            "defaults.sampling.temprature: unknown key 'temprature'. Did you mean 'temperature'?",
        ),
        (drop("title"), "title: this key is missing (got document, prompts, defaults, experiments, claims)"),
        (drop("claims.0.checks.0.to"), "claims.0.checks.0.to: this key is missing (got kind, metric, of, expect)"),
        (drop("claims.0.checks.1.kind"), "claims.0.checks.1.kind: this key is missing (got metric, of, over, expect)"),
        (
            put("claims.0.checks.0.kind", "ration"),
            "claims.0.checks.0.kind: unknown kind 'ration'. Did you mean 'ratio'?",
        ),
        (put("claims.0.checks", []), "claims.0.checks: expected at least one entry (got [])"),
        (drop("experiments"), "experiments: this key is missing (got title, document, prompts, defaults, claims)"),
        (put("experiments", {}), "experiments: expected at least one entry (got {})"),
        (put("experiments.speed.cells", {}), "experiments.speed.cells: expected at least one entry (got {})"),
        (put("experiments", [1]), "experiments: expected keys and values (got [1])"),
        (put("defaults.batch", "8"), "defaults.batch: expected a whole number (got '8')"),
        (put("defaults.batch", 0), "defaults.batch: expected greater than or equal to 1 (got 0)"),
        (put("measure", {"timeout_s": "900"}), "measure.timeout_s: expected a number (got '900')"),
        (put("defaults.sampling", {"temperature": "1"}), "defaults.sampling.temperature: expected a number (got '1')"),
        (put("claims.0.checks.1.expect.at_most", "1"), "claims.0.checks.1.expect.at_most: expected a number (got '1')"),
        (
            put("defaults.dtype", "float61"),
            "defaults.dtype: expected 'float32', 'bfloat16' or 'float16' (got 'float61'). Did you mean 'float16'?",
        ),
        (
            put("claims.0.checks.0.expect", "abov"),
            "claims.0.checks.0.expect: expected 'above', 'below' or 'same' or expected keys and values (got 'abov'). "
            "Did you mean 'above'?",
        ),
        (
            put("claims.0.checks.1.expect", {"about": 1}),
            "claims.0.checks.1.expect: expected at_least and/or at_most, or about together with within",
        ),
        (
            put(f"{CELL}.optimizations", [3]),
            f"{CELL}.optimizations.0: expected text or expected keys and values (got 3)",
        ),
        (
            put("experiments.batching.sweep", {"batches": [1]}),
            "experiments.batching: cannot sweep over 'batches': expected one of "
            "checkpoint, dtype, prompt, prompt_tokens, shortest, new_tokens, batch",
        ),
        (
            put("experiments.batching.sweep", {"batch": [1, 1]}),
            "experiments.batching: sweep over 'batch' needs at least one value, none of them twice",
        ),
        (
            put("experiments.batching.sweep", {"batch": ["8"]}),
            "experiments.batching: sweep over 'batch': expected a valid integer (got '8')",
        ),
    ],
)
def test_a_study_s_mistake_is_one_sentence(change: Change, sentence: str) -> None:
    assert error_of(lambda: planned(of_study=change)) == f"studies/small.yaml: {sentence}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("device", "gpu"), "device: expected 'auto', 'cpu' or 'cuda' (got 'gpu'). Did you mean 'cpu'?"),
        (put("studys", []), "studys: unknown key 'studys'. Did you mean 'studies'?"),
        (put("studies", []), "studies: expected at least one entry (got [])"),
        (put("studies", "small"), "studies: expected a list (got 'small')"),
        (put("studies", ["small", "small"]), "studies: a study is named twice (got ['small', 'small'])"),
        (put("measure", {"blocks": "3"}), "measure.blocks: expected a whole number (got '3')"),
        (put("measure", "{blocks: 3}"), "measure: expected keys and values (got '{blocks: 3}')"),
        (put("measure", {"warmup_min": 4}), "measure.warmup_max: expected at least warmup_min (4)"),
        (put("limits", {"bach": 3}), "limits.bach: unknown key 'bach'. Did you mean 'batch'?"),
        (put("shard", {"max_shard_mb": 0}), "shard.max_shard_mb: expected greater than 0 (got 0)"),
        (
            put("checkpoints.real.sorce", "x"),
            "checkpoints.real.sorce: unknown key 'sorce'. Did you mean 'source'?",
        ),
        (drop("checkpoints.real.source"), "checkpoints.real.source: this key is missing (got architecture)"),
        (
            put("checkpoints.real.source", "ftp://x"),
            "checkpoints.real.source: expected one of hf://, pypi://, random://, file:// (got 'ftp://x')",
        ),
        (
            put("checkpoints.real.source", "org/name@v1"),
            "checkpoints.real.source: expected one of hf://, pypi://, random://, file:// (got 'org/name@v1'). "
            "Did you mean 'hf://org/name@v1'?",
        ),
        (
            put("checkpoints.real.source", "../model"),
            "checkpoints.real.source: expected one of hf://, pypi://, random://, file:// (got '../model'). "
            "Did you mean 'file://../model'?",
        ),
        (
            put("checkpoints.real.source", f"a/b/{'x' * 5000}"),
            f"checkpoints.real.source: expected one of hf://, pypi://, random://, file:// (got 'a/b/{'x' * 5000}')",
        ),
        (put("swap", {"reel": "random"}), "swap.reel: unknown checkpoint 'reel'. Did you mean 'real'?"),
        (put("swap", {"real": "randm"}), "swap.real: unknown checkpoint 'randm'. Did you mean 'random'?"),
        (
            put("checkpoints.real.architecture", "smollm2"),
            "checkpoints.real.architecture: unknown architecture 'smollm2'. Did you mean 'smollm2-135m'?",
        ),
    ],
)
def test_a_mistake_in_params_is_one_sentence(change: Change, sentence: str) -> None:
    assert error_of(lambda: planned(of_params=change)) == f"params.yaml: {sentence}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put(f"{CELL}.checkpoint", "reel"), ".cells.cached: unknown checkpoint 'reel'. Did you mean 'real'?"),
        (put(f"{CELL}.prompt", "helo"), ".cells.cached.prompt: unknown prompt 'helo'. Did you mean 'hello'?"),
        (
            put(f"{CELL}.backend", "transformer"),
            ".cells.cached.backend: unknown backend 'transformer'. Did you mean 'transformers'?",
        ),
        (
            put(f"{CELL}.optimizations", ["static_cach"]),
            ".cells.cached.optimizations: unknown optimization 'static_cach'. Did you mean 'static_cache'?",
        ),
        (
            put(f"{CELL}.optimizations", [{"sdpa": {"kernal": "math"}}]),
            ".cells.cached.optimizations.sdpa: kernal: unknown key 'kernal'. Did you mean 'kernel'?",
        ),
        (
            put(f"{CELL}.optimizations", ["static_cache", "no_cache"]),
            ".cells.cached: 'static_cache' and 'no_cache' both change the cache: keep one",
        ),
        (
            put(f"{CELL}.optimizations", ["static_cache", "prompt_lookup"]),
            ".cells.cached: 'prompt_lookup' cannot be combined with 'static_cache'",
        ),
        (put(f"{CELL}.optimizations", ["grad_enabled"]), ".cells.cached: 'grad_enabled' needs 'forward_loop' as well"),
        (
            put(f"{CELL}.published", {"toks": 1}),
            ".cells.cached.published: unknown metric 'toks'. Did you mean 'tok_s'?",
        ),
        (
            put(f"{CELL}.new_tokens", 9000),
            ".cells.cached: prompt and new tokens make 9001, but 'real' (smollm2-135m) has a "
            "context of 8192: ask for fewer",
        ),
    ],
)
def test_what_a_cell_cannot_be_is_an_error_before_anything_runs(change: Change, sentence: str) -> None:
    assert error_of(lambda: planned(of_study=change)) == f"studies/small.yaml: experiments.speed{sentence}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("claims.0.checks.0.of", "sped/plain"), "0.of: no experiment 'sped'. Did you mean 'speed'?"),
        (put("claims.0.checks.0.to", "speed/plane"), "0.to: no cell 'plane' in 'speed'. Did you mean 'plain'?"),
        (
            put("claims.0.checks.0.to", "batching/plain"),
            "0.to: no cell 'plain' in 'batching'. Known: plain@batch=1, plain@batch=64, plain@batch=8.",
        ),
        (put("claims.0.checks.0.metric", "tok_sec"), "0.metric: unknown metric 'tok_sec'. Did you mean 'tok_s'?"),
        (put("claims.0.checks.1.over", "prompt_tokens"), "1.over: 'batching' does not sweep over 'prompt_tokens'"),
    ],
)
def test_a_claim_about_what_is_not_there_is_an_error(change: Change, sentence: str) -> None:
    assert error_of(lambda: planned(of_study=change)) == f"studies/small.yaml: claims.T1.checks.{sentence}"


def test_two_claims_of_one_id_are_an_error() -> None:
    message = error_of(lambda: planned(of_study=lambda study: study["claims"].append(study["claims"][0])))
    assert message == "studies/small.yaml: claims.T1: this id is there twice"


def test_a_key_that_is_there_twice_is_an_error() -> None:
    assert (
        error_of(lambda: validation.parse_yaml("a: 1\nb: 2\na: 3\n", "x.yaml"))
        == "x.yaml, line 3: the key 'a' is there twice"
    )


def test_a_file_that_is_not_yaml_names_its_line() -> None:
    assert error_of(lambda: validation.parse_yaml("a: 1\nb: [\n", "x.yaml")).startswith("x.yaml, line 3: ")


def test_a_file_without_keys_says_what_was_expected() -> None:
    assert error_of(lambda: params.load_params(None)) == "params.yaml: expected keys and values, got NoneType"


def test_an_unknown_study_names_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("title: x\n")
    message = error_of(lambda: params.load_studies(("quickstrat",), tmp_path))
    assert message.endswith("quickstrat.yaml. Did you mean 'quickstart'?")


def test_several_mistakes_are_reported_together() -> None:
    message = error_of(lambda: planned(of_study=lambda study: study.update(titel="x", measure={"block": 1})))
    assert [line.split(": ")[1] for line in message.splitlines()] == ["measure.block", "titel"]


def test_swap_uses_another_checkpoint_and_says_so() -> None:
    rows = planned(of_params=put("swap", {"real": "large"})).studies["small"].rows["speed"]
    assert [deviation.text for deviation in rows["plain"].deviations] == [
        "model: large (mistral-7b) in place of real (smollm2-135m)",
        "weights: random ones (large) in place of trained ones (real)",
    ]


def test_random_weights_of_the_same_shape_are_the_same_work_and_said_all_the_same() -> None:
    made = planned(of_params=put("swap", {"real": "random"}))
    row = made.studies["small"].rows["speed"]["plain"]
    assert [(deviation.of, deviation.is_other_work) for deviation in row.deviations] == [("weights", False)]
    assert row.cell is not None
    assert made.cells[row.cell].cell.checkpoint.name == "random"


def test_rows_that_swap_makes_equal_are_left_out() -> None:
    study = put("experiments.speed.cells.cached", {"checkpoint": "large"})
    rows = planned(put("swap", {"large": "random", "real": "random"}), study).studies["small"].rows["speed"]
    assert rows["plain"].cell is not None
    assert rows["cached"].cell is None
    assert (
        rows["cached"].unavailable == "params.yaml swap puts 'random' in place of 'real' and of 'large': the same cell"
    )


def test_a_held_size_is_cut_to_the_limit_and_the_row_says_so() -> None:
    made = planned(of_params=put("limits", {"new_tokens": 2}))
    row = made.studies["small"].rows["speed"]["plain"]
    assert row.cell is not None
    assert made.cells[row.cell].cell.workload.new_tokens == 2
    assert [deviation.text for deviation in row.deviations] == ["new tokens: 2 in place of 4"]


def test_devices_above_the_limit_are_cut_and_the_row_says_so() -> None:
    asked = put("experiments.speed.cells.plain", {"backend": "accelerate", "options": {"devices": 8}})
    for limit, devices in ((2, 2), (8, 8), (None, 8)):
        made = planned(put("limits", {"devices": limit}), asked)
        row = made.studies["small"].rows["speed"]["plain"]
        assert row.cell is not None
        assert made.cells[row.cell].cell.options["devices"] == devices
        assert [each.text for each in row.deviations] == (["devices: 2 in place of 8"] if devices == 2 else [])


def test_a_compared_size_above_the_limit_is_left_out() -> None:
    rows = planned(of_params=put("limits", {"batch": 32})).studies["small"].rows["batching"]
    assert [row.unavailable for row in rows.values()] == [None, None, "capped by params.yaml limits.batch=32"]


def test_a_size_that_cells_set_differently_is_compared_and_so_never_cut() -> None:
    study = put("experiments.speed.cells.cached", {"new_tokens": 8})
    rows = planned(put("limits", {"new_tokens": 4}), study).studies["small"].rows["speed"]
    assert rows["plain"].cell is not None
    assert rows["cached"].unavailable == "capped by params.yaml limits.new_tokens=4"


def ragged(shortest: int, prompt_tokens: int | None = None) -> Change:
    """The batches of 8 and 64 with rows from `shortest` prompt tokens up."""

    def change(study: dict[str, Any]) -> None:
        study["experiments"]["batching"]["sweep"]["batch"] = [8, 64]
        study["experiments"]["batching"]["hold"] = {"shortest": shortest, "prompt_tokens": prompt_tokens}

    return change


def workloads(made: Plan, experiment: str) -> list[Workload | None]:
    rows = made.studies["small"].rows[experiment].values()
    return [made.cells[row.cell].cell.workload if row.cell else None for row in rows]


def test_a_study_can_ask_for_rows_of_several_lengths() -> None:
    found = workloads(planned(of_study=ragged(5, 100)), "batching")
    assert [work and (work.batch, work.shortest, work.prompt_tokens) for work in found] == [(8, 5, 100), (64, 5, 100)]


def test_the_shortest_row_can_be_swept_over() -> None:
    def change(study: dict[str, Any]) -> None:
        study["claims"] = []
        study["experiments"]["batching"]["sweep"] = {"shortest": [2, 4]}
        study["experiments"]["batching"]["hold"] = {"batch": 8}

    assert [work and work.shortest for work in workloads(planned(of_study=change), "batching")] == [2, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("experiments.batching.hold", {"shortest": 5}), "need a batch of at least 2 (got 1)"),
        (ragged(200, 100), "shortest: expected at most prompt_tokens (100), got 200"),
    ],
)
def test_rows_of_several_lengths_that_cannot_be_are_an_error_of_the_study(change: Change, message: str) -> None:
    assert message in error_of(lambda: planned(of_study=change))


def test_a_prompt_that_is_cut_below_its_shortest_row_cuts_that_too() -> None:
    made = planned(put("limits", {"prompt_tokens": 40}), ragged(60, 100))
    assert [work and (work.shortest, work.prompt_tokens) for work in workloads(made, "batching")] == [(40, 40)] * 2
    rows = made.studies["small"].rows["batching"].values()
    assert [each.text for each in next(iter(rows)).deviations] == [
        "prompt tokens: 40 in place of 100",
        "shortest row: 40 in place of 60",
    ]


def test_a_batch_that_is_cut_to_one_row_has_no_several_lengths() -> None:
    def change(study: dict[str, Any]) -> None:
        study["experiments"]["speed"]["hold"] = {"shortest": 3, "batch": 4}

    rows = planned(put("limits", {"batch": 1}), change).studies["small"].rows["speed"]
    assert {row.unavailable for row in rows.values()} == {
        "rows of several lengths: capped by params.yaml limits.batch=1"
    }


def test_rows_times_prompt_above_the_limit_are_left_out() -> None:
    study = put("defaults.prompt_tokens", 100)
    rows = planned(put("limits", {"batch_tokens": 800}), study).studies["small"].rows["batching"]
    assert [row.cell is None for row in rows.values()] == [False, False, True]
    assert rows["plain@batch=64"].unavailable == "capped by params.yaml limits.batch_tokens=800"


def test_more_samples_ask_for_the_same_cells() -> None:
    few, many = planned(put("measure", {"samples": 2})), planned(put("measure", {"samples": 5}))
    assert list(few.cells) == list(many.cells)
    assert {cell.cell.protocol.samples for cell in many.cells.values()} == {5}


def test_a_cell_that_two_ask_for_gets_the_most_samples_and_blocks() -> None:
    cell = next(iter(planned(put("measure", {"samples": 2})).cells.values())).cell
    more = cell.model_copy(update={"protocol": cell.protocol.model_copy(update={"samples": 7})})
    for first, second in [(cell, more), (more, cell)]:
        cells = plan.PlannedCells(params.load_params(PARAMS), "here")
        assert cells.add(first, blocks=3) == cells.add(second, blocks=1)
        (made,) = cells.by_id.values()
        assert (made.cell.protocol.samples, made.blocks) == (7, 3)


def test_the_limit_of_samples_holds_for_a_study_that_asks_for_more() -> None:
    made = planned(put("limits", {"samples": 2}), put("measure", {"samples": 50}))
    assert {cell.cell.protocol.samples for cell in made.cells.values()} == {2}


def test_an_experiment_about_another_kind_of_device_is_left_out() -> None:
    study = put("experiments.batching.device", "cuda")
    assert planned(of_study=study).studies["small"].rows["batching"]["plain@batch=1"].unavailable == (
        "this experiment is about a cuda device"
    )
    assert planned(of_study=study, device="cuda").studies["small"].rows["batching"]["plain@batch=1"].cell


def test_what_is_planned_is_a_row_without_a_cell() -> None:
    def change(study: dict[str, Any]) -> None:
        study["planned"] = {"backends": ["future_system"], "optimizations": ["future_technique"]}
        study["experiments"]["speed"]["cells"]["future_system"] = {"backend": "future_system"}
        study["experiments"]["speed"]["cells"]["graphs"] = {"optimizations": ["future_technique"]}

    rows = planned(of_study=change).studies["small"].rows["speed"]
    assert rows["future_system"].unavailable == "this version has no backend 'future_system' yet"
    assert rows["graphs"].unavailable == "this version has no optimization 'future_technique' yet"


def test_what_is_planned_can_say_why_it_is_not_there() -> None:
    def change(study: dict[str, Any]) -> None:
        study["planned"] = {"optimizations": {"magic": "needs a wand"}}
        study["experiments"]["speed"]["cells"]["magic"] = {"optimizations": ["magic"]}

    assert planned(of_study=change).studies["small"].rows["speed"]["magic"].unavailable == "needs a wand"


def test_what_exists_may_not_be_called_planned() -> None:
    def change(study: dict[str, Any]) -> None:
        study["planned"] = {"optimizations": ["static_cache"]}

    assert error_of(lambda: planned(of_study=change)).endswith("is there now: take it out of `planned`")


def test_schemas_for_editors_describe_both_files() -> None:
    schemas = params.json_schemas()
    assert "limits" in schemas["params.schema.json"]["properties"]
    assert "claims" in schemas["study.schema.json"]["properties"]


@pytest.mark.parametrize("name", ["params.schema.json", "study.schema.json"])
def test_every_key_that_a_person_writes_says_what_it_is(name: str) -> None:
    """An editor shows it. What is found when planning nobody writes."""
    found = {"Card", "Experts", "KeptLayers", "StoredBytes"}
    schema = params.json_schemas()[name]
    models = {key: model for key, model in schema["$defs"].items() if key not in found} | {name: schema}
    keys = {
        f"{model}.{key}": value for model, one in models.items() for key, value in one.get("properties", {}).items()
    }
    assert len(keys) > 30
    assert [key for key, value in keys.items() if not value.get("description")] == []


def test_a_preset_stands_for_what_it_lists() -> None:
    def change(study: dict[str, Any]) -> None:
        study["presets"] = {"still": ["static_cache"], "fast": ["still", {"sdpa": {"kernel": "math"}}]}
        study["experiments"]["speed"]["cells"]["cached"]["optimizations"] = ["fast"]

    plan = planned(of_study=change)
    cell = plan.cells[plan.row("small", "speed/cached").cell or ""].cell
    assert [use.name for use in cell.optimizations] == ["sdpa", "static_cache"]
    assert cell.optimizations[0].settings["kernel"] == "math"


@pytest.mark.parametrize(
    ("presets", "asked", "sentence"),
    [
        ({"one": ["two"], "two": ["one"]}, ["one"], "the preset 'one' contains itself: one > two > one"),
        ({"one": ["static_cache"]}, [{"one": {"a": 1}}], "the preset 'one' takes no settings, got {'a': 1}"),
        (
            {"one": ["static_cache"]},
            ["one", "no_cache"],
            "'static_cache' and 'no_cache' both change the cache: keep one",
        ),
    ],
)
def test_a_preset_that_cannot_be_is_an_error(presets: dict[str, Any], asked: list[Any], sentence: str) -> None:
    def change(study: dict[str, Any]) -> None:
        study["presets"] = presets
        study["experiments"]["speed"]["cells"]["cached"]["optimizations"] = asked

    assert (
        error_of(lambda: planned(of_study=change)) == f"studies/small.yaml: experiments.speed.cells.cached: {sentence}"
    )
