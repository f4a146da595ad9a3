"""The header of a GGUF file, read within bounds: its claims are held against the file's size before anything is made.

The library's reader makes two arrays for each word of a vocabulary, which takes a minute and a gigabyte for the larger
ones, and as many as a file claims to have. This one walks over them and keeps where they lie.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from claimbench.errors import SourceError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MOST_VALUES = 1 << 22
"""In all arrays of the header; the largest vocabularies with their merges have 1.3 million."""
KEPT_VALUES = 10_000
"""Of an array of numbers: one for each layer, and not one for each word."""
MOST_SIDES = 4
STRING, ARRAY = 8, 9
FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
LEAST_ENTRY_BYTES, LEAST_TENSOR_BYTES = 8 + 4 + 1, 8 + 4 + 4 + 8


class Stored(NamedTuple):
    """A tensor in the file; `shape` is in the order of rows, which GGUF writes last side first."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """A name of gguf.GGMLQuantizationType."""
    begin: int
    """Of its bytes in the file."""
    bytes: int


class Header(NamedTuple):
    path: Path
    version: int
    values: dict[str, Any]
    """By key; arrays of words, and long ones, are None."""
    entries: dict[str, bytes | None]
    """The bytes of each key and its value, without those whose value is None."""
    tensors: tuple[Stored, ...]

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture"))

    @property
    def names(self) -> set[str]:
        return {tensor.name for tensor in self.tensors}

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        """Of all tensors, by the name that GGUF gives their type."""
        found: dict[str, int] = {}
        for tensor in self.tensors:
            found[tensor.kind] = found.get(tensor.kind, 0) + tensor.bytes
        return found


def read(path: Path) -> Header:
    """The header of the file at `path`; time and memory follow its size, not its claims.

    Raises:
        SourceError: the file is cut short, not GGUF, or claims what cannot be.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(path, data).header()
    except (ValueError, KeyError, struct.error, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{path}: not a whole GGUF file ({reason}): delete it and run again") from error


class _Walk:
    """A place in the file that moves on with what is read."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.size, self.arrays = path, data, 0, len(data), 0

    def header(self) -> Header:
        if self.take(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self.number(4)
        if version not in VERSIONS:
            raise ValueError(f"version {version}, and {VERSIONS} are read")
        tensors, entries = self.count(10, LEAST_TENSOR_BYTES), self.count(10, LEAST_ENTRY_BYTES)
        values: dict[str, Any] = {}
        kept: dict[str, bytes | None] = {}
        for _ in range(entries):
            begin, key = self.at, self.text()
            if key in values:
                raise ValueError(f"the key {key} comes twice")
            values[key] = self.value(self.number(4))
            kept[key] = None if values[key] is None else self.data[begin : self.at]
        infos = [self.info() for _ in range(tensors)]
        alignment = values.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"an alignment of {alignment!r}")
        data = -(-self.at // alignment) * alignment
        return Header(self.path, version, values, kept, self.stored(infos, data))

    def take(self, length: int) -> bytes:
        if length > self.size - self.at:
            raise ValueError(f"{length} bytes expected at {self.at}, and {self.size - self.at} are left")
        self.skip(length)
        return self.data[self.at - length : self.at]

    def skip(self, length: int) -> None:
        self.at += length

    def number(self, kind: int) -> Any:
        if kind not in FORMATS:
            raise ValueError(f"a value of kind {kind} at {self.at}")
        form = FORMATS[kind]
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, kind: int, least_bytes: int) -> int:
        """A number of things of which each takes `least_bytes` of what is left of the file."""
        found = int(self.number(kind))
        if found * least_bytes > self.size - self.at:
            raise ValueError(f"{found} things claimed at {self.at}, and {self.size - self.at} bytes are left")
        return found

    def text(self) -> str:
        return self.take(self.count(10, 1)).decode()

    def value(self, kind: int) -> Any:
        if kind == ARRAY:
            return self.array(self.number(4))
        return self.text() if kind == STRING else self.number(kind)

    def array(self, kind: int) -> Any:
        if kind != STRING and kind not in FORMATS:
            raise ValueError(f"an array of values of kind {kind}")
        form = FORMATS.get(kind, "<Q")
        length = self.count(10, struct.calcsize(form))
        self.arrays += length
        if self.arrays > MOST_VALUES:
            raise ValueError(f"over {MOST_VALUES} values in arrays")
        if kind == STRING:
            for _ in range(length):
                self.skip(self.count(10, 1))
            return None
        data = self.take(length * struct.calcsize(form))
        return list(struct.unpack(f"<{length}{form[1]}", data)) if length <= KEPT_VALUES else None

    def info(self) -> tuple[str, list[int], int, int]:
        name, sides = self.text(), self.number(4)
        if sides > MOST_SIDES:
            raise ValueError(f"{name} has {sides} sides")
        return name, [self.number(10) for _ in range(sides)], self.number(4), self.number(10)

    def stored(self, infos: list[tuple[str, list[int], int, int]], data: int) -> tuple[Stored, ...]:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        found = {}
        for name, sides, number, offset in infos:
            kind = GGMLQuantizationType(number)
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if name in found:
                raise ValueError(f"the tensor {name} comes twice")
            if not sides or sides[0] % block or 0 in sides:
                raise ValueError(f"{name} of {kind.name} has sides {sides}")
            length = prod(sides) // block * block_bytes
            if data + offset + length > self.size:
                raise ValueError(f"{name} ends at {data + offset + length}, and the file at {self.size}")
            found[name] = Stored(name, tuple(reversed(sides)), kind.name, data + offset, length)
        return tuple(found.values())


def dequantized(path: Path, stored: Stored) -> npt.NDArray[np.float32]:
    """The values of one tensor of the file at `path`.

    Raises:
        SourceError: no converter is known for values of its kind.
    """
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quant_shape_to_byte_shape

    kind = GGMLQuantizationType[stored.kind]
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=stored.begin, shape=(stored.bytes,))
    try:
        if stored.kind == "F32":
            return data.view(np.float32).reshape(stored.shape)
        values: npt.NDArray[np.float32] = dequantize(data.reshape(quant_shape_to_byte_shape(stored.shape, kind)), kind)
    except NotImplementedError as error:
        raise SourceError(f"{path}: {stored.name}: {error}") from error
    return values.reshape(stored.shape)
