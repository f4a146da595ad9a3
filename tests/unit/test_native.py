"""The native step against Transformers' own models, and its formats against the same maths in torch."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from claimbench.cost_model import cost
from claimbench.engine.model.read_spec import read_spec
from claimbench.engine.model.shards import Affine
from claimbench.engine.model.spec import Spec
from claimbench.engine.model.weights import Weights, read_weights
from claimbench.engine.native import build, instruction_sets, packing
from claimbench.engine.native.decoder import NativeDecoder, unavailable
from claimbench.engine.native.packed_model import Formats, matrices_of
from claimbench.errors import Unavailable

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable())),
]

FAMILIES = ("tiny-llama", "tiny-bigcode", "tiny-bloom")
PROMPT_TOKENS, NEW_TOKENS, CAPACITY = 70, 4, 96  # more than two chunks of attention
AVX_VNNI_BY_AVX512 = """
#include <immintrin.h>
#undef __AVX512F__
#undef __AVX512BW__
#undef __AVX512VNNI__
#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32
"""
"""Both instructions compute the same, and more CPUs have the wider one."""
ON_X86 = ("sse2", "avx2", "avx_vnni", "avx_vnni by AVX-512's", "avx512", "avx512_vnni")
OTHER_BUILDS = ON_X86 if platform.machine() == "x86_64" else ("portable",)
ROUNDED: dict[packing.Format, float] = {"float32": 1e-5, "bfloat16": 1e-5, "int8": 3e-4, "int4": 3e-4}
"""How far two orders of the same sums may be apart: where activations are rounded, a last bit may become a step."""
SMOLLM2 = sorted(Path(__file__).parents[2].glob("resources/checkpoints/smollm2-*/config.json"))


class Case(NamedTuple):
    """A decoder of a family, and what Transformers says of it."""

    model: Any
    spec: Spec
    weights: Weights

    def with_matrices(self, change: Callable[[Any], Any]) -> Case:
        """The same decoder for Transformers, each matrix put through `change`; the native one keeps its weights."""
        import copy

        model = copy.deepcopy(self.model)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight = torch.nn.Parameter(change(module.weight.detach()))  # the head is tied no longer
        return self._replace(model=model)


def make_case(folder: Path, architecture: str, **changed: Any) -> Case:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**cost.config(architecture) | changed)
    config.initializer_range = 0.2
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.1)
    model.save_pretrained(folder)
    spec = read_spec(json.loads((folder / "config.json").read_text()))
    return Case(model, spec, read_weights(folder, spec, torch.float32, "cpu"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {name: make_case(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


@pytest.fixture(scope="module", autouse=True)
def one_build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Libraries are built once, in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLAIMBENCH_CACHE", str(tmp_path_factory.mktemp("native")))
        build.library.cache_clear()
        yield
    build.library.cache_clear()


class Pass(NamedTuple):
    """What came before, as Transformers computed it, and the tokens and logits of the steps after it."""

    keys: list[Any]
    values: list[Any]
    starts: Any
    tokens: Any  # [steps, batch]
    logits: Any  # [steps, batch, vocabulary]


@torch.inference_mode()
def reference(case: Case, batch: int, dtype: Any = torch.float32, new_tokens: int = NEW_TOKENS) -> Pass:
    """Prefill by Transformers, then steps; rows of a batch start 0, 7, 14, ... slots late."""
    from transformers import DynamicCache

    arch = case.spec.arch
    torch.manual_seed(1)
    prompt_tokens = PROMPT_TOKENS
    ids = torch.randint(0, arch.vocabulary, (batch, prompt_tokens + new_tokens))
    starts = 7 * torch.arange(batch)
    mask = (torch.arange(ids.shape[1]) >= starts[:, None]).long()
    positions = (torch.arange(ids.shape[1]) - starts[:, None]).clamp(min=0)
    placed = {} if case.spec.positions == "alibi" else {"position_ids": positions}
    logits = case.model(ids, attention_mask=mask, **placed).logits[:, prompt_tokens:].transpose(0, 1)
    placed = {name: value[:, :prompt_tokens] for name, value in placed.items()}
    cache = DynamicCache()  # without the model's config it keeps what a sliding window would drop
    case.model(ids[:, :prompt_tokens], attention_mask=mask[:, :prompt_tokens], past_key_values=cache, **placed)
    keys, values = [], []
    for layer in cache.layers:
        for filled, slots in ((layer.keys, keys), (layer.values, values)):
            slots.append(torch.zeros(batch, arch.kv_heads, CAPACITY, arch.head_dim, dtype=dtype))
            slots[-1][:, :, :prompt_tokens] = filled.view(batch, arch.kv_heads, prompt_tokens, arch.head_dim)
    return Pass(keys, values, starts, ids[:, prompt_tokens:].T.contiguous(), logits)


def run(decoder: NativeDecoder, told: Pass, new: int = 1, **asked: Any) -> Any:
    """Logits after every token, [steps, batch, vocabulary], `new` of them a pass; the caches of `told` stay as they
    were."""
    keys, values = [t.clone() for t in told.keys], [t.clone() for t in told.values]
    steps = []
    for past in range(0, len(told.tokens), new):
        length, tokens = PROMPT_TOKENS + past, told.tokens[past : past + new].T.contiguous()  # [batch, new]
        places = (length + torch.arange(tokens.shape[1]) - told.starts[:, None]).contiguous()
        steps.append(decoder.step(tokens, places, keys, values, told.starts, length, **asked).clone())
    return torch.cat(steps, 1).transpose(0, 1)


def close(ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [1, 3])
def test_float32_steps_give_the_logits_of_transformers(cases: dict[str, Case], family: str, batch: int) -> None:
    case = cases[family]
    told = reference(case, batch)
    close(run(NativeDecoder(case.spec, case.weights, threads=2), told), told.logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("batch", "new"), [(1, 2), (3, 3), (1, 14)])
def test_several_tokens_a_row_in_one_pass_give_what_they_give_one_by_one(
    cases: dict[str, Case], family: str, batch: int, new: int
) -> None:
    """Steps of 14 tokens in passes of `new`, the last one shorter."""
    case = cases[family]
    told = reference(case, batch, new_tokens=14)
    close(run(NativeDecoder(case.spec, case.weights, threads=2), told, new), told.logits)
    for form in packing.FORMATS:
        decoder = NativeDecoder(case.spec, case.weights, form, threads=3)
        close(run(decoder, told, new), run(decoder, told), ROUNDED[form])


def test_logits_are_computed_where_they_are_asked_for(cases: dict[str, Case]) -> None:
    case = cases["tiny-llama"]
    told = reference(case, 3)
    decoder = NativeDecoder(case.spec, case.weights, threads=2)
    every = run(decoder, told, NEW_TOKENS)
    assert run(decoder, told, NEW_TOKENS, logits_to_keep=0).shape == (0, *every.shape[1:])
    for logits_to_keep in range(1, NEW_TOKENS + 1):
        close(
            run(decoder, told, NEW_TOKENS, logits_to_keep=logits_to_keep),
            every[NEW_TOKENS - logits_to_keep :],
            ROUNDED["float32"],
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_layers_are_a_model_of_their_own(cases: dict[str, Case], family: str) -> None:
    case = cases[family]
    told = reference(case, 2)
    first = replace(case.spec, arch=case.spec.arch._replace(layers=1))
    alone = NativeDecoder(first, replace(case.weights, layers=case.weights.layers[:1]), threads=2)
    short = told._replace(keys=told.keys[:1], values=told.values[:1])
    whole = NativeDecoder(case.spec, case.weights, threads=2)
    assert torch.equal(run(whole, told, 2, layers=1), run(alone, short, 2))
    assert not torch.allclose(run(whole, told, 2, layers=1), run(whole, told, 2))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lines", [1, 5, 21])
def test_a_product_is_that_of_the_matrix_it_unpacks_to(cases: dict[str, Case], family: str, lines: int) -> None:
    case = cases[family]
    torch.manual_seed(2)
    matrices = [affine for layer in case.weights.layers for affine in matrices_of(layer)] + [Affine(case.weights.head)]
    for form in packing.FORMATS:
        decoder = NativeDecoder(case.spec, case.weights, form, threads=2)
        for number, affine in enumerate(matrices):
            rows, columns = affine.weight.shape
            x = torch.randn(lines, columns)
            told = torch.nn.functional.linear(x, packing.unpack(packing.pack(affine.weight, form)), affine.bias)
            close(decoder.multiply(number, x, rows), told, ROUNDED[form])


def test_a_product_with_another_shape_is_refused(cases: dict[str, Case]) -> None:
    case = cases["tiny-llama"]
    decoder = NativeDecoder(case.spec, case.weights, threads=1)
    rows, columns = case.weights.layers[0].qkv.weight.shape
    for matrix, x, wanted in (
        (0, torch.zeros(2, columns + 1), rows),
        (0, torch.zeros(2, columns), rows + 1),
        (0, torch.zeros(2, columns).bfloat16(), rows),
        (0, torch.zeros(columns, 2).T, rows),
        (0, torch.zeros(columns), rows),
        (4 * case.spec.arch.layers + 1, torch.zeros(2, columns), rows),
        (-1, torch.zeros(2, columns), rows),
    ):
        with pytest.raises(ValueError, match="expected"):
            decoder.multiply(matrix, x, wanted)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_format_computes_with_the_matrices_that_it_unpacks_to(
    cases: dict[str, Case], family: str, form: packing.Format, batch: int
) -> None:
    case = cases[family]
    told = reference(case.with_matrices(lambda weight: packing.unpack(packing.pack(weight, form))), batch)
    logits = run(NativeDecoder(case.spec, case.weights, form, threads=2), told)
    close(logits, told.logits, 3e-4)
    exact = reference(case, batch).logits
    assert not torch.allclose(logits, exact, rtol=3e-4, atol=3e-4), f"{form} changed nothing: it did not run"


def test_groups_of_matrices_have_formats_of_their_own(cases: dict[str, Case]) -> None:
    case = cases["tiny-llama"]
    head = case.model.lm_head.weight.shape

    def change(weight: Any) -> Any:
        return packing.unpack(packing.pack(weight, "int8" if weight.shape == head else "int4"))

    told = reference(case.with_matrices(change), 2)
    decoder = NativeDecoder(case.spec, case.weights, Formats("int4", "int4", head="int8"), threads=2)
    close(run(decoder, told), told.logits, 3e-4)


@pytest.mark.parametrize("batch", [2, 5, 32])
def test_rows_of_a_batch_do_not_touch_each_other(cases: dict[str, Case], batch: int) -> None:
    case = cases["tiny-llama"]
    for form in packing.FORMATS:
        decoder = NativeDecoder(case.spec, case.weights, form, threads=2)
        told = reference(case, min(batch, 9))
        tiles = -(-batch // len(told.starts))
        many = Pass(
            [t.repeat(tiles, 1, 1, 1)[:batch].contiguous() for t in told.keys],
            [t.repeat(tiles, 1, 1, 1)[:batch].contiguous() for t in told.values],
            told.starts.repeat(tiles)[:batch].contiguous(),
            told.tokens.repeat(1, tiles)[:, :batch].contiguous(),
            told.logits,
        )
        together = run(decoder, many)
        for row in {0, batch - 1}:
            alone = Pass(
                [t[row : row + 1].contiguous() for t in many.keys],
                [t[row : row + 1].contiguous() for t in many.values],
                many.starts[row : row + 1],
                many.tokens[:, row : row + 1].contiguous(),
                told.logits,
            )
            close(together[:, row], run(decoder, alone)[:, 0], ROUNDED[form])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", OTHER_BUILDS)
def test_every_set_of_instructions_computes_the_same(
    cases: dict[str, Case], family: str, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One line and several, as many as one reading of a panel serves, and more than that."""
    case = cases[family]
    told, flags = reference(case, 3), other_build(name, tmp_path_factory)
    several = reference(case, 1, new_tokens=14)
    for form in packing.FORMATS:
        fast = NativeDecoder(case.spec, case.weights, form, threads=2)
        other = NativeDecoder(case.spec, case.weights, form, threads=2, flags=flags)
        assert other.instructions == name.partition(" ")[0]
        close(run(other, told), run(fast, told), ROUNDED[form])
        close(run(other, several, 14), run(fast, several, 14), ROUNDED[form])
        rows, columns = case.weights.layers[0].qkv.weight.shape
        for lines in (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 40):
            x = torch.randn(lines, columns)
            close(other.multiply(0, x, rows), fast.multiply(0, x, rows), ROUNDED[form])


def other_build(name: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What to build with, slightly optimised, since all of it takes a compiler half a minute."""
    if name == "avx_vnni by AVX-512's":
        if instruction_sets.lacks("avx512_vnni"):
            pytest.skip("this CPU has no AVX512-VNNI")
        header = tmp_path_factory.mktemp("header") / "avx_vnni.h"
        header.write_text(AVX_VNNI_BY_AVX512, encoding="utf-8")
        return (*instruction_sets.SETS["avx512_vnni"].flags, "-O1", "-include", str(header))
    if name == "portable":
        return ("-O1",)
    reason = instruction_sets.lacks(name)  # type: ignore[arg-type]
    if reason:
        pytest.skip(reason)
    return (*instruction_sets.SETS[name].flags, "-O1")  # type: ignore[index]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sets of x86-64")
@pytest.mark.parametrize("name", instruction_sets.NAMES)
def test_every_set_of_instructions_is_built_even_where_it_does_not_run(name: instruction_sets.Instructions) -> None:
    library = build.library((*instruction_sets.SETS[name].flags, "-O1"))
    assert library.instructions().decode() == name


def test_a_cpu_that_lacks_instructions_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(instruction_sets.machine, "cpu_flags", lambda: {"sse2", "avx2", "fma", "f16c"})
    assert instruction_sets.here() == ("sse2",)
    with pytest.raises(Unavailable, match="lacks bmi2"):
        instruction_sets.flags_of("avx2")
    assert instruction_sets.flags_of(None) == ()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(Unavailable, match="of x86-64"):
        instruction_sets.flags_of("sse2")


@pytest.mark.parametrize("threads", [1, 3, 64])
def test_the_number_of_threads_changes_no_result(cases: dict[str, Case], threads: int) -> None:
    case = cases["tiny-bigcode"]
    told = reference(case, 2)
    close(run(NativeDecoder(case.spec, case.weights, threads=threads), told), told.logits)


def test_a_bfloat16_cache_is_read_and_written(cases: dict[str, Case]) -> None:
    case = cases["tiny-llama"]
    told = reference(case, 2, torch.bfloat16)
    decoder = NativeDecoder(case.spec, case.weights, threads=2)
    logits = run(decoder, told)
    wide = told._replace(keys=[t.float() for t in told.keys], values=[t.float() for t in told.values])
    close(logits[:1], run(decoder, wide)[:1], 1e-2)
    close(logits, told.logits, 5e-2)


def test_a_bfloat16_embedding_is_looked_up(cases: dict[str, Case]) -> None:
    case = cases["tiny-llama"]
    told = reference(case, 1)
    narrow = case.weights.embedding.bfloat16()
    ours = NativeDecoder(case.spec, replace(case.weights, embedding=narrow), threads=1)
    theirs = NativeDecoder(case.spec, replace(case.weights, embedding=narrow.float()), threads=1)
    assert torch.equal(run(ours, told), run(theirs, told))


@torch.inference_mode()
def test_a_sliding_window_hides_what_is_older(cases: dict[str, Case], tmp_path: Path) -> None:
    case = make_case(tmp_path, "tiny-llama", model_type="mistral", sliding_window=16, architectures=None)
    told = reference(case, 2)
    assert case.spec.window == 16
    close(run(NativeDecoder(case.spec, case.weights, threads=2), told), told.logits)


def test_sizes_that_fill_no_panel_are_padded(tmp_path: Path) -> None:
    case = make_case(tmp_path, "tiny-llama", hidden_size=72, intermediate_size=100, vocab_size=301, head_dim=16)
    for form in packing.FORMATS:
        told = reference(case.with_matrices(lambda weight, f=form: packing.unpack(packing.pack(weight, f))), 2)
        close(run(NativeDecoder(case.spec, case.weights, form, threads=2), told), told.logits, 3e-4)


def test_the_first_position_attends_to_itself_alone(cases: dict[str, Case]) -> None:
    case = cases["tiny-bloom"]
    arch = case.spec.arch
    decoder = NativeDecoder(case.spec, case.weights, threads=2)
    room = [torch.full((1, arch.kv_heads, 8, arch.head_dim), torch.nan) for _ in range(2 * arch.layers)]
    token, zero = torch.tensor([5]), torch.tensor([0])
    logits = decoder.step(token[None], zero[None], room[: arch.layers], room[arch.layers :], zero, 0)
    with torch.inference_mode():
        close(logits[0], case.model(token[None]).logits[0])


# ---- formats


@pytest.mark.parametrize("form", packing.FORMATS)
@pytest.mark.parametrize("shape", [(16, 64), (50, 96), (7, 100), (4100, 32)])
def test_unpacking_gives_the_matrix_back(form: packing.Format, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    packed = packing.pack(weight, form)
    assert packed.data.nbytes == packing.packed_bytes(*shape, form)
    error = (packing.unpack(packed) - weight).abs().max() / weight.abs().max()
    assert error <= {"float32": 0, "bfloat16": 2**-8, "int8": 0.6 / 127, "int4": 1.1 / 15}[form]


def test_int4_gives_back_the_values_of_a_q4_1_tensor() -> None:
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (64, 3, 32)).float()
    codes[..., 0], codes[..., 1] = 0, 15  # its quantiser spans each group
    scale, minimum = (torch.rand(64, 3, 1) * 0.1).half().float(), torch.randn(64, 3, 1).half().float()
    weight = (codes * scale + minimum).flatten(1)
    torch.testing.assert_close(packing.unpack(packing.pack(weight, "int4")), weight, rtol=0, atol=1e-6)


def test_int8_gives_back_the_values_of_a_q8_0_tensor() -> None:
    torch.manual_seed(0)
    codes = torch.randint(-127, 128, (64, 4, 32)).float()
    codes[..., 3] = 127
    weight = (codes * (torch.rand(64, 4, 1) * 0.1).half().float()).flatten(1)
    torch.testing.assert_close(packing.unpack(packing.pack(weight, "int8")), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_group_of_equal_values_comes_back(form: packing.Format) -> None:
    for value in (0.0, 0.5, -3.0):
        weight = torch.full((16, 64), value)
        torch.testing.assert_close(packing.unpack(packing.pack(weight, form)), weight, rtol=1e-3, atol=0)


def test_weight_bytes_are_what_one_step_reads(cases: dict[str, Case]) -> None:
    case = cases["tiny-llama"]
    arch = case.spec.arch
    looked_up = 4 * arch.hidden
    rotary = 4 * (arch.head_dim // 2 + 2)  # frequencies, and what two sets of them are scaled with
    assert NativeDecoder(case.spec, case.weights).weight_bytes() == 4 * arch.step_weights + looked_up + rotary
    lean = NativeDecoder(case.spec, case.weights, "int4").weight_bytes()
    assert lean < 4 * arch.step_weights * 0.17


# ---- what may go wrong


def test_numbers_out_of_range_are_refused(cases: dict[str, Case]) -> None:
    case = cases["tiny-bigcode"]
    told = reference(case, 1)
    decoder = NativeDecoder(case.spec, case.weights, threads=2)
    token, place, start = told.tokens[:1], torch.tensor([[PROMPT_TOKENS]]), told.starts

    def step(
        tokens: Any = token, positions: Any = place, starts: Any = start, length: int = PROMPT_TOKENS, **asked: Any
    ) -> Any:
        return decoder.step(tokens, positions, told.keys, told.values, starts, length, **asked)

    for wrong in (
        {"tokens": torch.tensor([[case.spec.arch.vocabulary]])},
        {"tokens": torch.tensor([[-1]])},
        {"tokens": torch.tensor([[1], [2]])},
        {"tokens": torch.tensor([[1, 2]])},
        {"tokens": torch.tensor([[1]], dtype=torch.int32)},
        {"positions": torch.tensor([[case.spec.arch.context]])},
        {"positions": torch.tensor([[-1]])},
        {"starts": torch.tensor([PROMPT_TOKENS + 1])},
        {"length": CAPACITY},
        {"logits_to_keep": 2},
        {"layers": case.spec.arch.layers + 1},
    ):
        with pytest.raises(ValueError, match="expected"):
            step(**wrong)
    with pytest.raises(ValueError, match="expected"):
        decoder.step(token, place, told.keys[:1], told.values, start, PROMPT_TOKENS)
    with pytest.raises(ValueError, match="expected"):
        decoder.step(token, place, [t.double() for t in told.keys], told.values, start, PROMPT_TOKENS)
    close(step()[0], told.logits[0])


def test_heads_of_an_odd_size_are_unavailable(cases: dict[str, Case]) -> None:
    spec = cases["tiny-llama"].spec
    odd = replace(spec, arch=spec.arch._replace(head_dim=20))
    assert "heads of 20" in str(unavailable(odd))
    with pytest.raises(Unavailable, match="heads of 20"):
        NativeDecoder(odd, cases["tiny-llama"].weights)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C compiler: looked for cc, gcc, clang" in str(build.unavailable())
    with pytest.raises(Unavailable, match="no C compiler"):
        build.library(("-O1",))


def test_what_the_compiler_complains_about_is_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLAIMBENCH_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match=r"does not build decode\.c: .*no-such-option"):
        build.library(("-fno-such-option-as-this",))
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_sleep_between_calls_and_end_with_the_decoder(cases: dict[str, Case]) -> None:
    case = cases["tiny-llama"]
    before = {thread.id for thread in psutil.Process().threads()}
    told = reference(case, 1)
    before |= {thread.id for thread in psutil.Process().threads()}
    decoder = NativeDecoder(case.spec, case.weights, threads=4)
    run(decoder, told)
    ours = {thread.id for thread in psutil.Process().threads()} - before
    assert len(ours) == 3

    def states() -> set[str]:
        return {Path(f"/proc/self/task/{i}/stat").read_text().rpartition(")")[2].split()[0] for i in ours}

    until = time.monotonic() + 20
    while states() != {"S"}:
        assert time.monotonic() < until, "idle threads go on running"
        time.sleep(0.01)
    run(decoder, told)
    decoder.close()
    assert not ours & {thread.id for thread in psutil.Process().threads()}
    with pytest.raises(ValueError, match="closed"):
        run(decoder, told)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(cases: dict[str, Case]) -> None:
    case = cases["tiny-llama"]
    told = reference(case, 1)
    decoder = NativeDecoder(case.spec, case.weights, threads=3)
    expected = run(decoder, told)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if torch.equal(run(decoder, told), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(run(decoder, told), expected)


def test_a_process_ends_cleanly_with_a_decoder_open(cases: dict[str, Case], tmp_path: Path) -> None:
    cases["tiny-llama"].model.save_pretrained(tmp_path)
    program = """
        import json, sys, torch
        from pathlib import Path
        from claimbench.engine.model.read_spec import read_spec
        from claimbench.engine.model.weights import read_weights
        from claimbench.engine.native.decoder import NativeDecoder
        folder = Path(sys.argv[1])
        spec = read_spec(json.loads((folder / "config.json").read_text()))
        decoder = NativeDecoder(spec, read_weights(folder, spec, torch.float32, "cpu"), threads=3)
        room = [torch.zeros(1, spec.arch.kv_heads, 4, spec.arch.head_dim) for _ in range(2 * spec.arch.layers)]
        zero = torch.tensor([0])
        print(decoder.step(zero[None], zero[None], room[::2], room[1::2], zero, 0).isfinite().all().item())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


# ---- a real model


@pytest.mark.skipif(not SMOLLM2, reason="resources/checkpoints holds no smollm2: `snakemake fetch` makes it")
@torch.inference_mode()
def test_greedy_tokens_of_smollm2_are_those_of_transformers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = SMOLLM2[0].parent
    spec = read_spec(json.loads(SMOLLM2[0].read_text()))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)("The river Thames flows through", return_tensors="pt").input_ids
    new, prompt = 32, ids.shape[1]
    mask = torch.ones_like(ids)
    told = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None)[0, prompt:]
    filled = model(ids, use_cache=True)
    arch = spec.arch
    shape = 1, arch.kv_heads, prompt + new, arch.head_dim
    keys, values = ([torch.zeros(shape) for _ in range(arch.layers)] for _ in range(2))
    for layer, key, value in zip(filled.past_key_values.layers, keys, values, strict=True):
        key[:, :, :prompt], value[:, :, :prompt] = layer.keys, layer.values
    decoder = NativeDecoder(spec, read_weights(folder, spec, torch.float32, "cpu"), threads=2)
    token, chosen, start = filled.logits[:, -1].argmax(-1), [], torch.tensor([0])
    for length in range(prompt, prompt + new):
        chosen.append(int(token))
        token = decoder.step(token[None], torch.tensor([[length]]), keys, values, start, length)[0].argmax(-1)
    assert chosen == told.tolist()
