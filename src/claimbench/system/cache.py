"""Where Claimbench keeps what is made once and used again: compiled kernels, converted checkpoints, offloaded weights.

It can all be made again, so nothing of a result depends on where it lies.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder called `name`: in CLAIMBENCH_CACHE, else in `.claimbench` here. Whoever writes there makes it."""
    return Path(os.environ.get("CLAIMBENCH_CACHE", ".claimbench")).resolve() / name
