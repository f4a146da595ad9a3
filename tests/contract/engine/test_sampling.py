"""From logits to tokens: as Transformers warps and draws, for one request and for many, with a seed for each."""

from __future__ import annotations

from typing import Any

import pytest
from tests.contract.engine.conftest import LoadEngine, rows_of

from claimbench.schema.cell import Sampling

pytestmark = pytest.mark.model

ALONE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 12},
    "top_k_beyond": {"top_k": 10_000},
    "top_p": {"top_p": 0.6},
    "top_p_of_little": {"top_p": 0.01},
    "typical_p": {"typical_p": 0.4},
    "typical_p_of_little": {"typical_p": 0.01},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "repetition_reward": {"repetition_penalty": 0.6},
}
TOGETHER = {"temperature": 1.4, "top_k": 40, "top_p": 0.9, "typical_p": 0.8, "repetition_penalty": 1.3}
SETTINGS = ALONE | {"all": TOGETHER}


def warped_by_transformers(logits: Any, sequence: Any, settings: dict[str, Any]) -> Any:
    """What `generate` does to logits, in the order of its own making."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=logits.shape[-1]
    )
    asked = GenerationConfig(do_sample=True, **{"top_k": 0} | settings)
    processors = LlamaForCausalLM(config)._get_logits_processor(asked, input_ids_seq_length=sequence.shape[1])
    return processors(sequence, logits)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_it_warps_as_transformers_does(settings: dict[str, Any]) -> None:
    import torch

    from claimbench.engine.sampling import warp

    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(4, 300, generator=generator)
        sequence = torch.randint(300, (4, 50), generator=generator)
        ours = warp(logits.clone(), sequence, Sampling(**settings))
        theirs = warped_by_transformers(logits.clone(), sequence, settings)
        assert torch.equal(ours.isfinite(), theirs.isfinite()), f"other tokens are left, seed {seed}"
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_all_requests_at_once_are_processed_as_one_by_one(settings: dict[str, Any]) -> None:
    import torch

    from claimbench.engine.sampling import choose_one_by_one, choose_together, draw_seeded

    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(5, 300, generator=generator)
    sequence = torch.randint(300, (5, 20), generator=generator)
    sampling = Sampling(**settings)
    for choice in (None, sampling):
        draws = [draw_seeded(sampling, 5, logits.device) if choice else None for _ in range(2)]
        single = choose_one_by_one(logits, sequence, choice, draws[0])
        assert torch.equal(choose_together(logits, sequence, choice, draws[1]), single)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_request_draws_what_transformers_draws_with_its_seed(
    settings: dict[str, Any], load_engine: LoadEngine
) -> None:
    sampling = Sampling(seed=3, **settings)
    theirs = rows_of(load_engine(backend="transformers", sampling=sampling))
    assert rows_of(load_engine(sampling=sampling)) == theirs
    assert rows_of(load_engine("vectorised_sampling", "vectorised_processing", sampling=sampling)) == theirs


@pytest.mark.parametrize("uses", [(), ("counter_sampling",), ("counter_sampling", "vectorised_processing")])
@pytest.mark.parametrize("architecture", ["tiny-llama", "tiny-bloom"])
def test_equal_seeds_give_equal_tokens_in_any_company(
    uses: tuple[str, ...], architecture: str, load_engine: LoadEngine
) -> None:
    """Row r of a batch has the seed of the batch and r more."""
    settings: dict[str, Any] = {"architecture": architecture}
    rows = rows_of(load_engine(*uses, batch=4, sampling=Sampling(seed=11), **settings))
    assert len({tuple(row) for row in rows}) == 4
    assert rows_of(load_engine(*uses, sampling=Sampling(seed=12), **settings)) == [rows[1]]
    assert rows_of(load_engine(*uses, batch=2, sampling=Sampling(seed=13), **settings)) == rows[2:]


def test_one_generator_for_all_makes_rows_depend_on_their_company(load_engine: LoadEngine) -> None:
    rows = rows_of(load_engine("vectorised_sampling", batch=4, sampling=Sampling(seed=11)))
    assert len({tuple(row) for row in rows}) == 4
    assert rows_of(load_engine("vectorised_sampling", batch=2, sampling=Sampling(seed=11))) != rows[:2]


def test_only_one_by_one_reads_tokens_back_from_the_device() -> None:
    import torch
    from torch.profiler import profile

    from claimbench.engine.sampling import choose_one_by_one, choose_together

    logits, sequence = torch.randn(3, 300), torch.zeros((3, 5), dtype=torch.int64)
    reads = {}
    for choose in (choose_one_by_one, choose_together):
        with profile() as profiler:
            choose(logits, sequence, None, None)
        reads[choose] = sum(event.name == "aten::_local_scalar_dense" for event in profiler.events())
    assert reads == {choose_one_by_one: 3, choose_together: 0}
