"""What code a result depends on: hashes of the modules that are imported, comments and docstrings left out."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from claimbench.schema.json_file import digest

PACKAGE = Path(__file__).parent.parent


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
    """What `tree` imports of this package at any depth, modules or names in them, but not for type checkers alone."""
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
    return {name for name in found if name.startswith("claimbench.")}


def _read(module: str) -> tuple[str, frozenset[str]]:
    """The hash of a module's code, comments and docstrings left out, and what it imports of this package."""
    file = _file_of(module)
    if file is None:
        raise FileNotFoundError(module)
    found = file.stat()
    return _parsed(file, (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@cache
def _parsed(file: Path, stamp: tuple[int, ...]) -> tuple[str, frozenset[str]]:
    """A file as it is while `stamp` holds."""
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
            pending += filter(_file_of, _read(module)[1])
    return tuple(sorted(reached))


@cache
def code_hash(*roots: str) -> str:
    """Of every module that `roots` reach, and of the C beside them.

    Raises:
        OSError: a file is gone.
        SyntaxError, ValueError: a file is no Python, or no text.
    """
    closure = import_closure(*roots)
    lines = [f"{module} {_read(module)[0]}" for module in closure]
    lines += [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in _sources_in_c(closure)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def forget() -> None:
    """Have the next hash read files that were edited since the last one, and versions that were installed since."""
    for known in (_file_of, import_closure, code_hash, version_of):
        known.cache_clear()


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


def stage_hash(*roots: str, libraries: Sequence[str] = ()) -> str:
    """The hash of what a stage executes and reads of this package, and of the libraries that shape what it writes.

    `roots` are modules, such as `judging.judge`; `judging.checks.*` is every module of that folder, for those that are
    imported by a name that a study writes.
    """
    modules = [module for root in roots for module in _modules(f"claimbench.{root}")]
    data = [hashlib.sha256(path.read_bytes()).hexdigest() for path in _data_of(import_closure(*modules))]
    return digest([code_hash(*modules), *data, *map(version_of, libraries)])


def _modules(root: str) -> list[str]:
    folder, star, _ = root.partition(".*")
    if not star:
        return [root]
    path = PACKAGE.parent.joinpath(*folder.split("."))
    return sorted(f"{folder}.{file.stem}" for file in path.glob("*.py") if file.stem != "__init__")


def _data_of(modules: tuple[str, ...]) -> list[Path]:
    """Data files in folders beside those of `modules`: `reporting/templates/report.md.j2` is one of `reporting`."""
    folders = {file.parent for module in modules if (file := _file_of(module)) is not None}
    return sorted(
        path for folder in folders for path in folder.glob("*/*") if path.suffix in (".json", ".j2", ".css", ".js")
    )
