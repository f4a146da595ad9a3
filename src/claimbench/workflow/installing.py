"""Locked packages -> an environment, by uv where it is found and else by pip, with torch's build for this machine.

`make` runs this file before anything is installed, so it imports the standard library alone. A lock is whole and has
the hash of every file: nothing is resolved here, and a file that differs is refused. Which build of torch is wanted no
marker can say, so there are two locks of it, and the driver is asked.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from shutil import which
from typing import NamedTuple

LOCKS = Path(__file__).resolve().parents[3] / "envs"
WITH_CUDA = {"core": ("kernels",)}
"""What a machine with a GPU has after a lock: kernels of FlashAttention that need no compiler."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DEVICES = ("auto", "cpu", "cuda")
NVIDIA = ("/proc/driver/nvidia/version", "/dev/nvidiactl")
AMD = "/dev/kfd"
ONLY = "only NVIDIA's GPUs are supported, and CPUs"


class InstallError(Exception):
    """Nothing can be installed; one message."""


class Choice(NamedTuple):
    device: str
    """cpu or cuda: the build of torch."""
    why: str


def choose(asked: str) -> Choice:
    """The build of torch for what was asked; `auto` takes CUDA's where there is a driver that it can work with.

    Raises:
        InstallError: a device was asked for that is not supported.
    """
    if asked not in DEVICES:
        raise InstallError(f"DEVICE={asked}: expected auto, cpu or cuda: {ONLY}")
    if asked != "auto":
        return Choice(asked, f"asked for by DEVICE={asked}")
    sign, serves, wanted = nvidia_driver(), driver_cuda(), wanted_cuda()
    if sign and serves is not None and serves < wanted:
        older = f"the NVIDIA driver here serves CUDA {serves} and torch's build wants {wanted}"
        return Choice("cpu", f"{older}: update the driver and run this again, or say DEVICE=cuda")
    if sign:
        return Choice("cuda", f"an NVIDIA driver is here ({sign}); DEVICE=cpu takes the other build")
    if Path(AMD).exists():
        return Choice("cpu", f"an AMD GPU is here ({AMD}), but {ONLY}")
    return Choice("cpu", "no NVIDIA driver is here; DEVICE=cuda takes the other build")


def nvidia_driver() -> str | None:
    """What shows that there is one: a file, or the library by which programs reach it."""
    shown = [path for path in NVIDIA if Path(path).exists()]
    return shown[0] if shown else "libcuda" if driver_cuda() is not None else None


def driver_cuda() -> int | None:
    """The newest major version of CUDA that the driver serves, without opening a device; None where it is not said."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed or version.value < 1000 else version.value // 1000


def wanted_cuda() -> int:
    """The major version that the locked torch is built for."""
    found = re.search(r"^nvidia-cuda-runtime==(\d+)", (LOCKS / "cuda.lock").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise InstallError(f"{LOCKS / 'cuda.lock'}: expected nvidia-cuda-runtime in it")
    return int(found[1])


def here() -> str:
    """The build of torch in this environment."""
    return "cpu" if metadata.version("torch").endswith("+cpu") else "cuda"


def torch_of(lock: Path) -> str | None:
    """What a lock's first line says of torch: `cpu`, `here` for the build of whoever installs it, or None for none."""
    said = re.match(r"# torch: (cpu|here)\n", lock.read_text(encoding="utf-8"))
    return said[1] if said else None


def with_torch(lock: Path, device: str) -> list[Path]:
    """The locks that `lock` is installed as, in order, where `device` is the build of torch that is wanted."""
    build = {"cpu": "cpu", "here": device, None: None}[torch_of(lock)]
    after = WITH_CUDA.get(lock.stem, ()) if build == "cuda" else ()
    return [*([] if build is None else [LOCKS / f"{build}.lock"]), lock, *(LOCKS / f"{name}.lock" for name in after)]


def install(python: Path, locks: list[Path]) -> None:
    """Each lock in turn into the environment of `python`.

    Raises:
        InstallError: a package cannot be had, or it is another file than was locked; carries the last lines.
    """
    for lock in locks:
        indexes = (None, CPU_INDEX) if lock.stem == "cpu" else (None,)
        for tool, index in [(tool, index) for index in indexes for tool in tools()]:
            refusal = attempt(tool, python, lock, index)
            if refusal is None:
                break
        else:
            raise InstallError(f"could not install {lock}:\n{refusal}{help_with(lock)}")


def tools() -> list[str]:
    return [*(["uv"] if which("uv") else []), "pip"]


def attempt(tool: str, python: Path, lock: Path, index: str | None) -> str | None:
    """None where it is installed, or the last lines that were said."""
    how = ["--quiet", "--no-deps", "--require-hashes", "--requirement", str(lock)]
    start = ["uv", "pip", "install", "--python", str(python)] if tool == "uv" else [str(python), "-m", "pip", "install"]
    where = [] if index is None else ["--index-url", index]
    configured = as_pip_is_configured() if tool == "uv" and index is None else []
    done = subprocess.run(
        [*start, *how, *where, *configured], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    return "\n".join((done.stderr or done.stdout).strip().splitlines()[-4:]) if done.returncode else None


def as_pip_is_configured() -> list[str]:
    """uv reads none of pip's variables: where pip was told to look, it is told to look."""
    named = {
        "--find-links": "PIP_FIND_LINKS",
        "--index-url": "PIP_INDEX_URL",
        "--extra-index-url": "PIP_EXTRA_INDEX_URL",
    }
    return [
        word for flag, name in named.items() for place in os.environ.get(name, "").split() for word in (flag, place)
    ]


def help_with(lock: Path) -> str:
    if lock.stem != "cpu":
        return ""
    return (
        f"\n{CPU_INDEX} was not reached, or has no wheel of torch for this Python. PIP_FIND_LINKS=folder takes one"
        " from a folder, and DEVICE=cuda the build of the usual index: larger by gigabytes, and good for a CPU too."
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Install locks of envs/ into the environment that runs this.")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda: the build of torch")
    parser.add_argument("locks", nargs="+", help="core, dev, extras or deepspeed")
    asked = parser.parse_args(arguments)
    try:
        if sys.platform != "linux":
            raise InstallError(f"Claimbench runs on Linux, this is {sys.platform}: {ONLY}")
        locks = [LOCKS / f"{name}.lock" for name in asked.locks]
        if any(map(torch_of, locks)):
            choice = choose(asked.device)
            print(f"Claimbench: torch's build for {choice.device}: {choice.why}", file=sys.stderr, flush=True)
            locks = [each for lock in locks for each in with_torch(lock, choice.device)]
            Path(sys.prefix, "device").write_text(f"{choice.device}\n", encoding="utf-8")
        install(Path(sys.executable), locks)
    except InstallError as error:
        sys.exit(f"Claimbench: {error}")


if __name__ == "__main__":
    main()
