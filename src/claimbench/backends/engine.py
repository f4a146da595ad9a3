"""Claimbench's own engine: the reference transformer behind a decode loop in which every part can be exchanged.

Its plain run is document B's `causal`. It reads the safetensors shards directly, and its tokens are compared with
Transformers' own.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from claimbench import optimizations
from claimbench.engine.session import EngineSession, checked
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

REFERENCE = "transformers"
ENVIRONMENT = "core"
LIBRARIES = ("safetensors", "tokenizers", "torch", "transformers")
IMPORTS = ("torch",)
SEAMS = frozenset(
    {
        "flash", "softmax", "norm", "gelu", "linear", "rows", "kv", "keys", "mask", "head", "details", "processing",
        "draw", "surgery", "buffers", "step", "speculation",
    }
)  # fmt: skip


class Options(Frozen):
    """None: everything that can be changed is an optimization."""


def unavailable(cell: Cell) -> str | None:
    absent = [name for name in ("torch", "transformers", "safetensors") if find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> EngineSession:
    """The cell's model, ready to generate.

    Raises:
        Unavailable: this machine or installation lacks what a technique needs.
        OutOfMemory: the weights do not fit.
    """
    return checked(EngineSession, cell, checkpoint, draft, optimizations.used_by(cell))
