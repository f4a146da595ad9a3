"""One file per technique; an optimization's name is its file's name, and its docstring opens with its physics.

Those of Claimbench's own engine are in `engine/`, those of Transformers and what is driven like it in `transformers/`;
no name is in both.

What an optimization module holds (the contract tests hold every file to it):

    SEAM: str                           the one thing that it changes; two on the same seam clash
    EXACT: bool                         promises the reference's tokens in float32
    LIBRARIES: tuple[str, ...]          distributions, beside the backend's, that its results depend on
    class Settings(Frozen)              its parameters
    unavailable(cell, settings)         why this machine cannot run it, or None; cheap, imports nothing heavy
    apply(setup, settings)             change the setup at its seam
    prove(evidence, settings) -> dict   what was seen to run; raises WrongOutput if it was not this technique

and, where they apply:

    SWITCH: str                         what switches it on in the library that has it; {names} are settings
    lacks(spec, settings)               what a loaded model of the engine lacks for it, or None
    IMPORTS: tuple[str, ...]            modules that it needs, imported before a load or a first call is timed
    NEEDS: frozenset[str]               optimizations that must be on as well
    CLASHES: frozenset[str]             optimizations on other seams that cannot be on as well
    CHECKPOINT_SETTING                  names the setting that holds a draft checkpoint's name
    RECOMPUTES: bool                    every step processes the whole sequence again (the ceiling counts it)
    compiles(settings)                  whether compiled code is timed, where its seam is another than `compile`
    REDRAWS: bool                       where tokens are drawn, draws others from the same odds: EXACT is about greedy
    COMPUTE_DTYPE: str                  the type that it multiplies in, whatever the cell's, on some machine at least
                                        (the ceiling is of the faster of the two; a type without a rate has none)
    LAYER_BITS: float                   bits per weight of the layers' matrices, for forecasts of a lossy technique

Which backends an optimization fits follows from its seam: a backend lists the seams that it has.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen
from claimbench.technique import Optimization, Technique


@cache
def names() -> tuple[str, ...]:
    """Of all techniques."""
    return tuple(sorted(_folders()))


@cache
def _folders() -> dict[str, str]:
    """Technique -> the folder that its file is in."""
    found: dict[str, str] = {}
    for folder in ("engine", "transformers"):
        for module in pkgutil.iter_modules([f"{path}/{folder}" for path in __path__]):
            assert module.name not in found, module.name
            found[module.name] = folder
    return found


@cache
def find(name: str) -> Optimization:
    """The technique in `optimizations/<folder>/<name>.py`.

    Raises:
        KeyError: there is no such file.
    """
    if name not in names():
        raise KeyError(name)
    return importlib.import_module(module_of(name))


def module_of(name: str) -> str:
    """The full name of a technique's module."""
    return f"{__name__}.{_folders()[name]}.{name}"


def settings_of(use_name: str, raw: Mapping[str, object]) -> Frozen:
    return find(use_name).Settings.model_validate(raw)


def used_by(cell: Cell) -> tuple[Technique, ...]:
    """The cell's optimizations, in its order."""
    return tuple(Technique(use.name, find(use.name), settings_of(use.name, use.settings)) for use in cell.optimizations)


def is_exact(cell: Cell) -> bool:
    """Whether the cell's optimizations promise the tokens of a reference of its type (in float32)."""
    return all(find(use.name).EXACT for use in cell.optimizations)


def may_differ(cell: Cell, reference: Cell) -> bool:
    """Whether the cell may give other tokens than its reference, so that their distance is to be measured."""
    return cell.dtype != reference.dtype or not is_exact(cell)
