"""Environments of systems whose packages clash with this project's own: the tests use those that are built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from claimbench.planning.paths import ENVIRONMENTS

NAMED = {"deepspeed": "CLAIMBENCH_DEEPSPEED", "vllm": "CLAIMBENCH_VLLM_PYTHON"}
"""What a user may set to name an environment of their own: DeepSpeed's folder, vLLM's interpreter."""


def python_of(name: str) -> Path:
    """The interpreter of the environment `name`, or a skip: without its stamp it may be half built at this moment."""
    named = os.environ.get(NAMED.get(name, ""))
    if named:
        own = Path(named).absolute()
        return own / "bin" / "python" if own.is_dir() else own
    folder = (ENVIRONMENTS / name).absolute()
    if not (folder / "stamp.json").exists():
        pytest.skip(f"the environment of {name} is not built: make test-{name.partition('_')[0]}")
    return folder / "bin" / "python"
