"""Prompts that are messages: rendered by the checkpoint's own template, which is code and may be hostile."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from claimbench.checkpoints import chat
from claimbench.checkpoints.prompt import encode, prompt_ids, tokenizer_in
from claimbench.errors import SourceError, Unavailable
from claimbench.planning import expand
from claimbench.schema.cell import Cell, Checkpoint, Workload
from claimbench.schema.study import Message
from claimbench.serving.tokens import Tokenizer

CHATML = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}<turn>system be kind<end>{% endif %}"
    "{% for message in messages %}<turn>{{ message.role }} {{ message.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant {% endif %}"
)
VOCABULARY = 400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer of bytes that puts `<s>` before every text by itself, with a template that writes it as well."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = {letter: id for id, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    rust = Rust(models.BPE(vocab=letters, merges=[]))
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    rust.add_special_tokens(["<s>", "<turn>", "<end>"])
    rust.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", rust.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, bos_token="<s>", eos_token="<end>")  # noqa: S106
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def with_template(folder: Path, template: str | None) -> Path:
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def cell(source: str = "hf://org/model", **workload: Any) -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="mine", source=source),
        backend="transformers",
        workload=Workload(**{"prompt": "Hi", "chat": True, "new_tokens": 1, **workload}),
        device="cpu",
    )


def said(folder: Path, **workload: Any) -> str:
    return str(tokenizer_in(folder).decode(prompt_ids(cell(**workload), folder, VOCABULARY)))


def test_a_message_is_what_the_template_makes_of_it_and_begins_once(folder: Path) -> None:
    assert said(folder) == "<s><turn>system be kind<end><turn>user Hi<end><turn>assistant "
    assert said(folder, system="be brief") == "<s><turn>system be brief<end><turn>user Hi<end><turn>assistant "
    assert said(folder, chat=False) == "<s>Hi"


def test_a_message_is_the_same_prompt_as_its_template_written_by_hand(folder: Path) -> None:
    by_hand = "<turn>system be brief<end><turn>user Hi<end><turn>assistant "
    assert prompt_ids(cell(system="be brief"), folder, VOCABULARY) == encode(folder, by_hand)


def test_a_message_is_repeated_or_cut_to_length(folder: Path) -> None:
    whole = prompt_ids(cell(), folder, VOCABULARY)
    assert prompt_ids(cell(prompt_tokens=3), folder, VOCABULARY) == whole[:3]
    assert prompt_ids(cell(prompt_tokens=len(whole) + 2), folder, VOCABULARY) == whole + whole[:2]


def test_a_base_model_is_given_its_own_text_or_none(folder: Path) -> None:
    with_template(folder, None)
    assert said(folder, base="Once upon") == "<s>Once upon"
    with pytest.raises(Unavailable, match=r"the prompt is a message, and the tokenizer in .* has no chat template"):
        prompt_ids(cell(), folder, VOCABULARY)


def test_a_chat_model_is_not_given_the_text_for_base_models(folder: Path) -> None:
    assert "Once upon" not in said(folder, base="Once upon")


def test_random_weights_need_no_template(folder: Path) -> None:
    with_template(folder, None)
    ids = prompt_ids(cell("random://tiny-llama"), folder, VOCABULARY)
    assert ids == encode(folder, "Hi")


def test_a_study_says_a_message_or_a_text() -> None:
    assert expand.said("Hi") == {"prompt": "Hi"}
    message = Message(user="Hi", system="be brief", base="Once")
    assert (
        Workload.model_validate(expand.said(message) | {"new_tokens": 1})
        == cell(system="be brief", base="Once").workload
    )


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('no user\\nmay speak') }}", "no user$"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages.__class__.__mro__ }}", "is unsafe"),
        ("{{ raise_exception.__globals__.os }}", "is unsafe"),
        ("{{ messages.append(messages) }}", "is unsafe"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ 'a' * 10 ** 11 }}", "MemoryError"),
        ("{% for i in range(10 ** 9) %}a{% endfor %}", "Range too big"),
        ("{{ 'a' * 300000 }}", "it made 300000 characters, which are more than"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "it did not end within 2 s"),
    ],
)
def test_a_template_that_fails_or_is_hostile_ends_in_one_sentence_and_soon(
    template: str, why: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "RENDER_S", 2.0)
    with_template(folder, template)
    tokenizer_in(folder)  # what is imported once takes its own time
    began = time.monotonic()
    with pytest.raises(SourceError, match=f"makes no prompt of the message: .*{why}") as refused:
        prompt_ids(cell(), folder, VOCABULARY)
    assert time.monotonic() - began < 10
    assert "\n" not in str(refused.value)


def test_a_template_that_asks_for_the_date_says_the_same_on_every_day(folder: Path) -> None:
    with_template(folder, "{{ strftime_now('%d %b %Y') }}, {{ strftime_now('%Y-%m-%d') }}, {{ strftime_now('%A') }}")
    assert said(folder) == "26 Jul 2024, 2024-07-26, Friday"


def test_an_empty_prompt_of_a_template_is_refused(folder: Path) -> None:
    with_template(folder, "{% if false %}a{% endif %}")
    with pytest.raises(SourceError, match="has no tokens"):
        prompt_ids(cell(), folder, VOCABULARY)


def test_a_server_that_takes_text_is_given_a_text_of_exactly_these_tokens(folder: Path) -> None:
    """It puts a beginning before the text by itself: one that were written too would be there twice."""
    row, tokenizer = prompt_ids(cell(), folder, VOCABULARY), Tokenizer(folder)
    text = tokenizer.text_of(row)
    assert text == "<turn>system be kind<end><turn>user Hi<end><turn>assistant "
    assert encode(folder, text) == row
    assert row.count(row[0]) == 1


def test_a_server_that_would_add_a_beginning_is_not_given_a_message_without_one(folder: Path) -> None:
    with_template(folder, CHATML.removeprefix("{{ bos_token }}"))
    row = prompt_ids(cell(), folder, VOCABULARY)
    with pytest.raises(Unavailable, match="no text gives exactly these"):
        Tokenizer(folder).text_of(row)


def test_a_checkpoint_with_several_templates_is_read_by_its_default_one(folder: Path) -> None:
    with_template(folder, None)
    path = folder / "tokenizer_config.json"
    named = [{"name": "default", "template": "<turn>a"}, {"name": "tool_use", "template": "<turn>b"}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}), encoding="utf-8")
    assert said(folder) == "<turn>a"
