"""One file per command; a command's name is its file's name, less an underscore at the end.

Those for people are in `people/`, the stages that the workflow's rules call in `stages/`. What a command module holds:

    ABOUT: str                      what it does, in one line
    add_arguments(parser)           its arguments, each with a help text
    run(arguments) -> int | None    does it; the exit status, None for 0

and, for people:

    EXAMPLES: tuple[str, ...]       command lines that work

Here alone arguments are parsed, text is printed and the process ends. Nothing heavy is imported at a module's top, so
that `claimbench --help` comes at once.
"""

from __future__ import annotations

import importlib
import pkgutil
from argparse import ArgumentParser, Namespace
from functools import cache
from typing import Protocol

PEOPLE = (
    *("run", "new", "list", "claims", "explain", "compare", "combine", "check", "sign", "import"),
    *("forecast", "selftest", "completion"),
)
"""In the order in which a newcomer needs them."""


class Command(Protocol):
    ABOUT: str

    def add_arguments(self, parser: ArgumentParser) -> None: ...

    def run(self, arguments: Namespace) -> int | None: ...


@cache
def stage_names() -> tuple[str, ...]:
    return tuple(sorted(name for name, folder in _folders().items() if folder == "stages"))


@cache
def _folders() -> dict[str, str]:
    """Command -> the folder that its file is in."""
    found: dict[str, str] = {}
    for folder in ("people", "stages"):
        for module in pkgutil.iter_modules([f"{path}/{folder}" for path in __path__]):
            found[module.name.rstrip("_")] = folder
    return found


def find(name: str) -> Command:
    """The command `name`.

    Raises:
        KeyError: there is none.
    """
    folder = _folders()[name]
    file = f"{name}_" if name == "import" else name
    return importlib.import_module(f"{__name__}.{folder}.{file}")
