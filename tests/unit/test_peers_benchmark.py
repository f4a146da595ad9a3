"""The benchmark beside other systems: who is compared, with what, and what never gets a ratio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.programs import program

PROMPT = [1, 2, 3, 4]  # as long as the null backend's


peers = program("benchmarks/peers.py")
requantize = program("benchmarks/peers/requantize.py")


def checkpoint(folder: Path, tensors: dict[str, list[int]]) -> Path:
    folder.mkdir(exist_ok=True)
    entries = {name: {"dtype": "F32", "shape": shape} for name, shape in tensors.items()}
    manifest = {"source": "random://tiny-llama", "architecture": "tiny-llama", "files": [{"tensors": entries}]}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def plan_for(folder: Path, **changed: Any) -> Any:
    facts: dict[str, Any] = {
        "checkpoint": checkpoint(folder, {}),
        "gguf": None,
        "prompt_text": "Hello",
        "prompt": PROMPT,
    }
    facts |= {"new_tokens": 8, "threads": 1, "work": folder, "pythons": {}}
    return peers.Plan(**facts | changed)


def null(name: str, **options: Any) -> Any:
    """A row whose model is the null backend: any pace, any token, any failure."""
    settings = {"backend": "null_model", "dtype": "float32", "optimizations": [], "options": options}
    return peers.Row(name, "claimbench", settings)


def seen(name: str, rounds: list[list[float]], weight_bytes: int | None = None) -> Any:
    """Rounds of generations with three tokens, at a set decode speed after a slow first token."""
    samples = [[{"token_s": [9.0, 9 + 1 / speed, 9 + 2 / speed]} for speed in speeds] for speeds in rounds]
    return peers.Measured(null(name), weight_bytes=weight_bytes, rounds=samples)


def test_decode_speed_leaves_the_first_token_out() -> None:
    assert peers.decode_tok_s([5.0, 5.25, 5.5]) == pytest.approx(4.0)


def test_tokens_agree_up_to_the_first_that_differs() -> None:
    assert peers.same_prefix([1, 2, 9, 4], [1, 2, 3, 4]) == 2
    assert peers.same_prefix([1, 2, 3], [1, 2, 3]) == 3


def test_a_lossy_peer_that_ranks_most_tokens_first_is_the_same_model() -> None:
    lossy = peers.Measured(null("lossy"), tokens=[1, 9, 9, 9], forced=[1, 9, 3, 4])
    assert peers.judge_tokens(lossy, [1, 2, 3, 4], 0.75) is None


def test_a_peer_that_ranks_other_tokens_first_is_wrong() -> None:
    broken = peers.Measured(null("broken"), tokens=[1, 2, 3, 4], forced=[1, 9, 9, 4])
    assert "50%" in peers.judge_tokens(broken, [1, 2, 3, 4], 0.75)


def test_a_peer_that_cannot_be_forced_must_give_the_tokens_themselves() -> None:
    assert peers.judge_tokens(peers.Measured(null("same"), tokens=[1, 2, 3, 4]), [1, 2, 3, 4], 0.75) is None
    other = peers.Measured(null("other"), tokens=[1, 9, 3, 4])
    assert "only 1 of 4" in peers.judge_tokens(other, [1, 2, 3, 4], 0.75)


@pytest.mark.parametrize(
    ("tokens", "forced", "stray"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 8, 7], [1, 8, 3], None),  # differs from the reference, and so it does when forced; later pasts differ
        ([1, 8, 7], [1, 2, 3], 1),  # what is forced is the reference's model, what is timed is not
        ([1, 8, 7], None, None),
    ],
)
def test_timed_steps_that_are_not_the_forced_ones_are_found(
    tokens: list[int], forced: list[int] | None, stray: int | None
) -> None:
    assert peers.strays(peers.Measured(null("row"), tokens=tokens, forced=forced), [1, 2, 3]) == stray


def test_ratios_are_taken_within_rounds_so_that_a_slow_minute_cancels() -> None:
    median, interval = peers.ratio(seen("of", [[20.0], [2.0], [40.0]]), seen("to", [[10.0], [1.0], [20.0]]))
    assert (median, interval.estimate, interval.low, interval.high) == pytest.approx((2, 2, 2, 2))


def test_a_round_without_a_number_is_left_out_of_the_ratio() -> None:
    median, interval = peers.ratio(seen("of", [[30.0], [], [30.0]]), seen("to", [[10.0], [99.0], [10.0]]))
    assert (median, interval.rounds) == (pytest.approx(3), 2)


def test_the_share_of_bandwidth_is_of_the_same_rounds_reading() -> None:
    measured = seen("row", [[10.0], [5.0], [5.0]], weight_bytes=100)
    assert peers.of_bandwidth(measured, [2000.0, 1000.0, None]) == pytest.approx(0.5)


def test_a_number_above_its_ceiling_is_doubted(tmp_path: Path) -> None:
    fast, slow = seen("fast", [[30.0]], weight_bytes=100), seen("slow", [[3.0]], weight_bytes=100)
    report = peers.Report(plan_for(tmp_path), {"fast": fast, "slow": slow}, bandwidth=[2000.0])
    assert [doubt.split(":")[0] for doubt in peers.above_ceiling(report)] == ["fast"]


def test_weights_are_counted_as_they_are_held(tmp_path: Path) -> None:
    tied = {"model.embed_tokens.weight": [10, 4], "layer.weight": [2, 4], "norm.weight": [4]}
    folder = checkpoint(tmp_path, tied)
    assert peers.bytes_per_token("float32", folder) == 4 * (40 + 8 + 4)
    assert peers.bytes_per_token("bfloat16", folder) == 2 * (40 + 8 + 4)
    assert peers.bytes_per_token("int8", folder) == (40 + 8) + 4 * (10 + 2) + 4 * 4


def test_of_an_untied_embedding_a_step_reads_only_the_head(tmp_path: Path) -> None:
    untied = {"model.embed_tokens.weight": [10, 4], "lm_head.weight": [10, 4], "norm.weight": [4]}
    assert peers.bytes_per_token("float32", checkpoint(tmp_path, untied)) == 4 * (40 + 4)


def test_our_rows_are_given_as_json() -> None:
    fp32, int8 = peers.rows_of_ours('{"fp32": ["a", {"b": {"c": 1}}], "int8": {"dtype": "bfloat16"}}')
    assert (fp32.name, fp32.settings["backend"], fp32.settings["dtype"]) == ("claimbench fp32", "engine", "float32")
    assert fp32.settings["optimizations"] == ["a", {"b": {"c": 1}}]
    assert (int8.settings["dtype"], int8.settings["optimizations"]) == ("bfloat16", [])


@pytest.mark.parametrize("text", ['{"x": {"optimisations": []}}', '{"x": "cpp_block"}'])
def test_a_row_of_ours_that_says_something_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--ours: x"):
        peers.rows_of_ours(text)


def test_a_peer_is_started_without_the_wait_policy_of_claimbench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    plan = plan_for(tmp_path, threads=3, extra={"theirs": {"LD_PRELOAD": "libfast.so"}})
    theirs, ours = plan.environment(peers.Row("theirs", "vllm", {})), plan.environment(null("ours"))
    assert "OMP_WAIT_POLICY" not in theirs
    assert "PYTHONPATH" not in theirs
    assert (theirs["OMP_NUM_THREADS"], theirs["LD_PRELOAD"]) == ("3", "libfast.so")
    assert ours["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 0.0), ("BF16", 2**-8), ("Q8_0", 1 / 127)])
def test_a_gguf_written_again_keeps_its_values_and_its_words(kind: str, tolerance: float, tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
    from gguf.quants import dequantize, quantize

    matrix = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    packed = quantize(matrix, GGMLQuantizationType.Q4_1)
    writer = GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_float32("llama.rope.freq_base", 100000.0)
    writer.add_tensor("matrix", packed, raw_dtype=GGMLQuantizationType.Q4_1)
    writer.add_tensor("vector", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    requantize.requantize(tmp_path / "small.gguf", tmp_path / "again.gguf", kind)
    again = GGUFReader(tmp_path / "again.gguf")
    assert again.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    assert again.fields["llama.rope.freq_base"].contents() == 100000.0
    tensors = {tensor.name: tensor for tensor in again.tensors}
    assert tensors["matrix"].tensor_type.name == kind
    assert tensors["vector"].tensor_type.name == "F32"
    before, after = dequantize(packed, GGMLQuantizationType.Q4_1), dequantize(tensors["matrix"].data, kind_of(kind))
    assert np.abs(after - before).max() <= tolerance * np.abs(before).max()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.gguf", "small.gguf"]


def kind_of(name: str) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[name]


@pytest.mark.model  # the bandwidth is read by torch
def test_peers_take_turns_and_whoever_is_absent_or_wrong_gets_no_ratio(tmp_path: Path) -> None:
    rows = [
        null(peers.REFERENCE, token=5, step_ms=8),
        null("faster", token=5, step_ms=2, prefill_ms=20),
        null("another model", token=6, step_ms=0.1),
        null("dies", fails="kill"),
        null("too few", token=5, fails="short"),
        null("something else ran", token=5, step_ms=0.1, fails="unproven"),
        peers.Row("misfit", "claimbench", {"backend": "null_model", "dtype": "float32", "optimizations": ["sdpa"]}),
        peers.Row("not installed", "vllm", {"dtype": "bfloat16"}, "bfloat16"),
    ]
    report = peers.take_turns(plan_for(tmp_path), rows, rounds=2, repeats=2, seed=0, least=0.75)
    reasons = {name: measured.reason for name, measured in report.measured.items()}
    assert reasons[peers.REFERENCE] is None
    assert reasons["faster"] is None
    assert "only 0 of 8 tokens" in reasons["another model"]
    assert "it died" in reasons["dies"]
    assert "expected 8 tokens, got 7" in reasons["too few"]
    assert "unproven: WrongOutput" in reasons["something else ran"]
    assert "'sdpa' changes the attention" in reasons["misfit"]
    assert "--python vllm=PATH" in reasons["not installed"]

    faster = report.measured["faster"]
    assert [len(samples) for samples in faster.rounds] == [2, 2]
    stamps = [sample["token_s"] for samples in faster.rounds for sample in samples]
    assert all(len(token_s) == 8 and token_s == sorted(token_s) for token_s in stamps)
    assert all(read and read > 0 for read in report.bandwidth)
    _, interval = peers.ratio(faster, report.measured[peers.REFERENCE])
    assert interval.rounds == 2
    timed, absent = peers.render(report).split("Not in the table:")
    assert "| faster |" in timed
    assert "| another model |" not in timed
    assert all(f"- {name}: " in absent for name, reason in reasons.items() if reason)
    assert json.loads(json.dumps(peers.record(report)))["rows"]["faster"]["tokens"] == [5] * 8


def test_without_its_reference_nothing_is_compared(tmp_path: Path) -> None:
    with pytest.raises(peers.PeerFailed, match="asked to be unavailable"):
        peers.take_turns(plan_for(tmp_path), [null(peers.REFERENCE, fails="unavailable")], 1, 1, 0, 0.75)


@pytest.mark.parametrize("instructions", sorted(peers.HELD))
def test_peers_are_held_to_instructions_by_their_own_variables(instructions: str, tmp_path: Path) -> None:
    plan = plan_for(tmp_path, instructions=instructions)
    eager, ctranslate2 = (next(row for row in peers.ROWS if row.peer == peer) for peer in ("claimbench", "ctranslate2"))
    assert plan.environment(eager)["ONEDNN_MAX_CPU_ISA"].lower().startswith(instructions.partition("_")[0])
    assert plan.environment(eager)["ATEN_CPU_CAPABILITY"] == instructions.partition("_")[0]
    assert plan.environment(ctranslate2)["CT2_FORCE_CPU_ISA"] == instructions.partition("_")[0].upper()
    assert "ONEDNN_MAX_CPU_ISA" not in plan_for(tmp_path).environment(eager)


@pytest.mark.parametrize("peer", sorted({row.peer for row in peers.ROWS} - {"claimbench", "ctranslate2"}))
def test_a_peer_that_cannot_be_held_says_so_unless_it_was_built_so(peer: str, tmp_path: Path) -> None:
    row = next(row for row in peers.ROWS if row.peer == peer)
    with pytest.raises(peers.PeerFailed, match="cannot be held to avx2"):
        plan_for(tmp_path, instructions="avx2").environment(row)
    assert plan_for(tmp_path, instructions="avx2", built=frozenset({peer})).environment(row)
