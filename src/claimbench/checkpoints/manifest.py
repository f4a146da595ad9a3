"""What a checkpoint on disk consists of, and whether it still does.

A manifest is written last, so a folder without one is a folder that was never finished. Nothing is loaded before its
sha256 was compared with the manifest. Hashing 14 GB takes longer than many blocks, so a hash is remembered with the
file's size, times and inode, in a small stamp file, and taken again as soon as one of them changes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter, ValidationError

from claimbench.checkpoints.local_files import is_read
from claimbench.errors import CorruptCheckpoint
from claimbench.schema import plain_file
from claimbench.schema.frozen import Frozen
from claimbench.schema.json_file import digest, parse_json, write_json

MANIFEST = "manifest.json"
LONGEST_NAME = 255
"""Bytes, of a file that can be there."""
STAMPS = ".verified.json"
MOST_BYTES = 1_000_000_000


class Tensor(Frozen):
    dtype: str = Field(description="as safetensors spells it: F32, BF16, F16")
    shape: tuple[int, ...]


class File(Frozen):
    """One file, by its name inside the folder that the manifest lies in."""

    name: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tensors: dict[str, Tensor] = Field(default={}, description="by name; empty for files that hold none")


class Layout(Frozen):
    """How tensors are cut over files.

    `whole`: every tensor lies whole in exactly one file, in layer order. `tensor_parallel`: rank r of n has its part of
    every tensor in files of its own, `rank-r-of-n-...`, and reads no other; tp_partition.py says where the cuts are.
    """

    kind: Literal["whole", "tensor_parallel"] = "whole"
    ranks: int = Field(default=1, ge=1)
    cuts: dict[str, Literal["column", "row", "vocabulary", "replicated"]] = Field(
        default={}, description="how each tensor is cut: along its outputs, its inputs, its rows, or not at all"
    )


class Manifest(Frozen):
    schema_version: Literal[1] = 1
    checkpoint: str = Field(description="the checkpoint's name")
    source: str
    revision: str | None = Field(default=None, description="the commit that a hub revision stood for")
    architecture: str | None = None
    keep_layers: int | None = None
    parameters: int = Field(ge=1, description="values in all tensors; a tied head is not stored and counts once")
    layout: Layout = Layout()
    files: tuple[File, ...]
    left_out: tuple[str, ...] = Field(
        default=(), description="other weights that lay beside them: Transformers does not read those either"
    )

    @property
    def sha256(self) -> str:
        """Identity of the weights that a result was measured with."""
        return digest(self.model_dump(mode="json", exclude={"left_out"}), length=64)

    def require_ranks(self, ranks: int) -> None:
        """Raises CorruptCheckpoint where the checkpoint is not cut for `ranks`."""
        if self.layout.kind != "tensor_parallel" or self.layout.ranks != ranks:
            found = "a whole one" if self.layout.kind == "whole" else f"one for {self.layout.ranks}"
            raise CorruptCheckpoint(f"{self.checkpoint}: expected a checkpoint cut for {ranks} ranks, found {found}")

    def files_of(self, rank: int) -> tuple[File, ...]:
        """The weights of one rank of a tensor-parallel layout."""
        prefix = rank_prefix(rank, self.layout.ranks)
        return tuple(file for file in self.weight_files if file.name.startswith(prefix))

    @property
    def weight_files(self) -> tuple[File, ...]:
        return tuple(file for file in self.files if file.tensors)

    @property
    def weight_bytes(self) -> int:
        return sum(file.bytes for file in self.weight_files)


def rank_prefix(rank: int, ranks: int) -> str:
    return f"rank-{rank}-of-{ranks}-"


def write(folder: Path, manifest: Manifest) -> None:
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def read(folder: Path) -> Manifest:
    """The manifest of the checkpoint in `folder`, its files unchecked.

    Raises:
        CorruptCheckpoint: there is none, or it is not one of this version's.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate(parse_json(plain_file.read_text(path, MOST_BYTES)))
    except OSError as error:
        raise CorruptCheckpoint(
            f"{path}: expected a manifest, but it cannot be read ({error.strerror}): "
            f"the checkpoint was never finished. {advice(folder)}"
        ) from error
    except (ValueError, RecursionError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise CorruptCheckpoint(f"{path}: not a manifest of this version ({first}). {advice(folder)}") from error


def verify(folder: Path) -> Manifest:
    """The manifest in `folder`, every file of which has just been compared with it.

    Raises:
        CorruptCheckpoint: a file is missing, cut short or changed; names it, what was expected and what arrived.
    """
    manifest = read(folder)
    found = problems(folder, manifest.files) or _strangers(folder, manifest)
    if found:
        raise CorruptCheckpoint(f"{folder / next(iter(found))}: {next(iter(found.values()))}. {advice(folder)}")
    return manifest


def _strangers(folder: Path, manifest: Manifest) -> dict[str, str]:
    """What is wrong with files that a library would read beside those of the manifest, or in their place."""
    known = {file.name for file in manifest.files}
    found = (path.name for path in folder.iterdir() if path.name not in known and not path.name.startswith("."))
    return {
        name: "the file was put there later: the manifest does not name it" for name in sorted(found) if is_read(name)
    }


def advice(folder: Path) -> str:
    return f"Delete {folder} and run again."


def problems(folder: Path, files: Iterable[File]) -> dict[str, str]:
    """What is wrong, by name, with those of `files` that do not lie in `folder` as recorded."""
    found: dict[str, str] = {}
    whole: dict[Path, File] = {}
    for file in files:
        path = folder / file.name
        if len(os.fsencode(file.name)) > LONGEST_NAME or not path.is_file():
            found[file.name] = "the file is missing"
        elif path.stat().st_size != file.bytes:
            found[file.name] = f"expected {file.bytes} bytes, found {path.stat().st_size}"
        else:
            whole[path] = file
    for path, sha256 in hashes(whole, folder / STAMPS).items():
        if sha256 != whole[path].sha256:
            found[whole[path].name] = f"expected sha256 {whole[path].sha256}, found {sha256}"
    return found


class Stamp(Frozen):
    """A hash that was taken, and the file as it was then."""

    identity: tuple[int, int, int, int] = Field(description="bytes, times of change of content and inode in ns, inode")
    sha256: str


_STAMPS = TypeAdapter(dict[str, Stamp])


def hashes(paths: Iterable[Path], stamps: Path) -> dict[Path, str]:
    """The sha256 of each of `paths`, remembered in the JSON file `stamps`.

    A stamp file that cannot be written costs time and nothing else: the hashes are taken again next time.
    """
    remembered = _read_stamps(stamps)
    result: dict[Path, str] = {}
    changed = False
    for path in paths:
        key, stat = str(path.absolute()), path.stat()
        identity = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        known = remembered.get(key)
        if known is None or known.identity != identity:
            known = remembered[key] = Stamp(identity=identity, sha256=sha256_of(path))
            changed = True
        result[path] = known.sha256
    if changed:
        try:
            write_json(stamps, _STAMPS.dump_python(remembered, mode="json"))
        except OSError:
            return result
    return result


def _read_stamps(stamps: Path) -> dict[str, Stamp]:
    """By absolute path; none where the file is missing or not one of stamps."""
    try:
        return _STAMPS.validate_json(stamps.read_bytes())
    except (OSError, ValidationError):
        return {}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path) -> File:
    """The record of a file that holds no tensors."""
    return File(name=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))
