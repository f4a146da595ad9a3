"""The plan: every cell with its key and the files of its results, and the rows in which studies show them."""

from __future__ import annotations

from pathlib import Path

from pydantic import PrivateAttr, ValidationError

from claimbench.errors import ResultError
from claimbench.schema import plain_file, sealed
from claimbench.schema.cell import Cell, Device
from claimbench.schema.deviation import Deviation
from claimbench.schema.frozen import Frozen
from claimbench.schema.json_file import digest, parse_json
from claimbench.schema.load import InferenceLoad
from claimbench.schema.machine import MachineIdentity
from claimbench.schema.params import Params
from claimbench.schema.plan_history import as_of_today
from claimbench.schema.result import Key
from claimbench.schema.study import Study

RESULTS = Path("results")


class PlannedCell(Frozen):
    cell: Cell
    key: Key
    blocks: int
    """0 where it is measured in rounds."""
    reference: str | None = None
    """Id of the cell whose tokens this one is compared with; its own id for a reference."""
    smaller: str | None = None
    """Id of the cell that differs only by the next smaller batch: if it is out of memory, so is this one."""
    exact: bool = True

    def paths(self) -> list[str]:
        folder = RESULTS / "measure" / self.cell.id / self.key.id
        return [str(folder / f"{block}.json") for block in range(self.blocks)]


class Row(Frozen):
    """One cell as a study shows it."""

    label: str
    title: str
    sweep: dict[str, float | int | str] = {}
    cell: str | None = None
    """Id of the cell, or None where this version cannot plan it; then `unavailable` says why."""
    unavailable: str | None = None
    published: dict[str, float | int | str] = {}
    """The document's figures by metric, of this very row."""
    deviations: tuple[Deviation, ...] = ()
    """How the cell departs from what the document measured: another model, a workload cut to this machine."""
    frontier: str | None = None
    """Id of the search that its batch is part of."""
    asked: InferenceLoad | None = None
    """What the document asks for, uncut, where its hardware is known and the cost model knows the system."""


class PlannedFrontier(Frozen):
    """A search for the largest batch that fits, between the batches of a sweep."""

    cells: tuple[str, ...]
    """Ids, smallest batch first."""
    path: str


class PlannedGroup(Frozen):
    """Cells that take turns in rounds."""

    title: str
    cells: tuple[str, ...]
    """Ids."""
    base: str
    """Id of the cell that sits twice, so that each round shows what no difference looks like."""
    witnesses: tuple[str, ...] = ()
    """Ids of references that no experiment shows. They sit once, for their tokens."""

    @property
    def everyone(self) -> tuple[str, ...]:
        """All that have a seat in some round."""
        return self.cells + self.witnesses


class PlannedStudy(Frozen):
    study: Study
    rows: dict[str, dict[str, Row]]
    """experiment -> address within it (`label` or `label@batch=8`) -> row."""


class Plan(Frozen):
    device: Device
    machine: MachineIdentity
    params: Params
    cells: dict[str, PlannedCell]
    studies: dict[str, PlannedStudy]
    frontiers: dict[str, PlannedFrontier] = {}
    groups: tuple[PlannedGroup, ...] = ()
    """What is measured in rounds; its cells have no blocks. Empty where no budget is set."""
    budget_minutes: float = 0.0
    """For all rounds."""
    commit: str | None = None
    """Of the code that made it, where that is in git. Two commits can make one plan: it is not sealed."""
    _written_seal: str | None = PrivateAttr(default=None)
    """Of one that an earlier version wrote: what was measured by it is named after what was written then."""

    @property
    def seal(self) -> str:
        """Its sha256; the first twelve digits are the name of its file."""
        return self._written_seal or _seal(self.model_dump(mode="json"))

    def row(self, study: str, address: str) -> Row:
        """The row at `experiment/label[@...]` of `study`.

        Raises:
            KeyError: there is none.
        """
        experiment, _, rest = address.partition("/")
        return self.studies[study].rows[experiment][rest]


def _seal(content: dict[str, object]) -> str:
    return digest({name: value for name, value in content.items() if name != "commit"}, length=64)


def read(path: Path) -> Plan:
    """The plan at `path`; its name is checked against what is written, which an earlier version may have written.

    Raises:
        ResultError: the file is missing, cut short, edited by hand, or of another version of Claimbench.
    """
    try:
        content = parse_json(plain_file.read_text(path, sealed.MOST_BYTES))
        seal = _seal(content)
        found = Plan.model_validate(as_of_today(content))
    except OSError as error:
        raise ResultError(f"cannot read the plan {path}: {error.strerror}. `snakemake plan` makes it.") from error
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise ResultError(
            f"{path}: not a plan of this version of Claimbench ({first}). Delete it; `snakemake plan` makes it anew."
        ) from error
    if not seal.startswith(path.stem):
        raise ResultError(
            f"{path}: the plan was edited after it was made: its content does not match its name. "
            "Delete it; `snakemake plan` makes it anew."
        )
    if seal != found.seal:
        found._written_seal = seal
    return found
