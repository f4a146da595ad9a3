"""Whether torch.compile can make machine code here: it writes C++ for a CPU, and Triton for a GPU."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

COORDINATE_DESCENT = "TORCHINDUCTOR_COORDINATE_DESCENT_TUNING"

if TYPE_CHECKING:
    from claimbench.schema.cell import Cell


def no_compiler(device: str) -> str | None:
    """What torch.compile lacks on this machine, in one line, or None; cheap, imports nothing heavy."""
    if device == "cuda":
        return None if find_spec("triton") else "not installed: triton, by which torch.compile makes code for a GPU"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"no C++ compiler '{compiler}' on PATH, by which torch.compile makes code: install g++, or set CXX"
    return None


def no_compiled_step(cell: Cell, machine_code: bool) -> str | None:
    """Why the engine's decode steps cannot be compiled for the cell, or None; `machine_code`: by a compiler."""
    if cell.workload.new_tokens < 2:
        return "compiles decode steps, and a workload of one new token has none"
    if cell.device == "cuda" and cell.uses("flash_everywhere"):
        return "a static cache is masked, and the flash kernel on a GPU takes no mask"
    return no_compiler(cell.device) if machine_code else None


def tune_alike(device: str) -> None:
    """Let Inductor search the sizes of its Triton kernels by coordinate descent, in whatever this process compiles.

    Libraries turn it on for their own sake; on for some and off for others, it would be part of every comparison.
    """
    if device != "cuda":
        return
    os.environ[COORDINATE_DESCENT] = "1"  # read when Inductor's settings are imported, here and in what is started
    settings = sys.modules.get("torch._inductor.config")
    if settings is not None:
        settings.coordinate_descent_tuning = True  # type: ignore[attr-defined]
