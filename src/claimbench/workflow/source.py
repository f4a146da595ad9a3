"""The workflow that comes with this package: the clone's own, or what a wheel brings in claimbench/project."""

from __future__ import annotations

from pathlib import Path

from claimbench.errors import ConfigError

PACKAGE = Path(__file__).parent.parent


def folder() -> Path:
    """Where the Snakefile is, with workflow/, profiles/, studies/, envs/ and params.yaml beside it.

    Raises:
        ConfigError: it is neither beside the package nor in it.
    """
    for found in (PACKAGE / "project", PACKAGE.parent.parent):
        if (found / "Snakefile").is_file():
            return found
    raise ConfigError(
        "this installation lacks the workflow: install Claimbench from its wheel, or clone its repository and "
        "`pip install --editable .` there"
    )


def snakefile() -> str:
    return str(folder() / "Snakefile")
