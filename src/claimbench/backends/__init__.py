"""One file per system that runs a model; a backend's name is its file's name.

What a backend module holds (the contract tests hold every file to it):

    REFERENCE: str                  name of the backend whose plain run gives this one's reference tokens
    ENVIRONMENT: str                which of `envs/` it runs in ("core": the one that Claimbench itself runs in)
    LIBRARIES: tuple[str, ...]      distributions whose versions its results depend on
    SEAMS: frozenset[str]           what optimizations may change in it
    class Options(Frozen)           its own settings
    unavailable(cell) -> str | None why this machine cannot run the cell; cheap, imports nothing heavy
    load(cell, checkpoint, draft) -> Session

and, where they apply:

    IMPORTS: tuple[str, ...]        modules that `load` needs: imported before its clock starts, so that a load is timed
                                    without Python's own start, which takes seconds and reads no weights
    import_model(checkpoint)        imports the classes of this checkpoint's model, which are known from its files only:
                                    likewise before the clock. Processes are forked afterwards, so it makes no thread
                                    and touches no device
    VARIABLES: tuple[str, ...]      environment variables that name what it runs or reaches, when they are set
    programs() -> dict              versions of the programs that it starts; None for one that is absent
    launch(cell) -> list[str] | None  the command that starts one process per rank (see launchers.py), or None for a
                                    cell that runs in one. Then every rank calls `load` and makes each call that rank 0
                                    makes; RANK, WORLD_SIZE and LOCAL_RANK are in its environment. `Options.devices` is
                                    the number of ranks
    STANDS_STILL: bool              False where a generation goes on while nobody asks for its next step, as in a
                                    server: in a round its turns are whole generations then
    presharded(options) -> int | None   for how many ranks the checkpoint is to be cut ahead of time, or None for whole
    SWITCH: str                     what switches it on, in its own library or on a command line
    spread(options)                 how its devices share the model, and how many there are, as ("tensor_parallel", 2):
                                    forecasts and ceilings count with it; None: not known

Nothing heavy is imported at a module's top: planning reads these files without importing torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from claimbench import optimizations
from claimbench.proof import Findings
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    import torch

Column: TypeAlias = "torch.Tensor | list[list[int]]"
"""New token ids of a step, shape [batch, n]: a tensor on the device, or where a server answers, lists."""


@runtime_checkable
class Session(Protocol):
    """A loaded model, ready to generate the cell's workload again and again."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """Token ids that row 0 is fed, the whole prompt; other rows are fed its ends."""

    def generate(self) -> Iterator[Column]:
        """One generation; yields new token ids, shape [batch, n], as each step appears (n is 1 unless it speculates).

        Yields device tensors without synchronising; contains no timing code. Closing the iterator early ends the
        generation.
        """

    def memory(self) -> dict[str, int]:
        """Bytes: `weights` (all held), `step_weights` (read by one decode step), `kv_cache` (at full length)."""

    def prove(self) -> Findings:
        """What was seen to run, outside the timed samples.

        Raises:
            WrongOutput: a technique that was asked for did not run.
        """

    def log_probs(self, tokens: list[int]) -> torch.Tensor | None:
        """Teacher-forced log-probabilities of row 0, float32 [len(tokens), vocabulary]; None if out of reach."""

    def close(self) -> None:
        """Release the model and everything that was started for it."""


class Backend(Protocol):
    REFERENCE: str
    ENVIRONMENT: str
    LIBRARIES: tuple[str, ...]
    SEAMS: frozenset[str]
    Options: type[Frozen]

    def unavailable(self, cell: Cell) -> str | None: ...

    def load(self, cell: Cell, checkpoint: Path, draft: Path | None) -> Session: ...


def import_libraries(cell: Cell, checkpoint: Path | None) -> None:
    """Import what the cell's backend and techniques ask for, ahead of `load`, which is left to say what is amiss."""
    techniques = [optimizations.find(use.name) for use in cell.optimizations]
    import_model_classes(cell.backend, checkpoint)
    for module in [name for each in techniques for name in getattr(each, "IMPORTS", ())]:
        _import(module)


def import_model_classes(name: str, checkpoint: Path | None) -> None:
    """Of `import_libraries` what can be shared by processes that are forked afterwards: no thread, and no device."""
    backend = find(name)
    for module in getattr(backend, "IMPORTS", ()):
        _import(module)
    import_model = getattr(backend, "import_model", None)
    if import_model and checkpoint:
        with suppress(ImportError, OSError, ValueError, KeyError):
            import_model(checkpoint)


def _import(module: str) -> None:
    with suppress(ImportError):
        importlib.import_module(module)


def stands_still(cell: Cell) -> bool:
    """Whether a generation computes nothing between two steps until the next one is asked for.

    Of several ranks, some may wait for the others in a collective call.
    """
    return bool(getattr(find(cell.backend), "STANDS_STILL", True)) and launch(cell) is None


def launch(cell: Cell) -> list[str] | None:
    """The command that starts the cell's ranks; None where it runs in one process."""
    found: list[str] | None = getattr(find(cell.backend), "launch", lambda _: None)(cell)
    return found


@cache
def names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


@cache
def find(name: str) -> Backend:
    """The backend in `backends/<name>.py`.

    Raises:
        KeyError: there is no such file.
    """
    if name not in names():
        raise KeyError(name)
    return importlib.import_module(f"{__name__}.{name}")
