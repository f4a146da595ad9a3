"""The prompt of random weights, which have no tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from claimbench.checkpoints.prompt import prompt_ids
from claimbench.errors import SourceError
from claimbench.schema.cell import Cell, Checkpoint, Workload, row_lengths


def cell(prompt: str, length: int | None, source: str = "random://tiny-llama") -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="tiny", source=source, architecture="tiny-llama"),
        backend="transformers",
        workload=Workload(prompt=prompt, prompt_tokens=length, new_tokens=1),
        device="cpu",
    )


@pytest.mark.parametrize(
    ("length", "ids"), [(None, [97, 98, 99]), (2, [97, 98]), (3, [97, 98, 99]), (7, [97, 98, 99, 97, 98, 99, 97])]
)
def test_a_prompt_is_repeated_or_cut_to_length(length: int | None, ids: list[int], tmp_path: Path) -> None:
    assert prompt_ids(cell("abc", length), tmp_path, 320) == ids


def test_every_byte_is_a_token_that_the_model_knows(tmp_path: Path) -> None:
    assert prompt_ids(cell("é", None), tmp_path, 100) == [0xC3 % 100, 0xA9 % 100]


@pytest.mark.parametrize("settings", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}])
@pytest.mark.parametrize("post_processor", [True, False])
def test_a_prompt_is_encoded_as_transformers_encodes_it(
    settings: dict[str, bool], post_processor: bool, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoTokenizer

    letters = {letter: id for id, letter in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if post_processor:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **settings}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")

    expected = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)("hello there").input_ids
    assert prompt_ids(cell("hello there", None), tmp_path, 320) == expected
    assert len(expected) >= len("hello there")


def test_a_real_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no tokenizer"):
        prompt_ids(cell("abc", None, "hf://org/model@main"), tmp_path, 320)


@pytest.mark.parametrize(
    ("batch", "shortest", "lengths"),
    [
        (1, None, [10]),
        (3, None, [10, 10, 10]),
        (2, 4, [10, 4]),
        (4, 4, [10, 8, 6, 4]),
        (3, 1, [10, 6, 1]),
        (5, 10, [10] * 5),
        (4, 9, [10, 10, 10, 9]),
    ],
)
def test_rows_are_spread_evenly_from_the_full_prompt_to_the_shortest(
    batch: int, shortest: int | None, lengths: list[int]
) -> None:
    assert row_lengths(Workload(prompt="a", shortest=shortest, batch=batch, new_tokens=1), 10) == lengths


def test_a_prompt_that_is_shorter_than_its_shortest_row_is_refused() -> None:
    workload = Workload(prompt="a", shortest=11, batch=2, new_tokens=1)
    with pytest.raises(SourceError, match=r"the prompt has 10 tokens, and its shortest row is to have 11"):
        row_lengths(workload, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shortest": 3}, "a batch of at least 2"),
        ({"shortest": 9, "batch": 2, "prompt_tokens": 8}, r"at most prompt_tokens \(8\), got 9"),
        ({"shortest": 0, "batch": 2}, "greater than or equal to 1"),
    ],
)
def test_rows_of_several_lengths_must_be_possible(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Workload.model_validate({"prompt": "a", "new_tokens": 1, **settings})
