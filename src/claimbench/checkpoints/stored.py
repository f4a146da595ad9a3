"""What the files of a quantized checkpoint hold: bytes by type, from their headers alone.

Of other checkpoints a value has as many bytes as the cell's type. A quantized one is read as it lies there, so that
its cost is that of the stored bytes: packed integers of several values, scales, floats that were left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from claimbench.checkpoints import safetensors_file
from claimbench.checkpoints.local_files import weights_in
from claimbench.errors import SourceError
from claimbench.schema.card import Card, StoredBytes

EXPERT = re.compile(r"\.experts\.")
ELSEWHERE = re.compile(r"vision|visual|audio|image|multi_modal|mm_projector|\.mtp\.")
"""Parts that a pass over text does not read."""
DROPPABLE = re.compile(r"(g_idx|qzeros|weight_zero_point|weight_shape|quant_map|quant_state\.\w+|input_scale)$")
"""Side values of a matrix, which a kernel may keep in another form or not at all."""
HALVED = re.compile(r"absmax$")
"""Scales in float32 that bitsandbytes keeps in bfloat16 where the CPU multiplies it (AVX512-BF16)."""


class Entry(NamedTuple):
    """A tensor in a header."""

    name: str
    dtype: str
    bytes: int


def entries(folder: Path) -> list[Entry]:
    """Of the weights in `folder`; none where it has none that are read, as fetching it says."""
    try:
        names = weights_in(folder)
    except SourceError:
        return []
    return [Entry(*tensor) for name in names for tensor in safetensors_file.read_sizes(folder / name)]


def sums(found: Iterable[Entry]) -> StoredBytes:
    held: dict[str, int] = {}
    read: dict[str, int] = {}
    experts: dict[str, int] = {}
    for name, dtype, size in found:
        held[dtype] = held.get(dtype, 0) + size
        if DROPPABLE.search(name) or ELSEWHERE.search(name):
            continue
        part = experts if EXPERT.search(name) else read
        part[dtype] = part.get(dtype, 0) + (size // 2 if HALVED.search(name) else size)
    return StoredBytes(held=held, read=read, experts=experts)


def with_stored_bytes(card: Card, folder: Path) -> Card:
    """The card with what the files in `folder` hold, where they are quantized and it is not known yet."""
    if card.quantized is None or card.stored_bytes is not None:
        return card
    found = entries(folder)
    return card.model_copy(update={"stored_bytes": sums(found)}) if found else card
