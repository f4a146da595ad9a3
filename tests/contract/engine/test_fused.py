"""Every way in which an operation can be fused gives what the operations one by one give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from tests.contract.engine.conftest import LoadEngine, Use, engine_cell, rows_of

from claimbench import optimizations
from claimbench.errors import Unavailable

pytestmark = pytest.mark.model

WAYS: list[Use] = [
    ("fused_softmax", {"how": "jit", "wide": False}),
    ("fused_softmax", {"how": "compile"}),
    ("fused_layer_norm", {"how": "compile"}),
    ("fused_gelu", {"how": "jit"}),
    ("fused_gelu", {"how": "compile"}),
    ("fast_linear", {"copied": True}),
]


@pytest.mark.parametrize("use", WAYS, ids=lambda use: f"{use[0]}-{'-'.join(map(str, use[1].values()))}")
def test_each_way_says_the_same_and_proves_itself(use: tuple[str, Any], load_engine: LoadEngine) -> None:
    workload: dict[str, Any] = {"architecture": "tiny-bigcode", "batch": 3, "shortest": 4}
    plain, session = load_engine(**workload), load_engine(use, **workload)
    assert rows_of(session) == rows_of(plain)
    assert use[0] in session.prove()["optimizations"]


def test_a_compiled_softmax_is_compiled_for_prompts_and_for_steps_and_never_again(load_engine: LoadEngine) -> None:
    """The mask of a prompt is there with every step, or with none: two graphs, whatever the lengths become."""
    session = load_engine(("fused_softmax", {"how": "compile"}), "simple_mask", batch=3, new_tokens=24)
    rows_of(session)
    seen = session.prove()
    assert seen["graphs"] == 2
    assert seen["recompiles"] == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_stay_close_to_the_plain_way(dtype: str, load_engine: LoadEngine) -> None:
    everything = ["fused_softmax", "fused_layer_norm", "fused_gelu", "fast_linear", "flash_everywhere"]
    for uses in (everything[:4], everything[1:]):
        workload: dict[str, Any] = {"architecture": "tiny-bigcode", "dtype": dtype, "batch": 2}
        plain, session = load_engine(**workload), load_engine(*uses, **workload)
        tokens = rows_of(plain)[0]
        assert float((session.log_probs(tokens).exp() - plain.log_probs(tokens).exp()).abs().max()) < 0.1


def test_a_head_seen_transposed_is_still_the_embedding(load_engine: LoadEngine) -> None:
    plain, seen = load_engine(architecture="tiny-bigcode"), load_engine("fast_linear", architecture="tiny-bigcode")
    assert seen.memory() == plain.memory()
    copied = load_engine(("fast_linear", {"copied": True}), architecture="tiny-bigcode")
    arch = copied.decoder.spec.arch
    assert copied.memory()["weights"] == plain.memory()["weights"] + 4 * arch.vocabulary * arch.hidden


def test_gelu_at_the_end_of_a_product_multiplies_the_same_matrix() -> None:
    """On a CPU the product ends with the exact GELU instead, so the comparison is to that."""
    import torch
    from torch.nn import functional

    from claimbench.engine.kernels.fused import DenseGelu, FastLinear
    from claimbench.engine.model.parts import PlainLinear
    from claimbench.engine.model.shards import Affine

    torch.manual_seed(0)
    affine = Affine(torch.randn(6, 4), torch.randn(6))
    x = torch.randn(2, 3, 4)
    spec: Any = SimpleNamespace(activation="tanh_gelu")
    expected = functional.gelu(functional.linear(x, affine.weight, affine.bias))
    for dense in (PlainLinear(affine), FastLinear(affine)):
        assert torch.allclose(DenseGelu(dense, spec)(x), expected, atol=1e-5)
    with pytest.raises(Unavailable, match="plain matrices with a bias"):
        DenseGelu(PlainLinear(Affine(affine.weight)), spec)


def test_megatrons_kernel_is_handed_booleans() -> None:
    """A stand-in for the kernel does what it does: hides where the mask is true, and scales."""
    import torch

    from claimbench.engine.kernels.softmax import MegatronSoftmax
    from claimbench.engine.model.parts import plain_softmax

    def kernel(scores: Any, mask: Any, scale: float) -> Any:
        assert mask.dtype == torch.bool
        assert mask.is_contiguous()
        assert mask.shape[1:] == (1, *scores.shape[2:])
        return (scores * scale).masked_fill(mask, -10000.0).softmax(-1)

    torch.manual_seed(0)
    softmax = MegatronSoftmax(kernel)
    for keys in (3, 7, 20):
        scores = torch.randn(2, 4, 1, keys)
        bias = torch.zeros(2, 1, 1, keys)
        bias[1, :, :, :2] = torch.finfo(torch.float32).min
        for given in (None, bias, bias):
            assert torch.allclose(softmax(scores, given, 0.5), plain_softmax(scores, given, 0.5), atol=1e-6)


def test_a_kernel_that_is_not_built_is_unavailable() -> None:
    from claimbench.engine.kernels import softmax as softmax_kernels

    with pytest.raises(Unavailable, match="build apex"):
        softmax_kernels.megatron_softmax()


@pytest.mark.parametrize(
    ("settings", "changed", "reason"),
    [
        ({"how": "triton"}, {"device": "cpu"}, "needs a CUDA device"),
        ({"how": "megatron"}, {"device": "cpu"}, "needs a CUDA device"),
        ({"how": "megatron"}, {"device": "cuda"}, "apex is not installed"),
    ],
)
def test_a_kernel_says_what_it_lacks(settings: dict[str, Any], changed: dict[str, Any], reason: str) -> None:
    module: Any = optimizations.find("fused_softmax")
    cell = engine_cell(("fused_softmax", settings), **changed)
    assert reason in module.unavailable(cell, module.Settings(**settings))


def test_a_kernel_that_is_wide_on_the_chip_cannot_be_asked_to_be_narrow() -> None:
    module: Any = optimizations.find("fused_softmax")
    with pytest.raises(ValidationError, match="float32 on the chip"):
        module.Settings(how="triton", wide=False)


def test_the_triton_kernel_is_a_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted on the CPU, where Triton is installed."""
    import torch

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton")
    from claimbench.engine.kernels.softmax import triton_softmax
    from claimbench.engine.model.parts import plain_softmax

    torch.manual_seed(0)
    softmax = triton_softmax()
    for batch, heads, new, keys in ((1, 1, 1, 1), (2, 3, 1, 5), (2, 3, 4, 17)):
        scores = torch.randn(batch, heads, new, keys)
        for shape in (None, (batch, 1, new, keys), (1, heads, 1, keys)):
            bias = None if shape is None else torch.randn(shape)
            assert torch.allclose(softmax(scores, bias, 0.3), plain_softmax(scores, bias, 0.3), atol=1e-6)
