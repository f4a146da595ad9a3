"""A folder of results, wherever it came from: found, and read through the readers that check its seals."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from claimbench.errors import ResultError
from claimbench.schema import ceilings as ceilings_file
from claimbench.schema import plan as plan_file
from claimbench.schema import round as round_file
from claimbench.schema import verdicts as verdicts_file
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.plan import Plan
from claimbench.schema.round import Round, Rounds
from claimbench.schema.verdicts import Verdicts

INSIDE = ("results", "run", "run/results")
"""Of a project, and of a report that was committed with what it was made of."""


@dataclass(frozen=True)
class ResultsFolder:
    """What `results/` of a project holds; every part is read when it is asked for."""

    asked: Path
    """As it was named."""
    path: Path
    """The folder that stands for `results`."""

    @cached_property
    def plan(self) -> Plan:
        """The plan that the verdicts were made from; where there are no verdicts, the only one.

        Raises:
            ResultError: there is none, several, or one that cannot be trusted.
        """
        found = sorted((self.path / "plan").glob("*.json"))
        if len(found) > 1 and (self.path / "verdicts.json").exists():
            found = [path for path in found if self.verdicts.made_of.get("plan", "").startswith(path.stem)]
        if len(found) != 1:
            what = f"{len(found)} plans and no verdicts that say which" if found else "no plan (plan/<digest>.json)"
            raise ResultError(f"{self.asked}: {what}")
        return plan_file.read(found[0])

    @cached_property
    def verdicts(self) -> Verdicts:
        """
        Raises:
            ResultError: there are none, or they cannot be trusted.
        """
        return verdicts_file.read(self.path / "verdicts.json")

    @property
    def ceilings_path(self) -> Path:
        return self.path / "ceilings" / f"{self.plan.machine['key']}-{self.plan.device}.json"

    @cached_property
    def ceilings(self) -> Ceilings:
        """Of the plan's machine; empty where none were measured."""
        if not self.ceilings_path.exists():
            return Ceilings()
        return ceilings_file.read(self.ceilings_path, self.plan.machine["key"], self.plan.device)

    @property
    def decided_path(self) -> Path:
        return self.path / "decided" / f"{self.plan.seal[:12]}.json"

    @cached_property
    def decided(self) -> Rounds | None:
        """The list of rounds; None where there is none."""
        return round_file.read_summary(self.decided_path) if self.decided_path.exists() else None

    @cached_property
    def rounds(self) -> Mapping[str, Round]:
        """By the path that the plan knows them by.

        Raises:
            ResultError: one is missing, or is not what the list says.
        """
        with self.as_project() as decided:
            return round_file.read_all(decided) if self.decided else {}

    @contextlib.contextmanager
    def as_project(self) -> Iterator[Path]:
        """The working directory is one in which this folder is `results`, as plans name files; gives `decided`."""
        with tempfile.TemporaryDirectory(prefix="claimbench-") as project:
            (Path(project) / "results").symlink_to(self.path.absolute(), target_is_directory=True)
            decided = Path("results") / self.decided_path.relative_to(self.path)
            with contextlib.chdir(project):
                yield decided

    @property
    def machine(self) -> str:
        """Its name for people: the device that was measured, and the machine's key."""
        return f"{self.verdicts.device_name or self.plan.device} ({self.plan.machine['key']})"


def find(asked: Path) -> ResultsFolder:
    """The results in `asked`: a project, its `results`, or a report's folder with what it was made of.

    Raises:
        ResultError: it is no folder, or there are no results in it.
    """
    if not asked.exists():
        raise ResultError(f"there is no folder {asked}")
    if not asked.is_dir():
        raise ResultError(f"{asked}: expected a folder of results, and it is a file")
    for path in (asked, *(asked / inner for inner in INSIDE)):
        if is_results(path):
            return ResultsFolder(asked, path)
    raise ResultError(f"{asked}: no results in it: expected plan/ and verdicts.json, or a folder `results` with them")


def is_results(path: Path) -> bool:
    return (path / "verdicts.json").is_file() or (path / "plan").is_dir()


def find_all(root: Path) -> list[ResultsFolder]:
    """Every folder of results in a project: its own, those of its runs, and those beside committed reports."""
    places = [root, *sorted(root.glob("runs/*")), *sorted(root.glob("reports/*")), *sorted(root.glob("reports/*/*"))]
    found = list[ResultsFolder]()
    for place in (each for each in places if each.is_dir()):
        with contextlib.suppress(ResultError):
            folder = find(place)
            if all(one.path != folder.path for one in found):
                found.append(folder)
    return found
