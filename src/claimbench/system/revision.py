"""Which commit the code that runs is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__)


def commit() -> str | None:
    """Twelve digits, with `-dirty` behind them where tracked files differ; None where git does not track this file.

    An environment may lie inside the clone of another project, whose commit says nothing about this code.
    """
    if _git("ls-files", "--error-unmatch", HERE.name) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=HERE.parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
