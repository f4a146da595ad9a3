"""An experiment -> its labelled cells at every combination of swept values, as this machine and these parameters allow.

A cell that this version or these parameters cannot serve is no error: its row says `unavailable` and why. A cell that
makes no sense is one, by file and key.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

from pydantic import Field, StrictInt

from claimbench import backends, optimizations
from claimbench.checkpoints import tp_partition
from claimbench.cost_model import cost
from claimbench.errors import ConfigError, did_you_mean
from claimbench.planning import limits
from claimbench.planning.cell_cost import load_of
from claimbench.planning.optimization_list import optimization_list
from claimbench.planning.paths import ENVIRONMENTS
from claimbench.schema.cell import (
    DTYPE_BYTES,
    Cell,
    Checkpoint,
    Device,
    Dtype,
    OptimizationUse,
    PageCache,
    Protocol,
    Workload,
)
from claimbench.schema.load import InferenceLoad
from claimbench.schema.metrics import METRICS
from claimbench.schema.params import Params
from claimbench.schema.setting import Setting
from claimbench.schema.study import Experiment, Hold, Message, Scalar, Study, StudyCell
from claimbench.schema.validation import validate


class Settings(Hold):
    """A cell's settings, those that a study may leave out filled in."""

    backend: str = "transformers"
    options: dict[str, object] = {}
    optimizations: tuple[str | dict[str, dict[str, object]], ...] = ()
    dtype: Dtype = "float32"
    batch: StrictInt = Field(default=1, ge=1)
    page_cache: PageCache = "as_it_is"


class Resolved(NamedTuple):
    """What became of an expanded cell."""

    cell: Cell | None
    """None where this version or these parameters cannot plan it; then `unavailable` says why."""
    unavailable: str | None = None
    checkpoint: str | None = None
    """The checkpoint that the study asks for, before `swap`."""


@dataclass(frozen=True)
class ExpandedCell:
    """A labelled cell of an experiment at one combination of the swept values."""

    params: Params
    study: Study
    experiment: Experiment
    label: str
    study_cell: StudyCell
    sweep: dict[str, Scalar]
    device: Device
    path: str
    """Where it stands, for messages: `studies/x.yaml: experiments.y.cells.z`."""

    @cached_property
    def settings(self) -> Settings:
        """The nearest values: the sweep's, else the cell's, the experiment's, the study's, the built-in ones."""
        found: dict[str, object] = {}
        for layer in (self.study.defaults, self.experiment.hold, self.study_cell, Hold.model_validate(self.sweep)):
            values = {key: getattr(layer, key) for key in Settings.model_fields}
            found |= {key: value for key, value in values.items() if value is not None}
        return Settings.model_validate(found)

    @property
    def usual_dtype(self) -> Dtype:
        """Of the experiment's cells that ask for no other."""
        return self.experiment.hold.dtype or self.study.defaults.dtype or Settings().dtype

    def resolve(self) -> Resolved:
        """The cell, or why there is none.

        Raises:
            ConfigError: a name is unknown, optimizations clash, or the workload cannot fit the model's context.
        """
        workload, too_large = self._workload()
        asked = self.settings.checkpoint
        if asked is None:
            raise ConfigError(f"{self.path}: no checkpoint: set one here, in `hold`, or in the study's `defaults`")
        checkpoint = checkpoint_of(self.params, asked, self.path)
        backend_name = self._backend()
        if backend_name is None:
            return Resolved(None, f"this version has no backend '{self.settings.backend}' yet")
        backend = backends.find(backend_name)
        uses, missing = optimization_list(
            self.settings.optimizations, self.study, backend.SEAMS, backend_name, self.path
        )
        if missing is None and self.experiment.device not in (None, self.device):
            missing = f"this experiment is about a {self.experiment.device} device"
        draft = self._draft(uses)
        missing = missing or self._cannot_be_had(checkpoint, draft) or self._not_built(backend.ENVIRONMENT)
        if missing or too_large:
            return Resolved(None, missing or too_large)
        asked_options = limits.fewer_devices(self.params, self.settings.options)
        options = validate(backend.Options, asked_options, f"{self.path}.options").model_dump(mode="json")
        presharded = getattr(backend, "presharded", None)
        ranks = presharded(options) if presharded else None
        if ranks is not None:
            why = tp_partition.refusal(cost.architecture_of(checkpoint), ranks)
            if why:
                return Resolved(None, why)
            checkpoint = checkpoint.model_copy(update={"tensor_parallel": ranks})
        self._check_context(checkpoint, workload)
        cell = Cell(
            checkpoint=checkpoint,
            draft=draft,
            backend=backend_name,
            options=options,
            optimizations=uses,
            dtype=self.settings.dtype,
            workload=workload,
            device=self.device,
            protocol=self._protocol(),
        )
        return Resolved(cell, None, asked)

    def _not_built(self, environment: str) -> str | None:
        """Why the cell is left out, where it asks for an environment only if it is there."""
        stamp = ENVIRONMENTS / environment / "stamp.json"
        if not self.study_cell.where_built or environment == "core" or stamp.exists():
            return None
        return f"its environment is not there, and is not built for this row: make {stamp}"

    def asked(self) -> InferenceLoad | None:
        """What the document asks for, uncut and unswapped, where the cost model knows the system."""
        name, checkpoint, prompt = self.settings.backend, self.settings.checkpoint, self.settings.prompt
        if name not in backends.names() or checkpoint not in self.params.checkpoints or prompt is None:
            return None
        backend = backends.find(name)
        uses, missing = optimization_list(self.settings.optimizations, self.study, backend.SEAMS, name, self.path)
        if missing:
            return None
        sizes = {key: getattr(self.settings, key) for key in ("prompt_tokens", "new_tokens", "batch")}
        options = validate(backend.Options, self.settings.options, f"{self.path}.options")
        return load_of(
            Cell(
                checkpoint=self.params.checkpoints[checkpoint].named(checkpoint),
                backend=name,
                options=options.model_dump(mode="json"),
                optimizations=uses,
                dtype=self.settings.dtype,
                workload=Workload.model_validate(said(self.study.prompts[prompt]) | sizes),
                device="cuda",
            )
        )

    def published(self) -> dict[str, float | int | str]:
        """The document's figures at these swept values, by metric."""
        figures: dict[str, float | int | str] = {}
        for metric, figure in self.study_cell.published.items():
            where = f"{self.path}.published"
            if metric not in METRICS:
                raise ConfigError(f"{where}: unknown metric '{metric}'.{did_you_mean(metric, METRICS)}")
            if not isinstance(figure, dict):
                figures[metric] = figure
                continue
            if len(self.sweep) != 1:
                raise ConfigError(f"{where}.{metric}: figures by value need an experiment that sweeps over one key")
            (value,) = self.sweep.values()
            if value in figure:
                figures[metric] = figure[value]
        return figures

    def _workload(self) -> tuple[Workload, str | None]:
        """The workload, cut to this machine, and why its row is to be left out if it is."""
        name, prompts = self.settings.prompt, self.study.prompts
        for key in ("prompt", "new_tokens"):
            if getattr(self.settings, key) is None:
                raise ConfigError(f"{self.path}: no {key}: set one here, in `hold`, or in the study's `defaults`")
        if name not in prompts:
            raise ConfigError(f"{self.path}.prompt: unknown prompt '{name}'.{did_you_mean(str(name), prompts)}")
        asked = {key: getattr(self.settings, key) for key in ("prompt_tokens", "new_tokens", "batch")}
        shortest = self._shortest(asked)
        sizes, too_large = limits.cut_down(self.params, self.experiment, asked)
        if shortest is not None and too_large is None:
            shortest, too_large = limits.cut_shortest(self.params, self.experiment, shortest, sizes)
        settings = {
            **said(prompts[name]),
            "sampling": self.settings.sampling,
            "pads": self.settings.pads,
            **sizes,
        }
        return Workload.model_validate(settings | {"shortest": None if too_large else shortest}), too_large

    def _shortest(self, asked: dict[str, int | None]) -> int | None:
        """Prompt tokens of the shortest row as the study asks for them, which its own sizes must allow."""
        shortest = self.settings.shortest
        batch, prompt_tokens = asked["batch"] or 1, asked["prompt_tokens"]
        if shortest is not None and batch < 2:
            raise ConfigError(f"{self.path}.shortest: rows of several lengths need a batch of at least 2 (got {batch})")
        if shortest is not None and prompt_tokens is not None and shortest > prompt_tokens:
            raise ConfigError(f"{self.path}.shortest: expected at most prompt_tokens ({prompt_tokens}), got {shortest}")
        return shortest

    def _backend(self) -> str | None:
        """The backend's name, or None for one that the study plans for and this version does not have."""
        name = self.settings.backend
        if name in self.study.planned.backends:
            if name in backends.names():
                raise ConfigError(f"{self.path}: the backend '{name}' is there now: take it out of `planned`")
            return None
        if name not in backends.names():
            hint = did_you_mean(name, backends.names())
            raise ConfigError(f"{self.path}.backend: unknown backend '{name}'.{hint}")
        return name

    def _draft(self, uses: tuple[OptimizationUse, ...]) -> Checkpoint | None:
        for use in uses:
            key = getattr(optimizations.find(use.name), "CHECKPOINT_SETTING", None)
            if key:
                where = f"{self.path}.optimizations.{use.name}.{key}"
                return checkpoint_of(self.params, str(use.settings[key]), where)
        return None

    @property
    def asked_draft(self) -> str | None:
        """The draft that the study asks for, before `swap`."""
        for entry in self.settings.optimizations:
            (name, settings), *_ = entry.items() if isinstance(entry, dict) else [(entry, dict[str, object]())]
            key = (
                getattr(optimizations.find(name), "CHECKPOINT_SETTING", None) if name in optimizations.names() else None
            )
            if key:
                return str(settings[key])
        return None

    @cached_property
    def setting(self) -> Setting:
        """What the document declares for this cell: its own, else its experiment's, else the document's."""
        return self.study.document.setting.with_nearer(self.experiment.setting, self.study_cell.setting)

    def _cannot_be_had(self, *checkpoints: Checkpoint | None) -> str | None:
        for name in (one.name for one in checkpoints if one):
            why = self.params.checkpoints[name].unavailable
            if why:
                return f"{name}: {why}"
        return None

    def _check_context(self, checkpoint: Checkpoint, workload: Workload) -> None:
        model = cost.decoder_of(checkpoint)
        context = model.context if model else None
        length = _least_tokens(checkpoint, workload) + workload.new_tokens
        if context is not None and length > context:
            raise ConfigError(
                f"{self.path}: prompt and new tokens make {length}, but "
                f"{_named(repr(checkpoint.name), checkpoint.architecture)} has a context of {context}: ask for fewer"
            )

    def _protocol(self) -> Protocol:
        ours, its, own = self.params.measure, self.study.measure, self.study_cell.protocol
        samples = own.samples if own else its.samples or ours.samples
        return Protocol(
            samples=min(samples, self.params.limits.samples or sys.maxsize),
            warmup_min=own.warmups if own else its.warmup_min or ours.warmup_min,
            warmup_max=own.warmups if own else its.warmup_max or ours.warmup_max,
            warmup_tokens=own.warmup_tokens if own else None,
            timeout_s=its.timeout_s or ours.timeout_s,
            threads=ours.threads,
            memory_limit=int(ours.memory_limit_gb * 1e9) if ours.memory_limit_gb else None,
            page_cache=self.settings.page_cache,
        )


def expand(params: Params, study: Study, experiment: Experiment, device: Device, path: str) -> Iterator[ExpandedCell]:
    """Every labelled cell at every combination of the swept values; `path` names the experiment in messages."""
    for label, study_cell in experiment.cells.items():
        for values in product(*experiment.sweep.values()):
            sweep = dict(zip(experiment.sweep, values, strict=True))
            yield ExpandedCell(params, study, experiment, label, study_cell, sweep, device, f"{path}.cells.{label}")


def checkpoint_of(params: Params, name: str, path: str) -> Checkpoint:
    """The checkpoint that stands for `name` after `swap`."""
    if name not in params.checkpoints:
        raise ConfigError(f"{path}: unknown checkpoint '{name}'.{did_you_mean(name, params.checkpoints)}")
    used = params.swap.get(name, name)
    asked = params.checkpoints[used].architecture
    if asked is not None and asked not in cost.shape_names():
        hint = did_you_mean(asked, cost.shape_names())
        raise ConfigError(f"params.yaml: checkpoints.{used}.architecture: unknown architecture '{asked}'.{hint}")
    return params.checkpoints[used].named(used)


def _least_tokens(checkpoint: Checkpoint, workload: Workload) -> int:
    """Of a prompt whose tokens are not counted yet: a token is a part of a word, and of random weights a byte."""
    if checkpoint.source.startswith("random://"):
        return workload.prompt_tokens or len(workload.prompt.encode())
    return workload.prompt_tokens or max(1, len(workload.prompt.split()))


def said(prompt: str | Message | tuple[str, ...]) -> dict[str, object]:
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, tuple):
        return {"prompt": prompt[0], "others": prompt[1:]}
    return {"prompt": prompt.user, "chat": True, "system": prompt.system, "base": prompt.base}


def _named(checkpoint: str, architecture: str | None) -> str:
    return f"{checkpoint} ({architecture})" if architecture else checkpoint


def reference_of(cell: Cell, usual: Dtype) -> Cell:
    """The plain cell whose tokens `cell` is compared with: in the `usual` type where its own is a narrower one."""
    backend_name = backends.find(cell.backend).REFERENCE
    options = backends.find(backend_name).Options().model_dump(mode="json")
    whole = cell.checkpoint.model_copy(update={"tensor_parallel": None})
    protocol = cell.protocol.model_copy(update={"page_cache": "as_it_is", "warmup_tokens": None})
    dtype = max(cell.dtype, usual, key=lambda one: DTYPE_BYTES[one])  # of two as wide the first, its own
    plain = {"backend": backend_name, "options": options, "optimizations": (), "draft": None, "dtype": dtype}
    return cell.model_copy(update={**plain, "checkpoint": whole, "protocol": protocol})
