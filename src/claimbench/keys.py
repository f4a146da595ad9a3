"""What a result depends on besides its settings: the code it executes, the libraries, the machine.

Results live under a folder named after this key, so that a change gives a new path and going back finds the old one.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
from functools import cache
from importlib import metadata
from pathlib import Path

from claimbench import backends, optimizations
from claimbench.cell import Cell, digest
from claimbench.lacking import lacking
from claimbench.node import VARIABLE as MACHINE
from claimbench.result import Key

PACKAGE = Path(__file__).parent
EXECUTED = ("claimbench.measure", "claimbench.worker", "claimbench.rank")


@cache
def _file_of(module: str) -> Path | None:
    path = PACKAGE.parent.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = body[1:]
    return tree


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imports(tree: ast.Module) -> set[str]:
    """Modules of this package that `tree` imports, at any depth; what only type checkers read is left out."""
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if _is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        pending += ast.iter_child_nodes(node)
    return {name for name in found if name.startswith("claimbench.") and _file_of(name)}


@cache
def _read(module: str) -> tuple[str, frozenset[str]]:
    """The hash of a module's code, comments and docstrings left out, and what it imports of this package."""
    file = _file_of(module)
    assert file is not None, module
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports = frozenset(_imports(tree))
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest(), imports


@cache
def import_closure(*roots: str) -> tuple[str, ...]:
    """Every module of this package that `roots` reach by import, themselves included, sorted."""
    reached: set[str] = set()
    pending = list(roots)
    while pending:
        module = pending.pop()
        if module not in reached:
            reached.add(module)
            pending += _read(module)[1]
    return tuple(sorted(reached))


@cache
def code_hash(*roots: str) -> str:
    closure = import_closure(*roots)
    lines = [f"{module} {_read(module)[0]}" for module in closure]
    lines += [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in _sources_in_c(closure)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _sources_in_c(modules: tuple[str, ...]) -> list[Path]:
    """C files that lie beside the files of `modules`: what a native module compiles is part of what it executes."""
    folders = sorted({file.parent for module in modules if (file := _file_of(module)) is not None} - {PACKAGE})
    return [path for folder in folders for path in sorted(folder.glob("*.[ch]"))]


@cache
def version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def locked(family: str) -> dict[str, str | None]:
    """What stands for the libraries of an environment that may not be built yet: hashes of what it is made from."""
    made_from = [Path("envs") / f"{family}.lock", *build_program(family)]
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else None for path in made_from
    }


def build_program(family: str) -> list[Path]:
    """The program that compiles what pip does not, where an environment has one."""
    program = Path("envs") / f"{family}.build.py"
    return [program] if program.exists() else []


def stage_hash(stage: str, *libraries: str) -> str:
    """The hash of what a stage executes and reads of this package, and of the libraries that shape what it writes."""
    root = f"claimbench.{stage}"
    data = [hashlib.sha256(path.read_bytes()).hexdigest() for path in _data_of(import_closure(root))]
    return digest([code_hash(root), *data, *map(version_of, libraries)])


def _data_of(modules: tuple[str, ...]) -> list[Path]:
    """Data files of the packages of `modules`: `rendering/templates/report.md.j2` is one of `claimbench.rendering`."""
    packages = {module.rpartition(".")[0] for module in modules}
    files = sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".json", ".j2"))
    return [path for path in files if ".".join((PACKAGE.name, *path.relative_to(PACKAGE).parts[:-2])) in packages]


@cache
def _outside(backend: str) -> dict[str, str | None]:
    """Programs that a backend starts, and what the environment names for it: a server's address is only hashed."""
    module = backends.find(backend)
    named = {name: os.environ.get(name) for name in getattr(module, "VARIABLES", ())}
    programs: dict[str, str | None] = getattr(module, "programs", dict)()
    return programs | {name: digest(value) for name, value in named.items() if value}


def _lacking(cell: Cell) -> str | None:
    """Numbers do not count, such as those of free bytes. A plan for another machine cannot know."""
    reason = None if os.environ.get(MACHINE) else lacking(cell)
    return digest(re.sub(r"\d+", "", reason)) if reason else None


def key_of(cell: Cell, machine_key: str, series: int = 0) -> Key:
    used = sorted(use.name for use in cell.optimizations)
    roots = (f"claimbench.backends.{cell.backend}", *(f"claimbench.optimizations.{name}" for name in used))
    wanted = set(backends.find(cell.backend).LIBRARIES)
    for name in used:
        wanted |= set(optimizations.find(name).LIBRARIES)
    family = backends.find(cell.backend).ENVIRONMENT
    own = family == "core"
    return Key(
        code=code_hash(*EXECUTED, *roots),
        libraries={name: version_of(name) for name in sorted(wanted)} if own else locked(family),
        outside=_outside(cell.backend),
        lacking=_lacking(cell),
        machine=machine_key,
        series=series,
    )
