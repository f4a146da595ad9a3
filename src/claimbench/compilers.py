"""Whether torch.compile can make machine code here: it writes C++ for a CPU, and Triton for a GPU."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec


def no_compiler(device: str) -> str | None:
    """What torch.compile lacks on this machine, in one line, or None; cheap, imports nothing heavy."""
    if device == "cuda":
        return None if find_spec("triton") else "not installed: triton, by which torch.compile makes code for a GPU"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"no C++ compiler '{compiler}' on PATH, by which torch.compile makes code: install g++, or set CXX"
    return None
