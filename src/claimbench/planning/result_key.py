"""A cell -> the key of its results: everything outside its settings that they depend on, as hashes and versions.

That is the code that it executes, the libraries, programs outside of Python, what this machine lacks for it, the
machine and the user's series. Results live under a folder named after this key, so that a change gives a new path and
going back finds the old one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from claimbench import backends, optimizations
from claimbench.errors import ResultError
from claimbench.planning.availability import missing_requirement
from claimbench.planning.code_hash import code_hash, forget, version_of
from claimbench.planning.paths import locks_folder
from claimbench.planning.target_machine import VARIABLE as MACHINE
from claimbench.schema.cell import Cell
from claimbench.schema.json_file import digest
from claimbench.schema.result import Key

EXECUTED = (
    "claimbench.measuring.measure",
    "claimbench.measuring.worker",
    "claimbench.measuring.rank_process",
    "claimbench.measuring.round_process",
)
"""Modules that every cell executes, whatever its backend."""
TORCH_LOCKS = {"# torch: cpu": ("cpu.lock",), "# torch: here": ("cpu.lock", "cuda.lock")}
"""First line of a lock -> the locks that torch's build is taken from."""


def locked(family: str) -> dict[str, str | None]:
    """Hashes of the files that the environment `family` is made from, by path; None for one that is missing."""
    lock = locks_folder() / f"{family}.lock"
    first = lock.read_text(encoding="utf-8").partition("\n")[0] if lock.exists() else ""
    made_from = [lock, *(lock.with_name(name) for name in TORCH_LOCKS.get(first, ())), *build_program(family)]
    return {
        f"envs/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else None
        for path in made_from
    }


def build_program(family: str) -> list[Path]:
    """The program that compiles what pip does not: a list of one path, or of none where the environment has none."""
    program = locks_folder() / f"{family}.build.py"
    return [program] if program.exists() else []


@cache
def _outside(backend: str) -> dict[str, str | None]:
    """Programs that a backend starts, and what the environment names for it: a server's address is only hashed."""
    module = backends.find(backend)
    named = {name: os.environ.get(name) for name in getattr(module, "VARIABLES", ())}
    programs: dict[str, str | None] = getattr(module, "programs", dict)()
    return programs | {name: digest(value) for name, value in named.items() if value}


def _lacking(cell: Cell) -> str | None:
    """The hash of what this machine lacks for the cell; numbers do not count, such as those of free bytes.

    None where nothing is missing, and in a plan for another machine, which cannot know.
    """
    reason = None if os.environ.get(MACHINE) else missing_requirement(cell)
    return digest(re.sub(r"\d+", "", reason)) if reason else None


def key_of(cell: Cell, machine_key: str, series: int = 0) -> Key:
    """The key of the results of `cell` on the machine `machine_key`; `series` is raised to measure everything anew.

    Versions of libraries are those installed here where the backend runs in this environment. Elsewhere the files that
    its environment is made from stand for them, since it may not be built yet.
    """
    code, libraries = executed(cell)
    return Key(
        code=code,
        libraries=libraries,
        outside=_outside(cell.backend),
        lacking=_lacking(cell),
        machine=machine_key,
        series=series,
    )


def executed(cell: Cell) -> tuple[str, dict[str, str | None]]:
    """What a cell runs: the hash of its code, and versions of its libraries or the files of its environment."""
    used = sorted(use.name for use in cell.optimizations)
    roots = (f"claimbench.backends.{cell.backend}", *map(optimizations.module_of, used))
    wanted = set(backends.find(cell.backend).LIBRARIES)
    for name in used:
        wanted |= set(optimizations.find(name).LIBRARIES)
    family = backends.find(cell.backend).ENVIRONMENT
    libraries = {name: version_of(name) for name in sorted(wanted)} if family == "core" else locked(family)
    return code_hash(*EXECUTED, *roots), libraries


def expect_unchanged(cells: Iterable[tuple[Cell, Key]]) -> None:
    """Raises ResultError where what a cell runs is not what its key names any more: it was changed since the plan.

    Asked before something is measured and again before it is sealed: an editor, `git pull` or `pip install` may have
    come between. Programs outside of Python are not asked for their versions again.
    """
    forget()
    known: dict[tuple[str, ...], tuple[str, dict[str, str | None]]] = {}
    for cell, key in cells:
        what = (cell.backend, *sorted(use.name for use in cell.optimizations))
        if what not in known:
            try:
                known[what] = executed(cell)
            except (OSError, SyntaxError, ValueError):  # a file is gone, or an editor saved half of a thought
                known[what] = "unreadable", key.libraries
        code, libraries = known[what]
        changed = [
            f"{name} is {libraries.get(name) or 'not there'} and was {key.libraries.get(name) or 'not there'}"
            for name in sorted({*libraries, *key.libraries})
            if libraries.get(name) != key.libraries.get(name)
        ]
        if code != key.code:
            changed.insert(0, "code of Claimbench was edited")
        if changed:
            raise ResultError(
                f"{', '.join(changed)} since the plan was made, so nothing is measured or written under its key. "
                "Run again: what is changed is planned and measured anew, all else stays"
            )
