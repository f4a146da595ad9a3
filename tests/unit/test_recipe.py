"""The plain recipe, and what the optimizations of a cell make of it."""

from __future__ import annotations

from typing import Any

import pytest

from claimbench import optimizations
from claimbench.errors import Unavailable
from claimbench.hf.session import write_recipe
from claimbench.hf.setup import Recipe
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


def recipe_of(asked: Cell) -> Recipe:
    return write_recipe(asked, optimizations.used_by(asked))


def test_the_plain_recipe_is_eager_attention_and_a_dynamic_cache_under_generate() -> None:
    recipe = recipe_of(cell())
    assert recipe == Recipe(dtype="bfloat16", phase=recipe.phase)
    assert recipe.load == {"attn_implementation": "eager"}
    assert recipe.cache == "dynamic"
    assert recipe.loop is None
    assert not recipe.drafts


def test_two_recipes_share_nothing() -> None:
    first, second = Recipe(dtype="float32"), Recipe(dtype="float32")
    first.load["attn_implementation"] = "sdpa"
    first.around.append(lambda: pytest.fail("never entered"))
    assert second.load == {"attn_implementation": "eager"}
    assert second.around == []


@pytest.mark.model
def test_each_optimization_changes_its_own_part() -> None:
    recipe = recipe_of(cell("sdpa", "static_cache", "forward_loop"))
    assert recipe.load == {"attn_implementation": "sdpa"}
    assert recipe.cache == "static"
    assert recipe.loop is forward_loop
    assert recipe.transforms == []


@pytest.mark.model
def test_a_gradient_mode_is_inside_the_loop_s_own() -> None:
    import torch

    for names in (("forward_loop", "grad_enabled"), ("grad_enabled", "forward_loop")):
        assert recipe_of(cell(*names)).around == [torch.no_grad, torch.enable_grad]


def test_prompt_lookup_drafts_without_a_second_model() -> None:
    recipe = recipe_of(cell("prompt_lookup", tokens=5, ngram=3))
    assert recipe.drafts
    assert not recipe.uses_draft
    assert recipe.generate == {"prompt_lookup_num_tokens": 5, "max_matching_ngram_size": 3}


def test_what_cannot_run_here_is_refused_by_name() -> None:
    with pytest.raises(Unavailable, match="flash_attention_2: FlashAttention-2 has CUDA kernels only"):
        recipe_of(cell("flash_attention_2"))
    with pytest.raises(Unavailable, match=r"compile_model: .* has none"):
        recipe_of(cell("compile_model", new_tokens=1))
    with pytest.raises(Unavailable, match=r"early_exit: .* 2 layers of a model of 2"):
        recipe_of(cell("early_exit", layers=2))


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"of": "new_tokens", "calls": 3}, [(8, 10), (8, 20), (8, 30)]),
        ({"of": "batch", "calls": 2}, [(2, 40), (5, 40)]),
    ],
)
def test_what_grows_gets_evenly_to_the_whole_workload(settings: dict[str, Any], sizes: list[tuple[int, int]]) -> None:
    asked = cell("growing", new_tokens=40, workload={"batch": 8}, **settings)
    earlier = recipe_of(asked).earlier
    assert earlier
    assert [(work.batch, work.new_tokens) for work in earlier(asked.workload)] == sizes


def test_what_has_no_room_to_grow_is_refused() -> None:
    with pytest.raises(Unavailable, match="growing: 2 smaller calls before one of batch 2 need at least 3"):
        recipe_of(cell("growing", of="batch", calls=2, workload={"batch": 2}))
    with pytest.raises(Unavailable, match="growing: 3 smaller calls before one of new_tokens 7 need at least 8"):
        recipe_of(cell("growing", new_tokens=7))


@pytest.mark.model
def test_what_takes_rows_of_one_length_refuses_others() -> None:
    rows = {"batch": 2, "shortest": 3}
    assert recipe_of(cell("sdpa", "static_cache", workload=rows)).loop is None
    with pytest.raises(Unavailable, match="the hand-written loop takes rows of one length"):
        recipe_of(cell("forward_loop", workload=rows))
    with pytest.raises(Unavailable, match="drafts take rows of one length"):
        recipe_of(cell("prompt_lookup", workload=rows))
