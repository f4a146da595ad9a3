"""The plain setup, and what the optimizations of a cell make of it."""

from __future__ import annotations

from typing import Any

import pytest

from claimbench import optimizations
from claimbench.errors import Unavailable
from claimbench.hf.session import make_setup
from claimbench.hf.setup import GenerationSetup
from claimbench.optimizations.transformers.forward_loop import forward_loop
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Workload


def cell(*names: str, new_tokens: int = 4, workload: dict[str, Any] | None = None, **settings: object) -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama"),
        backend="transformers",
        optimizations=tuple(OptimizationUse(name=name, settings=settings) for name in names),
        dtype="bfloat16",
        workload=Workload(prompt="a", new_tokens=new_tokens, **workload or {}),
        device="cpu",
    )


def setup_of(asked: Cell) -> GenerationSetup:
    return make_setup(asked, optimizations.used_by(asked))


def test_the_plain_recipe_is_eager_attention_and_a_dynamic_cache_under_generate() -> None:
    setup = setup_of(cell())
    assert setup == GenerationSetup(dtype="bfloat16", phase=setup.phase)
    assert setup.load == {"attn_implementation": "eager"}
    assert setup.cache == "dynamic"
    assert setup.loop is None
    assert not setup.drafts


def test_two_recipes_share_nothing() -> None:
    first, second = GenerationSetup(dtype="float32"), GenerationSetup(dtype="float32")
    first.load["attn_implementation"] = "sdpa"
    first.around.append(lambda: pytest.fail("never entered"))
    assert second.load == {"attn_implementation": "eager"}
    assert second.around == []


@pytest.mark.model
def test_each_optimization_changes_its_own_part() -> None:
    setup = setup_of(cell("sdpa", "static_cache", "forward_loop"))
    assert setup.load == {"attn_implementation": "sdpa"}
    assert setup.cache == "static"
    assert setup.loop is forward_loop
    assert setup.transforms == []


@pytest.mark.model
def test_a_gradient_mode_is_inside_the_loop_s_own() -> None:
    import torch

    for names in (("forward_loop", "grad_enabled"), ("grad_enabled", "forward_loop")):
        assert setup_of(cell(*names)).around == [torch.no_grad, torch.enable_grad]


def test_prompt_lookup_drafts_without_a_second_model() -> None:
    setup = setup_of(cell("prompt_lookup", tokens=5, ngram=3))
    assert setup.drafts
    assert not setup.uses_draft
    assert setup.generate == {"prompt_lookup_num_tokens": 5, "max_matching_ngram_size": 3}


def test_what_cannot_run_here_is_refused_by_name() -> None:
    with pytest.raises(Unavailable, match="flash_attention_2: FlashAttention-2 has CUDA kernels only"):
        setup_of(cell("flash_attention_2"))
    with pytest.raises(Unavailable, match=r"compile_model: .* has none"):
        setup_of(cell("compile_model", new_tokens=1))
    with pytest.raises(Unavailable, match=r"early_exit: .* 2 layers of a model of 2"):
        setup_of(cell("early_exit", layers=2))


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"of": "new_tokens", "calls": 3}, [(8, 10), (8, 20), (8, 30)]),
        ({"of": "batch", "calls": 2}, [(2, 40), (5, 40)]),
    ],
)
def test_what_grows_gets_evenly_to_the_whole_workload(settings: dict[str, Any], sizes: list[tuple[int, int]]) -> None:
    asked = cell("growing", new_tokens=40, workload={"batch": 8}, **settings)
    earlier = setup_of(asked).earlier
    assert earlier
    assert [(work.batch, work.new_tokens) for work in earlier(asked.workload)] == sizes


def test_what_has_no_room_to_grow_is_refused() -> None:
    with pytest.raises(Unavailable, match="growing: 2 smaller calls before one of batch 2 need at least 3"):
        setup_of(cell("growing", of="batch", calls=2, workload={"batch": 2}))
    with pytest.raises(Unavailable, match="growing: 3 smaller calls before one of new_tokens 7 need at least 8"):
        setup_of(cell("growing", new_tokens=7))


@pytest.mark.model
def test_what_takes_rows_of_one_length_refuses_others() -> None:
    rows = {"batch": 2, "shortest": 3}
    assert setup_of(cell("sdpa", "static_cache", workload=rows)).loop is None
    with pytest.raises(Unavailable, match="the hand-written loop takes rows of one length"):
        setup_of(cell("forward_loop", workload=rows))
    with pytest.raises(Unavailable, match="drafts take rows of one length"):
        setup_of(cell("prompt_lookup", workload=rows))
