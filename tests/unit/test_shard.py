"""What `shard` writes, without loading a model: names, values, sizes, config and tokenizer files."""

from __future__ import annotations

import json
import struct
import tracemalloc
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from claimbench.checkpoints import manifest, model_config, safetensors_file
from claimbench.checkpoints.random_weights import encode
from claimbench.checkpoints.safetensors_file import StreamedTensor
from claimbench.checkpoints.shard import shard, split
from claimbench.checkpoints.tensors import full_name, shapes
from claimbench.cost_model import cost
from claimbench.errors import CorruptCheckpoint, SourceError
from claimbench.schema.cell import Checkpoint

TINY = ("tiny-llama", "tiny-bigcode", "tiny-bloom")


def random_checkpoint(architecture: str, query: str = "seed=0", **more: Any) -> Checkpoint:
    return Checkpoint(name="tiny", source=f"random://{architecture}?{query}", architecture=architecture, **more)


def make(tmp_path: Path, checkpoint: Checkpoint, max_shard_bytes: int = 10**9, folder: str = "out") -> Path:
    shard(checkpoint, tmp_path / f"{folder}-fetched", tmp_path / folder, max_shard_bytes)
    return tmp_path / folder


def values(folder: Path) -> dict[str, bytes]:
    tensors = [tensor for path in sorted(folder.glob("*.safetensors")) for tensor in safetensors_file.read(path)]
    return {tensor.name: b"".join(tensor.chunks()) for tensor in tensors}


@pytest.mark.parametrize("architecture", cost.architecture_names())
def test_the_table_of_tensors_counts_what_the_cost_model_counts(architecture: str) -> None:
    arch = cost.architecture(architecture)
    assert sum(prod(shape) for shape in shapes(arch).values()) == arch.weights


@pytest.mark.parametrize(
    ("architecture", "billions"),
    [
        ("santacoder", 1.12),
        ("starcoder", 15.52),
        ("bloom-176b", 176.25),
        ("bloom-560m", 0.56),
        ("llama-2-7b", 6.74),
        ("tinyllama-1.1b", 1.10),
    ],
)
def test_architectures_have_their_published_size(architecture: str, billions: float) -> None:
    assert cost.architecture(architecture).weights / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("architecture", TINY)
def test_a_random_checkpoint_is_whole_and_counted(architecture: str, tmp_path: Path) -> None:
    folder = make(tmp_path, random_checkpoint(architecture))
    found = manifest.verify(folder)
    arch = cost.architecture(architecture)
    assert found.parameters == arch.weights
    (file,) = found.weight_files
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == shapes(arch)
    assert {tensor.dtype for tensor in file.tensors.values()} == {"BF16"}


def test_the_library_reads_what_is_written_here(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = make(tmp_path, random_checkpoint("tiny-bloom", "seed=0&dtype=float32"), 100_000)
    loaded = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    assert {name: value.tobytes() for name, value in loaded.items()} == values(folder)
    assert {name: value.shape for name, value in loaded.items()} == shapes(cost.architecture("tiny-bloom"))


def test_random_values_depend_on_seed_and_name_and_not_on_shards(tmp_path: Path) -> None:
    whole = values(make(tmp_path, random_checkpoint("tiny-llama"), folder="whole"))
    cut = make(tmp_path, random_checkpoint("tiny-llama"), 50_000, folder="cut")
    other = values(make(tmp_path, random_checkpoint("tiny-llama", "seed=1"), folder="other"))
    assert len(list(cut.glob("*.safetensors"))) > 2
    assert values(cut) == whole
    assert whole["model.layers.0.self_attn.q_proj.weight"] != whole["model.layers.1.self_attn.q_proj.weight"]
    assert whole["model.layers.0.self_attn.q_proj.weight"] != other["model.layers.0.self_attn.q_proj.weight"]


def test_random_values_do_not_depend_on_the_chunk_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = values(make(tmp_path, random_checkpoint("tiny-llama"), folder="whole"))
    monkeypatch.setattr("claimbench.checkpoints.random_weights.CHUNK_VALUES", 1000)
    assert values(make(tmp_path, random_checkpoint("tiny-llama"), folder="chunked")) == whole


def test_a_tensor_is_never_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("claimbench.checkpoints.random_weights.CHUNK_VALUES", 1 << 18)
    source = "random://smollm2-135m?dtype=float32"
    checkpoint = Checkpoint(name="one-layer", source=source, architecture="smollm2-135m", keep_layers=1)
    tracemalloc.start()
    try:
        shard(checkpoint, tmp_path / "fetched", tmp_path / "out", 10**9)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    embedding_bytes = 4 * cost.architecture("smollm2-135m").embedding_weights
    assert manifest.read(tmp_path / "out").weight_bytes > embedding_bytes
    assert peak_bytes < embedding_bytes / 10


def test_sharding_twice_gives_the_same_manifest(tmp_path: Path) -> None:
    first = manifest.read(make(tmp_path, random_checkpoint("tiny-llama"), 100_000))
    again = manifest.read(make(tmp_path, random_checkpoint("tiny-llama"), 100_000))
    assert first == again


def test_a_larger_shard_size_leaves_no_old_shards(tmp_path: Path) -> None:
    make(tmp_path, random_checkpoint("tiny-llama"), 50_000)
    folder = make(tmp_path, random_checkpoint("tiny-llama"))
    assert [path.name for path in folder.glob("*.safetensors")] == ["model-00001-of-00001.safetensors"]


def test_no_shard_is_larger_than_asked_unless_one_tensor_is() -> None:
    tensors = [StreamedTensor(str(size), "F32", (size,), lambda: iter([])) for size in (10, 10, 50, 5, 5, 5)]
    groups = [[tensor.shape[0] for tensor in group] for group in split(tensors, 80)]
    assert groups == [[10, 10], [50], [5, 5, 5]]


def test_norms_are_one_biases_zero_and_matrices_scaled_to_their_inputs(tmp_path: Path) -> None:
    loaded = values(make(tmp_path, random_checkpoint("tiny-bigcode", "seed=0&dtype=float32")))
    arrays = {name: np.frombuffer(content, dtype="<f4") for name, content in loaded.items()}
    assert (arrays["transformer.h.0.ln_1.weight"] == 1).all()
    assert (arrays["transformer.h.1.attn.c_attn.bias"] == 0).all()
    assert arrays["transformer.h.0.mlp.c_fc.weight"].std() == pytest.approx(1 / 8, rel=0.05)
    assert arrays["transformer.h.0.mlp.c_proj.weight"].std() == pytest.approx(1 / 16 / 2, rel=0.05)
    assert arrays["transformer.wte.weight"].std() == pytest.approx(0.02, rel=0.05)


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF817FFF], dtype=np.uint32)
    assert np.frombuffer(encode(bits.view(np.float32), "bfloat16"), dtype="<u2").tolist() == [
        0x3F80,
        0x3F82,
        0x3F81,
        0xBF81,
    ]


@pytest.mark.parametrize("architecture", TINY)
def test_keep_layers_drops_the_deeper_ones(architecture: str, tmp_path: Path) -> None:
    full = values(make(tmp_path, random_checkpoint(architecture), folder="full"))
    folder = make(tmp_path, random_checkpoint(architecture, keep_layers=1), folder="cut")
    config = json.loads((folder / "config.json").read_text())
    cut = values(folder)
    assert cost.parse(config).layers == 1
    assert set(cut) == set(shapes(cost.architecture(architecture)._replace(layers=1)))
    assert all(cut[name] == full[name] for name in cut)
    assert manifest.read(folder).keep_layers == 1


def test_more_layers_than_there_are_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="keep_layers: expected at most 2, got 3"):
        make(tmp_path, random_checkpoint("tiny-llama", keep_layers=3))


def test_the_declared_architecture_is_compared_with_the_one_that_arrived(tmp_path: Path) -> None:
    checkpoint = Checkpoint(name="tiny", source="random://tiny-llama", architecture="smollm2-135m")
    with pytest.raises(SourceError, match=r"expected layers 30, hidden 576.*arrived layers 2, hidden 64"):
        make(tmp_path, checkpoint)
    assert not list((tmp_path / "out").glob("*"))


def test_local_weights_keep_their_dtype_and_values(tmp_path: Path) -> None:
    source = make(tmp_path, random_checkpoint("tiny-bloom", "seed=2&dtype=float16"), 60_000, folder="source")
    local = Checkpoint(name="local", source=f"file://{source}", architecture="tiny-bloom")
    folder = make(tmp_path, local)
    assert values(folder) == values(source)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert manifest.verify(folder).source == local.source


def test_names_of_a_bare_decoder_are_completed_and_buffers_left_out(tmp_path: Path) -> None:
    source = make(tmp_path, random_checkpoint("tiny-bloom"), folder="source")
    (path,) = source.glob("*.safetensors")
    bare = [tensor._replace(name=tensor.name.removeprefix("transformer.")) for tensor in safetensors_file.read(path)]
    buffer = StreamedTensor("h.0.attn.masked_bias", "F32", (1,), lambda: iter([b"\0\0\0\0"]))
    head = next(tensor for tensor in bare if tensor.name == "word_embeddings.weight")._replace(name="lm_head.weight")
    before = values(source)
    (source / "model.safetensors.index.json").unlink()
    safetensors_file.write(source / "model.safetensors", [*bare, buffer, head])
    local = Checkpoint(name="local", source=f"file://{source}", architecture="tiny-bloom")
    assert values(make(tmp_path, local)) == before


def damaged_local(tmp_path: Path, victim: str, change: dict[str, Any]) -> Checkpoint:
    """A local tiny-llama whose tensor `victim` is changed, or taken away where there is no change."""
    source = make(tmp_path, random_checkpoint("tiny-llama"), folder="source")
    (path,) = source.glob("*.safetensors")
    kept = [tensor for tensor in safetensors_file.read(path) if change or tensor.name != victim]
    kept = [tensor._replace(**change) if tensor.name == victim else tensor for tensor in kept]
    (source / "model.safetensors.index.json").unlink()
    safetensors_file.write(source / "model.safetensors", kept)
    return Checkpoint(name="local", source=f"file://{source}", architecture="tiny-llama")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"the tensor model\.norm\.weight is missing"),
        ({"name": "model.extra.weight"}, r"has no tensor model\.extra\.weight"),
        ({"shape": (8, 8)}, r"model\.norm\.weight: expected shape \(64,\), arrived \(8, 8\)"),
    ],
)
def test_tensors_must_be_those_of_the_architecture(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        make(tmp_path, damaged_local(tmp_path, "model.norm.weight", change))


def test_a_pickle_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (tmp_path / "model" / name).write_text("{}")
    checkpoint = Checkpoint(name="local", source=f"file://{tmp_path}/model", architecture="tiny-llama")
    with pytest.raises(SourceError, match=r"found only pytorch_model.bin: pickle files can run code"):
        make(tmp_path, checkpoint)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rope_theta": 5e4}, {"rope_type": "default", "rope_theta": 5e4}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}}, {"rope_type": "default", "rope_theta": 5e4}),
        ({}, {"rope_type": "default", "rope_theta": 1e4}),
    ],
)
def test_rotary_settings_are_written_for_both_generations_of_readers(
    settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = model_config.normalise({"model_type": "llama"} | settings, "here")
    assert config["rope_parameters"] == expected
    assert config["rope_theta"] == expected["rope_theta"]
    assert "rope_scaling" not in config


def test_scaled_rotary_settings_are_kept() -> None:
    scaling = {"type": "linear", "factor": 2.0}
    config = model_config.normalise({"model_type": "llama", "rope_theta": 1e4, "rope_scaling": scaling}, "here")
    assert config["rope_parameters"] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_published_spellings_of_bloom_are_understood() -> None:
    published = {"model_type": "bloom", "n_embed": 64, "num_attention_heads": 4, "n_layer": 2, "vocab_size": 320}
    arch = model_config.parse(model_config.normalise(published, "here"), "here")
    assert arch == cost.architecture("tiny-bloom")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2", "auto_map": {}}, "expected one of llama, mistral, qwen2, qwen3, .*, got 'gpt2'"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "expected unquantized weights"),
    ],
)
def test_configs_that_cannot_be_honoured_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        model_config.normalise(config, "here")


def test_a_tensor_name_is_completed_once() -> None:
    bloom = cost.architecture("tiny-bloom")
    assert full_name(bloom, "h.0.x") == full_name(bloom, "transformer.h.0.x") == "transformer.h.0.x"
    assert full_name(bloom, "lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        struct.pack("<Q", 10**12) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}" + b"extra",
        struct.pack("<Q", 56) + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}  ' + b"\0" * 4,
    ],
)
def test_a_file_that_is_not_safetensors_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match="not a whole safetensors file"):
        safetensors_file.read(path)


def bytes_at(*offsets: tuple[int, int], size: int) -> bytes:
    """A file of one-byte tensors at `offsets`, of `size` bytes of data."""
    named = {
        f"t{i}": {"dtype": "U8", "shape": [abs(b - a)], "data_offsets": [a, b]} for i, (a, b) in enumerate(offsets)
    }
    header = json.dumps(named).encode()
    return struct.pack("<Q", len(header)) + header + bytes(range(size))


@pytest.mark.parametrize(
    ("offsets", "size", "words"),
    [
        ([(0, 4), (8, 12)], 12, "t1 begins at 8, expected 4"),
        ([(0, 8), (4, 12)], 12, "t1 begins at 4, expected 8"),
        ([(0, 4), (0, 4)], 4, "t1 begins at 0, expected 4"),
        ([(4, 8)], 8, "t0 begins at 4, expected 0"),
        ([(0, 4)], 8, "bytes, found"),
        ([(0, 8)], 4, "bytes, found"),
        ([(4, 0)], 4, "has -4 bytes"),
        ([(-4, 0)], 4, "no whole number"),
    ],
)
def test_bytes_that_two_tensors_share_or_none_has_are_refused(
    offsets: list[tuple[int, int]], size: int, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes_at(*offsets, size=size))
    with pytest.raises(CorruptCheckpoint, match=words):
        safetensors_file.read(path)


def test_tensors_are_read_from_where_the_header_says_whatever_the_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes_at((5, 12), (0, 5), size=12))
    for chunk in (1, 3, 1 << 20):
        monkeypatch.setattr(safetensors_file, "CHUNK_BYTES", chunk)
        found = {one.name: b"".join(one.chunks()) for one in safetensors_file.read(path)}
        assert found == {"t1": bytes(range(5)), "t0": bytes(range(5, 12))}
    assert safetensors_file.read_sizes(path) == [("t1", "U8", 5), ("t0", "U8", 7)]
    whole = safetensors_file.read(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorruptCheckpoint, match="cut short while it was read"):
        list(whole[1].chunks())


def test_a_source_that_gives_another_number_of_bytes_leaves_no_file(tmp_path: Path) -> None:
    for given in (b"123", b"12345"):
        tensor = safetensors_file.StreamedTensor("t", "F32", (1,), lambda given=given: iter([given]))
        with pytest.raises(CorruptCheckpoint, match=f"t: expected 4 bytes, its source gave {len(given)}"):
            safetensors_file.write(tmp_path / "model.safetensors", [tensor])
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "config", [{"model_type": "llama", "auto_map": {"AutoConfig": "code.Config"}, "dtype": "float16"}]
)
def test_what_would_have_a_library_run_code_of_the_source_is_not_written(config: dict[str, Any]) -> None:
    assert not {"auto_map", "dtype"} & set(model_config.normalise(config, "here"))


def test_weights_have_their_name_once_they_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "model.safetensors", []

    def fsync(handle: int) -> None:
        assert not path.exists()
        (partial,) = tmp_path.iterdir()
        assert Path(f"/proc/self/fd/{handle}").readlink() == partial
        seen.append(partial.stat().st_size)

    monkeypatch.setattr(safetensors_file.os, "fsync", fsync)
    tensor = StreamedTensor("t", "F32", (2,), lambda: iter([b"1234", b"5678"]))
    written = safetensors_file.write(path, [tensor])
    assert seen == [written.bytes] == [path.stat().st_size]
    assert written.sha256 == manifest.sha256_of(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_laid_out_as_the_format_says_and_wider_types_come_first(tmp_path: Path) -> None:
    """So each tensor is aligned to its own type; a header without spaces is filled up to eight bytes."""
    narrow = StreamedTensor("narrow", "BF16", (1, 3), lambda: iter([b"nnnnn", b"n"]))
    wide = StreamedTensor("wide", "F32", (2,), lambda: iter([b"wwwwwwww"]))
    written = safetensors_file.write(tmp_path / "model.safetensors", [narrow, wide])
    header = (
        '{"__metadata__":{"format":"pt"},"wide":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"narrow":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]}}'
    )
    padded = header + " " * (-len(header) % 8)
    whole = struct.pack("<Q", len(padded)) + padded.encode() + b"wwwwwwww" + b"nnnnnn"
    assert (tmp_path / "model.safetensors").read_bytes() == whole
    assert (written.name, written.bytes) == ("model.safetensors", len(whole))
    assert written.sha256 == manifest.sha256_of(tmp_path / "model.safetensors")
    assert {name: (one.dtype, one.shape) for name, one in written.tensors.items()} == {
        "narrow": ("BF16", (1, 3)),
        "wide": ("F32", (2,)),
    }
    assert (narrow.values, narrow.bytes) == (3, 6)
