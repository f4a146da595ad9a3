"""The safetensors format, read and written as a stream.

A file is 8 bytes of length, that many bytes of JSON, then the tensors' bytes one after the other. The library's own
writer wants a whole file's tensors in memory; a shard of a 176B model, or its embedding alone, should not have to be.
The sha256 is taken on the way to the disk. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from claimbench.checkpoints.manifest import File, Tensor
from claimbench.errors import CorruptCheckpoint

if TYPE_CHECKING:
    import torch

DTYPE_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
    **{"F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "C64": 8},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}
FLOATS = ("F32", "BF16", "F16")
"""What weights of the documents' architectures may be stored in."""
DTYPE_OF = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
CHUNK_BYTES = 1 << 26
HEADER_LIMIT_BYTES = 100_000_000


class StreamedTensor(NamedTuple):
    """A tensor that is not in memory: `chunks` yields its little-endian bytes in row-major order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[bytes | memoryview]]

    @property
    def values(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.values * DTYPE_BYTES[self.dtype]


class Stored(Protocol):
    """What a header says of a tensor."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def bytes(self) -> int: ...


class TensorSlice(Protocol):
    """A tensor of which only what is indexed is read."""

    def __getitem__(self, index: slice | tuple[slice, slice]) -> torch.Tensor: ...

    def get_shape(self) -> list[int]: ...


class TensorFile(Protocol):
    """What `safe_open` gives, which has no types of its own."""

    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str) -> torch.Tensor: ...

    def get_slice(self, name: str) -> TensorSlice: ...


class _Place(NamedTuple):
    """A tensor as the header has it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """In the file."""
    bytes: int


def read(path: Path) -> list[StreamedTensor]:
    """The tensors of the file at `path`, in file order. Only the header is read now.

    Raises:
        CorruptCheckpoint: the header is not one, or the file's length disagrees with it.
    """
    return [StreamedTensor(each.name, each.dtype, each.shape, _slice(path, *each[3:])) for each in _header(path)]


def _header(path: Path) -> list[_Place]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, HEADER_LIMIT_BYTES):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
        places, end = [], 0
        for name, entry in entries:
            begin, stop = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if not all(type(each) is int and each >= 0 for each in (begin, stop, *shape)):
                raise ValueError(f"{name} has a side or an offset that is no whole number")
            if entry["dtype"] in DTYPE_BYTES and prod(shape) * DTYPE_BYTES[entry["dtype"]] != stop - begin:
                raise ValueError(f"{name} has {stop - begin} bytes for shape {list(shape)} of {entry['dtype']}")
            if begin != end:
                raise ValueError(f"{name} begins at {begin}, expected {end}")
            end = stop
            places.append(_Place(name, str(entry["dtype"]), shape, 8 + length + begin, stop - begin))
        if 8 + length + end != size:
            raise ValueError(f"expected {8 + length + end} bytes, found {size}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path}: not a whole safetensors file ({error}): fetch it again") from error
    return places


def read_sizes(path: Path) -> list[tuple[str, str, int]]:
    """Name, type and bytes of each tensor of the file at `path`, of any type. Raises as `read` does."""
    return [(each.name, each.dtype, each.bytes) for each in _header(path)]


def _slice(path: Path, begin: int, length: int) -> Callable[[], Iterator[bytes | memoryview]]:
    def chunks() -> Iterator[bytes | memoryview]:
        with path.open("rb") as file:
            file.seek(begin)
            left = length
            while left:
                chunk = file.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise CorruptCheckpoint(f"{path}: cut short while it was read: fetch it again")
                left -= len(chunk)
                yield chunk

    return chunks


class Writer:
    """One safetensors file as it is written: `tensors` tells the header, their bytes come in the order of `order`.

    Wider types come first, so that every tensor is aligned to its own type. The file appears whole or not at all.
    """

    def __init__(self, path: Path, tensors: Sequence[Stored]) -> None:
        self.path, self.tensors = path, tensors
        self.order = sorted(tensors, key=lambda tensor: -DTYPE_BYTES[tensor.dtype])
        self.sha256 = hashlib.sha256()
        self.partial = path.with_name(f".{path.name}.partial")
        self.written = 0
        """Bytes of the tensor that is being written."""
        self.bytes = 0

    def __enter__(self) -> Writer:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor in self.order:
            offsets = [end, end + tensor.bytes]
            header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
            end += tensor.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.file = self.partial.open("wb")
        self.add(len(text).to_bytes(8, "little"))
        self.add(text)
        self.written = 0
        return self

    def add(self, part: bytes | memoryview) -> None:
        self.file.write(part)
        self.sha256.update(part)
        self.written += len(part)
        self.bytes += len(part)

    def end(self, tensor: Stored) -> None:
        """All of `tensor` has been added."""
        if self.written != tensor.bytes:
            raise CorruptCheckpoint(f"{tensor.name}: expected {tensor.bytes} bytes, its source gave {self.written}")
        self.written = 0

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            with self.file:
                if kind is None:
                    self.file.flush()
                    os.fsync(self.file.fileno())
            if kind is None:
                self.partial.replace(self.path)
        finally:
            self.partial.unlink(missing_ok=True)

    def described(self) -> File:
        return File(
            name=self.path.name,
            bytes=self.bytes,
            sha256=self.sha256.hexdigest(),
            tensors={tensor.name: Tensor(dtype=tensor.dtype, shape=tensor.shape) for tensor in self.tensors},
        )


def write(path: Path, tensors: Sequence[StreamedTensor]) -> File:
    """Write `tensors` to `path`, one chunk in memory at a time."""
    by_name = {tensor.name: tensor for tensor in tensors}
    with Writer(path, tensors) as writer:
        for stored in writer.order:
            for part in by_name[stored.name].chunks():
                writer.add(part)
            writer.end(stored)
    return writer.described()
