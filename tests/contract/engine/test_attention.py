"""Ways of attending, packing and masking, held to plain arithmetic and to each other."""

from __future__ import annotations

from typing import Any

import pytest
from tests.contract.engine.conftest import FAMILIES, LoadEngine, engine_cell, rows_of

from claimbench import optimizations
from claimbench.cost_model import cost
from claimbench.errors import Unavailable

pytestmark = pytest.mark.model

RAGGED = {"batch": 3, "shortest": 4}


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=["multi-head", "grouped", "multi-query"])
@pytest.mark.parametrize("new", [1, 6])
@pytest.mark.parametrize("biased", [False, True])
def test_the_flash_kernel_attends_as_a_matrix_of_scores_does(heads: tuple[int, int], new: int, biased: bool) -> None:
    """Behind a past, with excess keys at the end; without a bias, several new tokens are a whole prompt."""
    import torch

    from claimbench.engine.kernels.flash import attend_on_cpu
    from claimbench.engine.model.parts import PassContext, attend_by_scores, plain_softmax

    torch.manual_seed(0)
    past = 5 if biased or new == 1 else 0
    keys = past + new + 3
    q = torch.randn(2, heads[0], new, 8)
    k, v = torch.randn(2, 2, heads[1], keys, 8)
    visible = torch.arange(keys) <= torch.arange(past, past + new)[:, None]
    bias = torch.zeros(2, 1, new, keys).masked_fill(~visible, torch.finfo(torch.float32).min)
    if biased:
        bias = bias + torch.randn(1, heads[0], 1, keys)
    positions = torch.arange(past, past + new)[None]
    expected = attend_by_scores(q, k, v, PassContext(past, positions, bias), 0.3, plain_softmax)
    mixed = attend_on_cpu(q, k, v, PassContext(past, positions, bias if biased else None), 0.3, plain_softmax)
    assert torch.allclose(mixed, expected, atol=1e-6)


def test_flash_attention_on_cuda_refuses_a_mask() -> None:
    import torch

    from claimbench.engine.kernels.flash import attend_on_cuda
    from claimbench.engine.model.parts import PassContext, plain_softmax

    q = torch.zeros(1, 1, 1, 8)
    with pytest.raises(Unavailable, match="takes no mask"):
        attend_on_cuda(q, q, q, PassContext(0, torch.zeros(1, 1), torch.zeros(1, 1, 1, 1)), 1.0, plain_softmax)


@pytest.mark.parametrize(
    ("names", "changed", "reason"),
    [
        (["prefill_flash"], {}, None),
        (["prefill_flash"], {"dtype": "float32"}, "16 bits"),
        (["prefill_flash"], {"architecture": "bloom-560m"}, "ALiBi"),
        (["prefill_flash"], RAGGED, "add packed_rows"),
        (["prefill_flash", "packed_rows"], RAGGED, None),
        (["flash_everywhere", "packed_rows"], RAGGED, "takes no mask"),
        (["flash_everywhere", "cache_preallocated", "key_padding"], {}, "padded keys"),
    ],
)
def test_flash_attention_on_cuda_says_what_it_cannot_do(
    names: list[str], changed: dict[str, Any], reason: str | None
) -> None:
    cell = engine_cell(*names, **{"architecture": "smollm2-135m", "dtype": "bfloat16", "device": "cuda"} | changed)
    module: Any = optimizations.find(names[0])
    said = module.unavailable(cell, module.Settings())
    assert said is None if reason is None else reason in said


def prefill_context(decoder: Any) -> Any:
    batch = decoder.batch
    return decoder.setup.context(decoder.engine.cache(batch.cache_shape), batch.prompt.shape[1])


def test_a_prompt_through_flash_attention_has_no_mask(load_engine: LoadEngine) -> None:
    decoder = load_engine("prefill_flash", batch=2).decoder
    assert prefill_context(decoder).bias is None
    assert prefill_context(load_engine("prefill_flash", **RAGGED).decoder).bias is not None


@pytest.mark.parametrize("flash", [False, True], ids=["scores", "flash"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_packed_prefill_keeps_what_a_padded_one_keeps(
    architecture: str, flash: bool, load_engine: LoadEngine
) -> None:
    """Hidden states, keys and values of every real token."""
    import torch

    kernels = ("prefill_flash",) if flash else ()
    kept = []
    for uses in (kernels, (*kernels, "packed_rows")):
        decoder = load_engine(*uses, architecture=architecture, **RAGGED).decoder
        with torch.inference_mode():
            cache = decoder.engine.cache(decoder.batch.cache_shape)
            hidden = decoder.engine.prefill(decoder.setup, cache)
        longest = decoder.batch.prompt.shape[1]
        real = torch.arange(longest) >= decoder.batch.padding[:, None]
        kept.append([hidden[real], *(tensor.transpose(1, 2)[real] for tensor in cache.tensors())])
        assert cache.length == longest
    for padded, packed in zip(*kept, strict=True):
        assert torch.allclose(padded, packed, atol=1e-4)


def test_packing_has_nothing_to_leave_out_of_equal_rows() -> None:
    module: Any = optimizations.find("packed_rows")
    assert "no padding" in module.unavailable(engine_cell("packed_rows", batch=3), module.Settings())


def batch_of_lengths(lengths: list[int], slopes: Any = None) -> Any:
    """Rows of one token, repeated, for a cache of 12 slots."""
    import torch

    from claimbench.engine.batch import batch_of
    from claimbench.engine.kv_cache import CacheShape

    shape = CacheShape(cost.architecture("tiny-llama"), len(lengths), 12, torch.float32, torch.device("cpu"))
    return batch_of([[0] * length for length in lengths], slopes, shape)


@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "ragged"])
@pytest.mark.parametrize("alibi", [False, True], ids=["plain", "alibi"])
def test_a_kept_mask_says_what_a_mask_in_full_says(alibi: bool, ragged: bool) -> None:
    """For prompts, single tokens and several tokens behind a past, with and without excess keys."""
    import torch

    from claimbench.engine.masks import KeptMask, mask_in_full

    batch = batch_of_lengths([5, 3, 2] if ragged else [5, 5, 5], torch.tensor([0.5, 0.25]) if alibi else None)
    kept = KeptMask()
    for past, new, keys in [(0, 5, 5), (0, 5, 8), (5, 1, 6), (5, 1, 8), (6, 1, 7), (6, 3, 9), (6, 3, 16), (11, 1, 16)]:
        full = mask_in_full(batch, past, new, keys)
        ours = kept(batch, past, new, keys)
        assert full is not None
        seen = torch.zeros(()) if ours is None else ours
        least = torch.finfo(torch.float32).min / 2
        real = torch.arange(past, past + new) >= batch.padding[:, None]  # a query of padding may see anything
        expected, said = (each.expand(3, 2, new, keys).transpose(1, 2)[real].clamp(min=least) for each in (full, seen))
        assert torch.equal(expected, said), (past, new, keys)


def test_a_mask_is_made_anew_when_the_batch_changes() -> None:
    from claimbench.engine.masks import KeptMask

    kept = KeptMask()
    before = kept(batch_of_lengths([4, 2]), 4, 1, 5)
    after = kept(batch_of_lengths([4, 1]), 4, 1, 5)
    assert before is not None
    assert after is not None
    assert [int((row < 0).sum()) for row in (*before, *after)] == [0, 2, 0, 3]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_all_of_document_b_together_says_the_same(architecture: str, load_engine: LoadEngine) -> None:
    together = ["prefill_flash", "packed_rows", "simple_mask", "fused_softmax", "fused_layer_norm", "fast_linear"]
    together += ["cache_preallocated", "key_padding"] + (["fused_gelu"] if architecture != "tiny-llama" else [])
    plain = load_engine(architecture=architecture, **RAGGED)
    session = load_engine(*together, architecture=architecture, **RAGGED)
    assert rows_of(session) == rows_of(plain)
    assert set(session.prove()["optimizations"]) == set(together)
