"""A checkpoint cut for tensor parallelism: the parts of all ranks are the whole, heads stay whole, bad degrees end."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.test_shard import make, random_checkpoint

from claimbench.checkpoints import manifest, safetensors_file, tp_partition
from claimbench.checkpoints.safetensors_file import StreamedTensor
from claimbench.checkpoints.tensors import shapes
from claimbench.cost_model import cost, weight_bytes
from claimbench.errors import CorruptCheckpoint, SourceError

TINY = ("tiny-llama", "tiny-bigcode", "tiny-bloom")


def arrays(folder: Path, prefix: str = "") -> dict[str, Any]:
    files = sorted(folder.glob(f"{prefix}*.safetensors"))
    tensors = [tensor for path in files for tensor in safetensors_file.read(path)]
    return {
        tensor.name: np.frombuffer(b"".join(tensor.chunks()), dtype=np.float32).reshape(tensor.shape)
        for tensor in tensors
    }


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("architecture", TINY)
def test_the_parts_of_all_ranks_are_the_whole(architecture: str, ranks: int, tmp_path: Path) -> None:
    whole = arrays(make(tmp_path, random_checkpoint(architecture, "seed=0&dtype=float32")))
    checkpoint = random_checkpoint(architecture, "seed=0&dtype=float32", tensor_parallel=ranks)
    folder = make(tmp_path, checkpoint, 100_000, "cut")
    parts = [arrays(folder, manifest.rank_prefix(rank, ranks)) for rank in range(ranks)]
    assert len(list(folder.glob("*.safetensors"))) > ranks, "not more than one file a rank"
    for name, cut in tp_partition.partitions(cost.architecture(architecture), ranks).items():
        assert [set(part) for part in parts] == [set(whole)] * ranks
        if cut.axis is None:
            assert all(np.array_equal(part[name], whole[name]) for part in parts)
            continue
        joined = np.full_like(whole[name], np.nan)
        along = joined.swapaxes(0, cut.axis)
        for rank, part in enumerate(parts):
            at, mine = 0, part[name].swapaxes(0, cut.axis)
            for begin, end in cut.ranges[rank]:
                along[begin:end] = mine[at : at + end - begin]
                at += end - begin
            assert at == len(mine)
        assert np.array_equal(joined, whole[name]), name


@pytest.mark.parametrize("architecture", TINY)
def test_each_rank_has_about_its_share_and_is_verified(architecture: str, tmp_path: Path) -> None:
    folder = make(tmp_path, random_checkpoint(architecture, tensor_parallel=2))
    found = manifest.verify(folder)
    assert found.layout.ranks == 2
    assert found.parameters == cost.architecture(architecture).weights
    assert set(found.layout.cuts) == set(shapes(cost.architecture(architecture)))
    sizes = [sum(file.bytes for file in found.files_of(rank)) for rank in range(2)]
    assert sizes[0] == sizes[1]
    (folder / found.files_of(1)[0].name).unlink()
    with pytest.raises(CorruptCheckpoint, match=r"rank-1-of-2-00001-of-00001\.safetensors: the file is missing"):
        manifest.verify(folder)


def test_a_fused_matrix_of_bloom_is_cut_between_heads() -> None:
    """Its rows are [heads, (query, key, value), head_dim]: a rank gets all three of its heads and none of another's."""
    cut = tp_partition.partitions(cost.architecture("tiny-bloom"), 2)[
        "transformer.h.0.self_attention.query_key_value.weight"
    ]
    assert cut.ranges == (((0, 96),), ((96, 192),))


def test_the_single_key_value_head_goes_to_every_rank() -> None:
    cut = tp_partition.partitions(cost.architecture("tiny-bigcode"), 2)["transformer.h.0.attn.c_attn.bias"]
    assert cut.ranges == (((0, 32), (64, 96)), ((32, 64), (64, 96)))


def test_ranks_that_outnumber_key_value_heads_have_the_one_that_their_queries_read() -> None:
    cut = tp_partition.partitions(cost.architecture("tiny-llama"), 4)["model.layers.0.self_attn.k_proj.weight"]
    assert cut.ranges == (((0, 16),), ((0, 16),), ((16, 32),), ((16, 32),))


def test_a_vocabulary_that_does_not_divide_leaves_the_last_rank_less() -> None:
    arch = cost.architecture("tiny-llama")._replace(vocabulary=301)
    assert tp_partition.partitions(arch, 2)["lm_head.weight"].ranges == (((0, 151),), ((151, 301),))


SHARED = [
    (name, ranks) for name in cost.architecture_names() for ranks in tp_partition.degrees(cost.architecture(name), 32)
]


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize(("architecture", "ranks"), SHARED)
def test_the_predicted_bytes_of_a_share_are_those_of_the_fullest_rank(architecture: str, ranks: int, rows: int) -> None:
    """Also with a vocabulary that does not divide: no rank holds less than what the forecast calls the least."""
    arch = cost.architecture(architecture)
    arch = arch._replace(vocabulary=arch.vocabulary + rows)
    table, cuts = shapes(arch), tp_partition.partitions(arch, ranks)
    held = [2 * sum(prod(cuts[name].share(table[name], rank)) for name in table) for rank in range(ranks)]
    predicted = weight_bytes.held_weight_bytes(cost.device_share(arch, ranks), weight_bytes.Precision(value_bytes=2))
    assert predicted == max(held) == held[0]
    whole = tp_partition.share_of(arch, ranks)
    assert whole._replace(vocabulary=0) == cost.device_share(arch, ranks)._replace(vocabulary=0)


def test_more_ranks_than_key_value_heads_still_get_what_is_predicted() -> None:
    """Mistral's 8 heads over 16 ranks: one each, and its keys and values take half of what two would."""
    arch = cost.architecture("mistral-7b")
    cut = tp_partition.partitions(arch, 16)["model.layers.0.self_attn.k_proj.weight"]
    rows = {end - begin for ranges in cut.ranges for begin, end in ranges}
    assert rows == {cost.device_share(arch, 16).kv_heads * arch.head_dim} == {128}
    assert {ranges[0] for ranges in cut.ranges} == {(128 * head, 128 * (head + 1)) for head in range(8)}


@pytest.mark.parametrize(
    ("architecture", "ranks", "message"),
    [
        ("smollm2-135m", 2, "tensor parallelism over 2: 9 heads do not divide; 1 or 3 would do"),
        ("tiny-llama", 3, "tensor parallelism over 3: 4 heads do not divide; 2 or 4 would do"),
        ("tiny-bloom", 8, "tensor parallelism over 8: 4 heads do not divide; 2 or 4 would do"),
    ],
)
def test_a_degree_that_does_not_divide_is_one_message_with_those_that_do(
    architecture: str, ranks: int, message: str, tmp_path: Path
) -> None:
    assert tp_partition.refusal(cost.architecture(architecture), ranks) == message
    with pytest.raises(SourceError, match=message):
        make(tmp_path, random_checkpoint(architecture, tensor_parallel=ranks))
    assert not (tmp_path / "out" / manifest.MANIFEST).exists()


def test_a_checkpoint_for_other_ranks_is_refused(tmp_path: Path) -> None:
    found = manifest.read(make(tmp_path, random_checkpoint("tiny-llama", tensor_parallel=2)))
    found.require_ranks(2)
    with pytest.raises(CorruptCheckpoint, match="expected a checkpoint cut for 4 ranks, found one for 2"):
        found.require_ranks(4)
    whole = manifest.read(make(tmp_path, random_checkpoint("tiny-llama"), folder="whole"))
    with pytest.raises(CorruptCheckpoint, match="cut for 2 ranks, found a whole one"):
        whole.require_ranks(2)


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_cuts_do_not_depend_on_where_chunks_end(size: int) -> None:
    whole = np.arange(12 * 10, dtype=np.float32).reshape(12, 10)
    data = whole.tobytes()

    def chunks() -> Any:
        return (data[at : at + size] for at in range(0, len(data), size))

    tensor = StreamedTensor("t", "F32", (12, 10), chunks)
    rows = tp_partition.Partition("column", 0, (((0, 3), (9, 12)), ((3, 9),)))
    columns = tp_partition.Partition("row", 1, (((0, 5),), ((5, 10),)))
    for cut, expected in (
        (rows, [np.concatenate([whole[:3], whole[9:]]), whole[3:9]]),
        (columns, [whole[:, :5], whole[:, 5:]]),
    ):
        got = [b"", b""]
        for rank, part in tp_partition.parts(tensor, cut, 2):
            got[rank] += bytes(part)
        assert got == [np.ascontiguousarray(each).tobytes() for each in expected]


def test_a_model_whose_cuts_are_not_described_is_refused() -> None:
    arch = cost.architecture("tiny-llama")
    assert tp_partition.is_known(arch)
    unknown = arch._replace(family="other")
    assert not tp_partition.is_known(unknown)
    assert tp_partition.refusal(unknown, 2) == tp_partition.UNKNOWN


def test_biases_are_cut_with_their_rows_and_added_once_and_norms_of_heads_stay_whole() -> None:
    arch = cost.architecture("tiny-llama")._replace(biases=("qkv", "out", "mlp"), qk_norm=True)
    found = tp_partition.partitions(arch, 2)
    at = "model.layers.0"
    kinds = {name: found[f"{at}.{name}"].kind for name in ("self_attn.q_proj.bias", "mlp.up_proj.bias")}
    assert set(kinds.values()) == {"column"}
    for name in ("self_attn.o_proj.bias", "mlp.down_proj.bias", "self_attn.q_norm.weight", "self_attn.k_norm.weight"):
        assert found[f"{at}.{name}"].kind == "replicated"
        assert tp_partition.added_once(f"{at}.{name}") == name.endswith("bias")
    assert found[f"{at}.self_attn.k_proj.bias"].share((32,), 1) == (16,)
