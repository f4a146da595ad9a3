"""Compiles decode.c with the system's compiler when it is first needed, for the CPU that it runs on.

A wheel cannot carry code for every CPU, and the difference between generic and native code is what this package is
about. The library is cached under a hash of all that it depends on: source, flags, compiler and CPU.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from claimbench.errors import Unavailable
from claimbench.schema.json_file import digest
from claimbench.system import machine
from claimbench.system.cache import cache_folder

SOURCE = Path(__file__).with_name("decode.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread", "-Wno-psabi")
THIS_CPU = ("-march=native", "-mcpu=native", "")
"""Ways to ask for the CPU at hand, in order: a compiler takes one or the other, some neither."""
BUILD_TIMEOUT_S = 300


def unavailable() -> str | None:
    """Why nothing can be built here, or None; cheap, builds nothing."""
    if _compiler() is None:
        return f"no C compiler: looked for {', '.join(_wanted())} on PATH: install gcc or clang"
    return None


def _wanted() -> tuple[str, ...]:
    named = os.environ.get("CC")
    return (named,) if named else COMPILERS


def _compiler() -> str | None:
    return next((path for path in map(shutil.which, _wanted()) if path), None)


@cache
def library(flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The step as a loaded library. `flags` replace those that ask for this CPU, for instance ("-march=x86-64-v3",).

    Raises:
        Unavailable: there is no compiler, or it fails; the message has its first error.
    """
    reason = unavailable()
    compiler = _compiler()
    if reason or compiler is None:
        raise Unavailable(reason or "no C compiler")
    loaded = ctypes.CDLL(str(_built(compiler, flags)))
    loaded.decoder_open.restype = ctypes.c_void_p
    loaded.decoder_open.argtypes = [ctypes.c_void_p]
    loaded.decoder_step.restype = ctypes.c_int
    loaded.decoder_step.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    loaded.decoder_multiply.restype = ctypes.c_int
    loaded.decoder_multiply.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    loaded.decoder_close.restype = None
    loaded.decoder_close.argtypes = [ctypes.c_void_p]
    loaded.model_bytes.restype = ctypes.c_int64
    loaded.instructions.restype = ctypes.c_char_p
    return loaded


def _built(compiler: str, flags: tuple[str, ...]) -> Path:
    folder = cache_folder("native")
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, encoding="utf-8", errors="replace", timeout=BUILD_TIMEOUT_S
    ).stdout
    key = {
        "source": [path.read_text(encoding="utf-8") for path in sorted(SOURCE.parent.glob("*.[ch]"))],
        "flags": [*FLAGS, *(flags or THIS_CPU)],
        "compiler": [compiler, version],
        "cpu": machine.identify()["cpu"],
    }
    path = folder / f"{digest(key)}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _compile(compiler, [flags] if flags else [(flag,) if flag else () for flag in THIS_CPU], path)
    return path


def _compile(compiler: str, choices: list[tuple[str, ...]], path: Path) -> None:
    """Written beside `path` and renamed: a process that builds at the same moment sees all of it or nothing."""
    first_error = ""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / "decode.so"
        for flags in choices:
            command = [compiler, *FLAGS, *flags, str(SOURCE), "-o", str(partial), "-lm"]
            try:
                done = subprocess.run(
                    command, capture_output=True, encoding="utf-8", errors="replace", timeout=BUILD_TIMEOUT_S
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                first_error = first_error or str(error)
                continue
            if done.returncode == 0:
                partial.replace(path)
                return
            lines = done.stderr.strip().splitlines()
            first_error = first_error or next(
                (line for line in lines if "error" in line), f"exit status {done.returncode}"
            )
    raise Unavailable(f"{compiler} does not build {SOURCE.name}: {first_error}")
