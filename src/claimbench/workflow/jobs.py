"""What the Snakefile asks: the plan for a configuration, and for each job the values and files that it needs."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from claimbench import backends, optimizations
from claimbench.checkpoints import cards
from claimbench.checkpoints.fetch import local_identity
from claimbench.cost_model import cost
from claimbench.errors import ClaimbenchError, ConfigError, SourceError, disk_trouble
from claimbench.planning import target_machine
from claimbench.planning.code_hash import stage_hash
from claimbench.planning.paths import CHECKPOINTS, ENVIRONMENTS, FETCHED, ceilings_path, folder_of, locks_folder
from claimbench.planning.plan import make_plan, order
from claimbench.planning.result_key import TORCH_LOCKS, build_program
from claimbench.schema.card import Card
from claimbench.schema.cell import Checkpoint
from claimbench.schema.json_file import canonical_json, digest, write_json
from claimbench.schema.lines import located
from claimbench.schema.params import CheckpointParams, Params, load_params, load_studies
from claimbench.schema.plan import RESULTS, Plan, PlannedCell
from claimbench.schema.study import Study
from claimbench.system import machine

ARGUMENTS = Path(".claimbench") / "arguments"
LONGEST_ARGUMENT = 20_000


@contextmanager
def in_one_message() -> Iterator[None]:
    """A mistake in the configuration ends Snakemake as it ends the command line: one message and no traceback."""
    try:
        yield
    except ClaimbenchError as error:
        print(f"claimbench: {located(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    except OSError as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        print(f"claimbench: {trouble}", file=sys.stderr)
        raise SystemExit(1) from None


def expect_no_wildcards(folder: Path) -> None:
    """Raises ConfigError where Snakemake would take parts of the project's own path for wildcards."""
    if set("{}") & set(str(folder)):
        raise ConfigError(f"{folder}: Snakemake takes braces in a path for wildcards: rename the folder")


def params_file(home: Path) -> Path:
    """The parameters: those in the working directory, where the catalog's form puts them there, or Claimbench's own."""
    there = [Path("params.yaml"), Path("config/config.yaml")]
    return next((path for path in there if path.exists()), home / "params.yaml")


def plan_for(config: Mapping[str, object], *studies: Path) -> Plan:
    """The plan for a parsed params.yaml, on this machine or on the one that target_machine.py is told of.

    A study is in the first folder of `studies` that has it; a folder's name is replaced by the studies in it.
    """
    params = load_params(config)
    asked = load_studies(params.studies, *studies)
    params = params.model_copy(update={"studies": tuple(asked), "checkpoints": with_contents(params, asked.values())})
    here = target_machine.planned_for()
    return make_plan(params, asked, here, machine.resolve_device(params.device, here))


def with_contents(params: Params, studies: Iterable[Study]) -> dict[str, CheckpointParams]:
    """The checkpoints, and of those that `studies` name what no source pins and the numbers of undeclared models.

    A folder that is missing is told of when it is fetched, an unknown architecture when it is used, and nothing is
    told of a checkpoint that `swap` puts another in place of.
    """
    words = {word for study in studies for word in _words(study.model_dump(mode="json"))}
    named = [name for name in params.checkpoints if name in words]
    loaded = {params.swap.get(name, name) for name in named}
    known = dict(params.checkpoints)
    for name in loaded:
        known[name] = known[name].model_copy(update=_found(known[name]))
    for name in (name for name in named if name not in loaded):
        with suppress(SourceError):
            declared = known[name].architecture
            update = _found(known[name]) if declared is None else {"card": _shape(known[name])}
            known[name] = known[name].model_copy(update=update)
    return known


def _words(value: object) -> Iterator[str]:
    """Every text inside of `value`: a study names checkpoints as settings of cells, of sweeps and of techniques."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (word for each in value.values() for word in _words(each))
    elif isinstance(value, list):
        yield from (word for each in value for word in _words(each))


def _found(checkpoint: CheckpointParams) -> dict[str, object]:
    """That is a hub's commit, a local folder's files, and the architecture that random weights are drawn for."""
    source, declared = checkpoint.source, checkpoint.architecture
    if checkpoint.unavailable is not None:
        found = cards.Known(checkpoint.card, None, checkpoint.unavailable)
    else:
        found = cards.find(source, checkpoint.keep_layers, counted=declared is None)
    content = found.content
    if source.startswith("file://"):
        with suppress(SourceError):
            content = local_identity(source)
    elif declared in cost.shape_names() and source.startswith("random://"):
        content = digest(cost.config(str(declared)))
    return {
        "content": content,
        "card": _shape(checkpoint) or found.card,
        "unavailable": found.unavailable,
    }


def _shape(checkpoint: CheckpointParams) -> Card | None:
    declared = checkpoint.architecture
    return cards.of_shape(declared, checkpoint.keep_layers) if declared in cost.shape_names() else None


def digest_of(plan: Plan) -> str:
    return plan.seal


def as_json(checkpoint: Checkpoint) -> str:
    return canonical_json(checkpoint.model_dump(mode="json"))


def as_argument(text: str) -> str:
    """`text` as one argument of the command line, or `@` and the file that it was written to where it is long.

    The kernel takes no argument above 128 KiB, and a shell's command is one: a long prompt would not start.
    """
    if len(shlex.quote(text)) <= LONGEST_ARGUMENT:
        return text
    path = ARGUMENTS / f"{digest(text, length=32)}.json"
    if not path.exists():
        write_json(path, json.loads(text))
    return f"@{path}"


class Workflow:
    """A plan with the look-ups of the rules; made once, when Snakemake reads the Snakefile."""

    def __init__(self, config: Mapping[str, object], *studies: Path) -> None:
        self.studies = os.pathsep.join(dict.fromkeys(str(folder) for folder in studies or (Path("studies"),)))
        self.plan = plan_for(config, *map(Path, self.studies.split(os.pathsep)))
        self.digest = digest_of(self.plan)
        self.params_json = canonical_json(self.plan.params.model_dump(mode="json"))
        self.ceilings = str(ceilings_path(self.plan))
        self.plan_json = str(RESULTS / "plan" / f"{self.digest[:12]}.json")

    @cached_property
    def checkpoints(self) -> dict[str, Checkpoint]:
        """Every checkpoint that a cell loads, by the name of its folder."""
        found: dict[str, Checkpoint] = {}
        for planned in self.plan.cells.values():
            if backends.find(planned.cell.backend).LIBRARIES:
                for checkpoint in filter(None, (planned.cell.checkpoint, planned.cell.draft)):
                    found[folder_of(self.plan, checkpoint)] = checkpoint
        return found

    def fetched(self, folder: str) -> str:
        """Where the files of a checkpoint are fetched to; two checkpoints cut from one source share a download."""
        checkpoint = self.checkpoints[folder]
        source = [checkpoint.source, checkpoint.sha256, checkpoint.content, checkpoint.architecture]
        return str(FETCHED / digest(source) / "source.json")

    @cached_property
    def fetched_checkpoints(self) -> dict[str, Checkpoint]:
        """By the folder that they are fetched to."""
        return {Path(self.fetched(folder)).parent.name: found for folder, found in self.checkpoints.items()}

    @property
    def max_shard(self) -> str:
        """The flag of `claimbench shard`, where params.yaml sets a size."""
        most = self.plan.params.shard.max_shard_mb
        return f"--max-shard-mb {most}" if most else ""

    @property
    def manifests(self) -> list[str]:
        return [str(CHECKPOINTS / folder / "manifest.json") for folder in self.checkpoints]

    @cached_property
    def cores(self) -> int:
        """All that a timed job may use where it runs."""
        return self.plan.machine["cpu"]["cores"]

    @cached_property
    def gpus(self) -> int:
        """A timed job takes every GPU of its machine: a neighbour on another one would be noise."""
        return len(self.plan.machine["gpus"]) if self.plan.device == "cuda" else 0

    @cached_property
    def side_by_side(self) -> int:
        """How many jobs that need one GPU run at once, each on its own of the same kind; 0: one job at a time."""
        found = self.plan.machine["gpus"] if self.plan.device == "cuda" else []
        alike = sum(gpu == found[0] for gpu in found)
        return alike if self.plan.params.measure.side_by_side and alike > 1 else 0

    def is_beside(self, id: str) -> bool:
        return bool(self.side_by_side) and self.cell(id).cell.devices == 1

    def slots(self, id: str) -> int:
        """Of the one slot for what is timed: none for a block that may run beside others, each on its own GPU."""
        return 0 if self.is_beside(id) else 1

    def gpus_of(self, id: str) -> int:
        return 1 if self.is_beside(id) else self.gpus

    def cores_of(self, id: str) -> int:
        """All, or a share: so no more blocks run beside each other than there are GPUs."""
        return max(1, self.cores // self.side_by_side) if self.is_beside(id) else self.cores

    @cached_property
    def results(self) -> list[str]:
        return [path for planned in self.plan.cells.values() for path in planned.paths()]

    @property
    def decided(self) -> list[str]:
        """The summary of the rounds: a list of one path, or of none where nothing is measured in rounds."""
        return [str(RESULTS / "decided" / f"{self.digest[:12]}.json")] if self.plan.groups else []

    @property
    def in_rounds(self) -> list[str]:
        """What the cells that are measured in rounds load, and the environments that they run in."""
        ids = dict.fromkeys(id for group in self.plan.groups for id in group.everyone)
        needed = [self.needs(id, 0) for id in ids]
        names = ("checkpoint", "draft", "reference_checkpoint", "environment")
        return sorted({each[name] for each in needed for name in names if name in each})

    @property
    def frontiers(self) -> list[str]:
        return [search.path for search in self.plan.frontiers.values()]

    def frontier_inputs(self, frontier: str) -> dict[str, str | list[str]]:
        """The first block of each swept batch, and what its trials load: none where the search is done already."""
        search = self.plan.frontiers[frontier]
        if Path(search.path).exists():
            return {}
        needed = self.needs(search.cells[0], 0)
        wanted: dict[str, str | list[str]] = {"swept": self._swept(frontier)}
        return wanted | {name: needed[name] for name in ("checkpoint", "draft", "environment") if name in needed}

    def _swept(self, frontier: str) -> list[str]:
        return [self.cell(id).paths()[0] for id in self.plan.frontiers[frontier].cells]

    def swept(self, frontier: str) -> str:
        """The first block of each swept batch, quoted for a shell."""
        return " ".join(map(shlex.quote, self._swept(frontier)))

    def frontier_flags(self, frontier: str) -> str:
        """The flags of `claimbench frontier`, quoted for a shell."""
        flags = self._arguments(self.plan.frontiers[frontier].cells[0], 0)
        kept = ("cell", "key", "checkpoint", "draft", "python")
        return " ".join(f"--{name} {shlex.quote(flags[name])}" for name in kept if name in flags)

    @cached_property
    def priority(self) -> dict[tuple[str, int], int]:
        """Snakemake runs what has the highest priority first; everything that is not timed comes before (0)."""
        return {job: -1 - place for place, job in enumerate(order(self.plan))}

    @staticmethod
    def code(*roots: str, libraries: Sequence[str] = ()) -> str:
        """A parameter that changes with the code of a stage: Snakemake does not see edits to imported modules."""
        return stage_hash(*roots, libraries=libraries)

    def cell(self, id: str) -> PlannedCell:
        return self.plan.cells[id]

    def environment(self, id: str) -> str:
        return backends.find(self.cell(id).cell.backend).ENVIRONMENT

    @staticmethod
    def lock(family: str) -> str:
        return str(locks_folder() / f"{family}.lock")

    @property
    def torch_locks(self) -> list[str]:
        """Which build of torch an environment gets is decided where it is built."""
        names = dict.fromkeys(name for several in TORCH_LOCKS.values() for name in several)
        return [str(locks_folder() / name) for name in names]

    @staticmethod
    def build_program(family: str) -> list[str]:
        return [str(path) for path in build_program(family)]

    def inputs(self, id: str, block: int) -> dict[str, str]:
        """The files that a block waits for: none where its result is there.

        Snakemake 9 runs a job when another job makes its input, even an `ancient` one: a checkpoint that a clone lacks,
        or a smaller batch that a study adds, would have good results measured again.
        """
        return {} if Path(self.cell(id).paths()[block]).exists() else self.needs(id, block)

    def needs(self, id: str, block: int) -> dict[str, str]:
        """The files that a block reads; each is addressed by content or by key, so none of them makes it stale."""
        planned = self.cell(id)
        needed = {}
        if backends.find(planned.cell.backend).LIBRARIES:
            needed["checkpoint"] = str(CHECKPOINTS / folder_of(self.plan, planned.cell.checkpoint) / "manifest.json")
        if planned.cell.draft:
            needed["draft"] = str(CHECKPOINTS / folder_of(self.plan, planned.cell.draft) / "manifest.json")
        if block == 0 and planned.cell.checkpoint.tensor_parallel and planned.reference:
            whole = self.cell(planned.reference).cell
            if optimizations.may_differ(planned.cell, whole):
                needed["reference_checkpoint"] = str(
                    CHECKPOINTS / folder_of(self.plan, whole.checkpoint) / "manifest.json"
                )
        if planned.smaller and self.cell(planned.smaller).paths():
            paths = self.cell(planned.smaller).paths()
            needed["smaller"] = paths[min(block, len(paths) - 1)]
        if self.environment(id) != "core":
            needed["environment"] = str(ENVIRONMENTS / self.environment(id) / "stamp.json")
        return needed

    def flags(self, id: str, block: int) -> str:
        """The flags of `claimbench measure`, quoted for a shell."""
        return " ".join(f"--{name} {shlex.quote(value)}" for name, value in self._arguments(id, block).items())

    def _arguments(self, id: str, block: int) -> dict[str, str]:
        planned, needed = self.cell(id), self.needs(id, block)
        flags = {
            "cell": as_argument(canonical_json(planned.cell.model_dump(mode="json"))),
            "key": canonical_json(planned.key.model_dump(mode="json")),
            "block": str(block),
            "plan": self.plan_json,
        }
        for name in ("checkpoint", "draft", "reference_checkpoint"):
            if name in needed:
                flags[name.replace("_", "-")] = str(Path(needed[name]).parent)
        if "smaller" in needed:
            flags["smaller"] = needed["smaller"]
        if planned.reference and planned.reference != id and block == 0:
            reference = self.cell(planned.reference).cell
            flags["reference"] = as_argument(canonical_json(reference.model_dump(mode="json")))
        if self.plan.params.measure.side_by_side:
            flags["side-by-side"] = "yes"
        if self.environment(id) != "core":
            flags["python"] = str(ENVIRONMENTS / self.environment(id) / "bin" / "python")
        return flags
