"""The prompt of random weights, which have no tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from claimbench.cell import Cell, Checkpoint, Workload
from claimbench.errors import SourceError
from claimbench.prompt import prompt_ids


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


def test_a_real_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no tokenizer"):
        prompt_ids(cell("abc", None, "hf://org/model@main"), tmp_path, 320)
