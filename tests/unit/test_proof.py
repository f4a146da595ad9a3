"""Evidence, and what is made of it; what was seen is written out by hand here, and recording it imports no compiler."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from claimbench import optimizations
from claimbench.errors import WrongOutput
from claimbench.hf.evidence import SDPA, TransformersEvidence, check_plain
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Compiled, expect

PLAIN = TransformersEvidence(
    device="cpu",
    operators={"aten::bmm": 16, "aten::_softmax": 8},
    caches={"DynamicCache": ["DynamicLayer"]},
    candidate_generators=[],
    modules={"Linear": 15},
    quant_types={},
    weights={"Parameter float32": 20},
    layers=2,
    attention="eager",
    wrapper="LlamaForCausalLM",
    functions=["_pause", "__call__", "_sample", "generate"],
    grad_around=True,
    grad_enabled=False,
    inference_mode=False,
    step_tokens=[1, 1, 1, 1],
    compiled=Compiled(),
    whole=(1, 10),
    earlier=[],
)


def prove(name: str, seen: TransformersEvidence, **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = optimizations.find(name).prove(seen, optimizations.settings_of(name, settings))
    return found


def test_a_failed_expectation_says_what_was_expected_and_what_was_seen() -> None:
    expect("warp drive", True, "warp 9", 9)
    with pytest.raises(WrongOutput, match="warp drive did not run: expected warp 9, saw 0"):
        expect("warp drive", False, "warp 9", 0)


def test_kernels_are_read_from_operators() -> None:
    seen = replace(PLAIN, operators={SDPA: 8, "aten::_scaled_dot_product_flash_attention_for_cpu": 8})
    assert seen.kernels == ["flash"]
    assert PLAIN.kernels == []
    assert PLAIN.decode_steps == 3


def test_a_plain_run_is_plain() -> None:
    assert check_plain(PLAIN, GenerationSetup(dtype="float32"))["attention"] == "eager"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"attention": "sdpa"}, "eager attention"),
        ({"operators": {SDPA: 8}}, "eager attention"),
        ({"step_tokens": [1, 3]}, "plain decoding"),
        ({"candidate_generators": ["PromptLookupCandidateGenerator"]}, "plain decoding"),
        ({"operators": {"Torch-Compiled Region": 1}}, "uncompiled code"),
        ({"caches": {"StaticCache": ["StaticLayer"]}}, "the dynamic cache"),
        ({"earlier": [(1, 5)]}, "a fresh process"),
    ],
)
def test_a_run_that_is_not_plain_is_found_out(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(WrongOutput, match=complaint):
        check_plain(replace(PLAIN, **change), GenerationSetup(dtype="float32"))


def test_flash_attention_of_pytorch_is_not_that_of_the_package() -> None:
    pytorch = {"aten::_flash_attention_forward": 4, "void pytorch_flash::flash_fwd_kernel<float>": 4}
    with pytest.raises(WrongOutput, match="flash_attention_2"):
        prove("flash_attention_2", replace(PLAIN, operators=pytorch))
    package = {**pytorch, "flash_attn::_flash_attn_forward": 4}
    assert prove("flash_attention_2", replace(PLAIN, operators=package))["operators"] == [
        "flash_attn::_flash_attn_forward"
    ]
    compiled = {**pytorch, "_flash_attn2_588b404::varlen_fwd": 4}
    assert prove("flash_attention_2", replace(PLAIN, operators=compiled))["operators"] == [
        "_flash_attn2_588b404::varlen_fwd"
    ]


def test_code_that_fell_back_to_eager_in_some_layers_is_found_out() -> None:
    whole = replace(PLAIN, operators={"Torch-Compiled Region": 6})
    assert prove("compile_layer", whole)["compiled_regions"] == 6
    with pytest.raises(WrongOutput, match="each of 2 layers of 3 decode steps, saw 5"):
        prove("compile_layer", replace(PLAIN, operators={"Torch-Compiled Region": 5}))


def test_reduce_overhead_on_a_gpu_needs_graphs() -> None:
    compiled = replace(PLAIN, device="cuda", operators={"Torch-Compiled Region": 3})
    assert prove("compile_model", compiled)["compiled_regions"] == 3
    with pytest.raises(WrongOutput, match="CUDA graph"):
        prove("compile_model", compiled, mode="reduce-overhead")
    launched = replace(compiled, operators={**compiled.operators, "cudaGraphLaunch": 3})
    assert prove("compile_model", launched, mode="reduce-overhead")["graph_launches"] == 3


def test_int4_needs_its_weights_and_its_kernel() -> None:
    packed = replace(PLAIN, weights={"Int4TilePackedTo4dTensor int32": 14})
    with pytest.raises(WrongOutput, match="int4pack"):
        prove("torchao_int4", packed)
    run = replace(packed, operators={"aten::_weight_int4pack_mm": 42})
    assert prove("torchao_int4", run)["weights"] == packed.weights


def test_one_layer_left_in_full_precision_is_found_out() -> None:
    seen = replace(PLAIN, modules={"Linear8bitLt": 14}, weights={"Int8Params int8": 13})
    with pytest.raises(WrongOutput, match="bitsandbytes_int8"):
        prove("bitsandbytes_int8", seen)


def test_growth_is_read_from_what_came_out_of_each_generation() -> None:
    grown = replace(PLAIN, whole=(4, 10), earlier=[(1, 10), (2, 10)], compiled=Compiled(recompiles=1))
    assert prove("growing", grown, of="batch", calls=2) == {"earlier": [(1, 10), (2, 10)], "recompiles": 1}
    for earlier in ([], [(1, 10)], [(2, 10), (1, 10)], [(1, 5), (2, 10)], [(2, 10), (4, 10)]):
        with pytest.raises(WrongOutput, match="2 generations before, each with a larger batch"):
            prove("growing", replace(grown, earlier=earlier), of="batch", calls=2)


RECORD_WITHOUT_COMPILER = """
import sys
import torch
from claimbench.proof import recorded
with recorded("cpu", shapes=True) as profiler:
    torch.ones(2, 3) @ torch.ones(3, 4)
shapes = [event.input_shapes for event in profiler.function_events if event.name == "aten::mm"]
assert shapes == [[[2, 3], [3, 4]]], shapes
assert "aten::mm" in [event.name() for event in profiler.kineto_results.events()]
print(sorted(name for name in ("torch._inductor", "torch._dynamo") if name in sys.modules))
"""


@pytest.mark.model
def test_operators_are_recorded_without_importing_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", RECORD_WITHOUT_COMPILER], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
