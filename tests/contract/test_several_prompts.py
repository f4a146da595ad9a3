"""A batch whose rows have prompts of their own, padded on either side, and a static cache of a set length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.contract.conftest import Load, make_cell, rows_of

from claimbench.errors import Unavailable
from claimbench.measuring.worker import warm_up
from claimbench.planning.availability import missing_requirement
from claimbench.schema.cell import Protocol

PROMPTS = ("hello hello hello", "hello")
PAIR: dict[str, Any] = {"prompt": PROMPTS[0], "others": PROMPTS[1:]}


def test_each_row_goes_on_as_it_would_alone(load: Load) -> None:
    alone = [rows_of(load(prompt=prompt))[0] for prompt in PROMPTS]
    session = load(**PAIR, batch=3)
    assert rows_of(session) == [*alone, alone[0]]  # a third row begins again with the first prompt
    assert session.prompt_ids == load(prompt=PROMPTS[0]).prompt_ids


def test_the_first_row_need_not_be_the_longest(load: Load) -> None:
    session = load(prompt=PROMPTS[1], others=PROMPTS[:1], batch=2)
    assert len(session.prompt_ids) < session.prompt_tokens
    assert rows_of(session)[0] == rows_of(load(prompt=PROMPTS[1]))[0]


def test_the_hand_written_loop_takes_rows_that_are_padded_on_the_right(load: Load) -> None:
    session = load("forward_loop", **PAIR, batch=2, pads="right")
    short = len(load(prompt=PROMPTS[1]).prompt_ids)
    assert session.mask.tolist()[1] == [1] * short + [0] * (session.prompt_tokens - short)
    assert rows_of(session)[0] == rows_of(load(prompt=PROMPTS[0]))[0]
    with pytest.raises(Unavailable, match="padded on the right"):
        load("forward_loop", **PAIR, batch=2)


def test_a_static_cache_of_a_set_length_gives_the_same_tokens(load: Load) -> None:
    plain = rows_of(load("forward_loop"))
    session = load("forward_loop", ("static_cache", {"length": 64}))
    assert rows_of(session) == plain
    assert session._static_shape == (1, 64)
    with pytest.raises(Unavailable, match="hand-written loop"):
        load(("static_cache", {"length": 64}))
    with pytest.raises(Unavailable, match="too short"):
        rows_of(load("forward_loop", ("static_cache", {"length": 5})))


def test_who_feeds_one_prompt_to_all_rows_says_so() -> None:
    cell = make_cell(**PAIR, batch=2)
    assert missing_requirement(cell) is None
    engine = cell.model_copy(update={"backend": "engine"})
    assert missing_requirement(engine) == "engine feeds one prompt to all rows of a batch here"


def test_prompts_of_their_own_have_lengths_of_their_own() -> None:
    with pytest.raises(ValidationError, match="lengths of those"):
        make_cell(**PAIR, batch=2, prompt_tokens=8)


def test_a_document_s_warm_ups_are_as_many_and_as_short_as_its_own(load: Load, tiny: Path) -> None:
    session = load()
    made: list[int] = []
    whole = session.generate

    def counted() -> Any:
        made.append(0)
        for column in whole():
            made[-1] += len(column[0])
            yield column

    session.generate = counted
    prompt, said = len(session.prompt_ids), list[str]()
    cell = make_cell().model_copy(update={"protocol": Protocol(warmup_min=3, warmup_tokens=prompt + 4)})
    warm_up(cell, session, lambda event, **_: said.append(event))
    assert made == [4, 4, 4]
    assert "warmup" not in said  # they are no samples of the workload
