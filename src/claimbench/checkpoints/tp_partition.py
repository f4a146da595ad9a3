"""Where tensor parallelism cuts each tensor: the one description that `shard` and readers follow.

Matrices are (outputs, inputs). Of a pair of matrices with something between them that works value by value (attention
by heads, a gate, a GELU), the first is cut along its outputs and the second along its inputs, so that only what the
second gives has to be summed over ranks (Megatron-LM, Shoeybi et al., 2019).

    column       outputs cut, axis 0: queries, keys, values, and the feed-forward's way in, with their biases
    row          inputs cut, axis 1: attention's and the feed-forward's way out
    vocabulary   rows cut, axis 0: the embedding and the head; the last rank's share may be smaller
    replicated   whole on every rank: norms, positions, and biases of the ways out, which one rank adds

Heads are never cut. BLOOM keeps (query, key, value) of one head beside each other, so its fused matrix is cut like any
other; in multi-query attention all queries come first, and the single key-value head goes to every rank. Where there
are fewer key-value heads than ranks, each rank has the one that its queries read. How much the fullest rank holds is
`cost.device_share`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from claimbench.checkpoints.safetensors_file import DTYPE_BYTES, StreamedTensor
from claimbench.checkpoints.tensors import Shape, shapes
from claimbench.cost_model.cost import Architecture, device_share

Kind = Literal["column", "row", "vocabulary", "replicated"]
Range = tuple[int, int]

_VOCABULARY = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "lm_head.weight")
_QKV = ("attn.c_attn", "self_attention.query_key_value")
_IN = re.compile(
    r"\.(q_proj|k_proj|v_proj|gate_proj|up_proj|c_attn|c_fc|query_key_value|dense_h_to_4h)\.(weight|bias)$"
)
_OUT = re.compile(r"\.(o_proj|down_proj|c_proj|dense|dense_4h_to_h)\.weight$")


class Partition(NamedTuple):
    kind: Kind
    axis: int | None
    ranges: tuple[tuple[Range, ...], ...]
    """What each rank gets along the axis, in order; empty where every rank gets all."""

    def share(self, shape: Shape, rank: int) -> Shape:
        """The shape of a rank's part."""
        if self.axis is None:
            return shape
        length = sum(end - begin for begin, end in self.ranges[rank])
        return (*shape[: self.axis], length, *shape[self.axis + 1 :])


def degrees(arch: Architecture, most: int) -> list[int]:
    """Numbers of ranks up to `most` that the architecture can be cut for."""
    return [ranks for ranks in range(1, most + 1) if _refusal(arch, ranks) is None]


UNKNOWN = "tensor parallelism: how its matrices are cut is not known"


def is_known(arch: Architecture | None) -> bool:
    """Whether it is described here how a model's matrices are cut."""
    return arch is not None and arch.family != "other"


def refusal(arch: Architecture | None, ranks: int) -> str | None:
    """Why a model cannot be cut for so many ranks, and which numbers near it work; None where it can."""
    if arch is None or not is_known(arch):
        return UNKNOWN if ranks > 1 else None
    return indivisible(arch, ranks)


def indivisible(arch: Architecture, ranks: int) -> str | None:
    """Why its heads or its feed-forward have no equal parts, and which numbers near it work."""
    why = _refusal(arch, ranks)
    if why is None:
        return None
    fits = degrees(arch, 2 * ranks)
    near = sorted(sorted(fits, key=lambda degree: abs(degree - ranks))[:2])
    return f"tensor parallelism over {ranks}: {why}; {' or '.join(map(str, near))} would do"


def _refusal(arch: Architecture, ranks: int) -> str | None:
    for size, what in ((arch.heads, "heads"), (arch.intermediate, "rows of the feed-forward")):
        if size % ranks:
            return f"{size} {what} do not divide"
    if arch.kv_heads % ranks and ranks % arch.kv_heads:
        return f"{arch.kv_heads} key-value heads do not divide, nor are they divided"
    return None


def partitions(arch: Architecture, ranks: int) -> dict[str, Partition]:
    """How every tensor of `arch` is cut over `ranks`, by name.

    Raises:
        ValueError: it cannot be; see `refusal`.
    """
    why = refusal(arch, ranks)
    if why:
        raise ValueError(why)
    return {name: _cut(arch, name, shape, ranks) for name, shape in shapes(arch).items()}


def _cut(arch: Architecture, name: str, shape: Shape, ranks: int) -> Partition:
    if name.endswith(_VOCABULARY):
        most = -(-shape[0] // ranks)
        edges = [min(rank * most, shape[0]) for rank in range(ranks + 1)]
        return Partition("vocabulary", 0, tuple(((edges[rank], edges[rank + 1]),) for rank in range(ranks)))
    if _OUT.search(name):
        return Partition("row", 1, _evenly(shape[1], ranks))
    if not _IN.search(name):
        return Partition("replicated", None, ())
    if arch.kv_heads != arch.heads and any(part in name for part in ("k_proj", "v_proj")):
        return Partition("column", 0, tuple((_kv_rows(arch, rank, ranks),) for rank in range(ranks)))
    if arch.kv_heads != arch.heads and any(part in name for part in _QKV):
        queries = arch.heads * arch.head_dim
        ranges = tuple((*own, (queries, shape[0])) for own in _evenly(queries, ranks))
        return Partition("column", 0, ranges)
    return Partition("column", 0, _evenly(shape[0], ranks))


def _evenly(size: int, ranks: int) -> tuple[tuple[Range, ...], ...]:
    share = size // ranks
    return tuple(((rank * share, (rank + 1) * share),) for rank in range(ranks))


def _kv_rows(arch: Architecture, rank: int, ranks: int) -> Range:
    heads = device_share(arch, ranks).kv_heads
    first = rank * arch.kv_heads // ranks
    return first * arch.head_dim, (first + heads) * arch.head_dim


def share_of(arch: Architecture, ranks: int) -> Architecture:
    """What each rank computes, as an architecture of its own; its vocabulary is the whole one."""
    return device_share(arch, ranks)._replace(vocabulary=arch.vocabulary)


def added_once(name: str) -> bool:
    """Whether the tensor is added to a sum over ranks, so that only one of them may: the bias of a way out."""
    return name.endswith(".bias") and bool(_OUT.search(name.removesuffix("bias") + "weight"))


def parts(tensor: StreamedTensor, cut: Partition, ranks: int) -> Iterator[tuple[int, bytes | memoryview]]:
    """(rank, its next bytes) as the tensor streams by once, whoever wants which part of it."""
    if cut.axis is None:
        for chunk in tensor.chunks():
            yield from ((rank, chunk) for rank in range(ranks))
    elif cut.axis == 0:
        yield from _along_rows(tensor, cut)
    else:
        yield from _along_columns(tensor, cut)


def _along_rows(tensor: StreamedTensor, cut: Partition) -> Iterator[tuple[int, memoryview]]:
    row = tensor.bytes // tensor.shape[0]
    at = 0
    for chunk in tensor.chunks():
        view = memoryview(chunk).cast("B")
        for rank, ranges in enumerate(cut.ranges):
            for begin, end in ranges:
                first, last = max(begin * row, at), min(end * row, at + len(view))
                if first < last:
                    yield rank, view[first - at : last - at]
        at += len(view)


def _along_columns(tensor: StreamedTensor, cut: Partition) -> Iterator[tuple[int, bytes]]:
    width = DTYPE_BYTES[tensor.dtype]
    row = tensor.shape[1] * width
    rest = b""
    for chunk in tensor.chunks():
        together = rest + bytes(chunk)
        whole = len(together) - len(together) % row
        rest = together[whole:]
        rows = np.frombuffer(together[:whole], dtype=np.uint8).reshape(-1, row)
        for rank, ranges in enumerate(cut.ranges):
            for begin, end in ranges:
                yield rank, rows[:, begin * width : end * width].tobytes()
