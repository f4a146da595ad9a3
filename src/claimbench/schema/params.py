"""params.yaml and the studies that it names -> frozen, validated values, or an error that names file and key."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, model_validator

from claimbench.errors import ConfigError, did_you_mean
from claimbench.schema.card import Card
from claimbench.schema.cell import Checkpoint
from claimbench.schema.frozen import Frozen
from claimbench.schema.study import Study
from claimbench.schema.validation import read_yaml, validate

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
SOURCE_KINDS = ("hf://", "pypi://", "random://", "file://")
PAGE = r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/"
HUB_NAME = r"[\w-][\w.-]*/[\w.-]+"

OTHER_DEVICES = ("mps", "metal", "rocm", "hip", "amd", "xpu", "sycl", "npu", "tpu", "xla", "hpu", "vulkan", "opencl")


def source_meant(written: str) -> str:
    """A hint such as ` Did you mean 'hf://org/name'?` where an address is written as it is elsewhere, else empty."""
    page = re.match(f"{PAGE}({HUB_NAME})(?:/tree/([^/?#]+))?", written)
    if page:
        meant = f"hf://{page[1]}" + (f"@{page[2]}" if page[2] else "")
    elif written.startswith(("/", "./", "../", "~")) or ("/" in written and _is_there(written)):
        meant = f"file://{written}"
    elif re.fullmatch(f"{HUB_NAME}(@[^@]+)?", written):
        meant = f"hf://{written}"
    else:
        return ""
    return f" Did you mean '{meant}'?"


def _is_there(path: str) -> bool:
    with suppress(OSError):  # too long for a name of a file, say
        return Path(path).exists()
    return False


class CheckpointParams(Frozen):
    """Where a checkpoint comes from and what it is."""

    source: str = Field(description=f"one of {', '.join(SOURCE_KINDS)}")
    architecture: str | None = Field(
        default=None, description="what it is expected to be, a file of cost_model/architectures; absent: found out"
    )
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="of the fetched file, or of a file in parts as a whole"
    )
    keep_layers: StrictInt | None = Field(default=None, ge=1, description="the first so many layers alone")
    unavailable: str | None = Field(default=None, min_length=1, description="why it cannot be had: its rows say so")
    content: str | None = Field(default=None, description="what the source does not pin; found when planning")
    card: Card | None = Field(default=None, description="the model's numbers; found when planning")

    def named(self, name: str) -> Checkpoint:
        return Checkpoint(name=name, **self.model_dump(exclude={"unavailable"}))

    @model_validator(mode="before")
    @classmethod
    def _source_alone(cls, value: object) -> object:
        """`name: hf://org/name` is enough. Random weights are of the architecture that they are drawn for."""
        if isinstance(value, str):
            value = {"source": value}
        source = value.get("source") if isinstance(value, dict) else None
        match = re.fullmatch(r"random://([^:?]+)(\?.*)?", source) if isinstance(source, str) else None
        return {"architecture": match[1]} | value if match and isinstance(value, dict) else value


class Measure(Frozen):
    budget_minutes: StrictFloat | None = Field(
        default=None, gt=0, description="for rounds in turn; absent: the studies' own, and without any, blocks"
    )
    blocks: StrictInt = Field(default=3, ge=1, description="fresh processes per cell that cannot take turns")
    samples: StrictInt = Field(default=3, ge=1, description="timed generations per block")
    warmup_min: StrictInt = Field(default=1, ge=1, description="the first call is always one")
    warmup_max: StrictInt = Field(default=3, ge=1, description="and at most: fewer where the time is steady before")
    timeout_s: StrictFloat = Field(default=900.0, gt=0, description="seconds for a whole block, loading included")
    memory_limit_gb: StrictFloat | None = Field(default=None, gt=0, description="address space of a worker, 1e9 bytes")
    threads: StrictInt | None = Field(default=None, ge=1, description="absent: the cores that this process may use")
    seed: StrictInt = Field(default=0, ge=0, description="of the order of cells inside a round")
    series: StrictInt = Field(default=0, ge=0, description="raise it to measure everything anew")
    side_by_side: StrictBool = Field(
        default=False, description="jobs that need one GPU each use all GPUs of one kind at once, with noisy neighbours"
    )
    tolerance: StrictFloat = Field(
        default=0.02, ge=0, lt=1, description="ratios closer to 1 than this count as no difference"
    )


class Shard(Frozen):
    max_shard_mb: StrictFloat | None = Field(
        default=None, gt=0, description="1e6 bytes per safetensors file, at most; absent: files stay as they arrived"
    )


class Dvc(Frozen):
    """What DVC keeps beside results; nothing that is measured depends on it."""

    weights: tuple[str, ...] = Field(default=(), description="folders of checkpoints: resources/checkpoints is all")


class Limits(Frozen):
    """What this machine can bear: a study's larger workloads are cut down to it, and the report says so."""

    new_tokens: StrictInt | None = Field(default=None, ge=1, description="generated tokens per row")
    prompt_tokens: StrictInt | None = Field(default=None, ge=1, description="length of a prompt that a study sets")
    batch: StrictInt | None = Field(default=None, ge=1, description="rows")
    batch_tokens: StrictInt | None = Field(default=None, ge=1, description="batch x prompt_tokens; above it, left out")
    samples: StrictInt | None = Field(default=None, ge=1, description="timed generations per block")
    devices: StrictInt | None = Field(default=None, ge=1, description="GPUs, or processes on a CPU, of one cell")


def _supported(device: object) -> object:
    """Devices of other makers are no misspelling, so what there is instead is said."""
    if isinstance(device, str) and device.partition(":")[0].lower() in OTHER_DEVICES:
        raise ValueError("expected auto, cpu or cuda: NVIDIA GPUs (cuda) and CPUs are supported, and no others yet")
    return device


class Params(Frozen):
    device: Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(_supported)] = Field(
        default="auto", description="auto: a CUDA device where torch sees one, else the CPU"
    )
    studies: tuple[str, ...] = Field(min_length=1, description="of studies/: names of files, or of folders of them")
    swap: dict[str, str] = Field(default={}, description="a study's checkpoint -> the one to use in its place")
    checkpoints: dict[str, CheckpointParams] = Field(min_length=1, description="by name: a source alone, or a mapping")
    limits: Limits = Field(default=Limits(), description="larger workloads are cut down to these")
    measure: Measure = Field(default=Measure(), description="how long and how often")
    shard: Shard = Field(default=Shard(), description="how checkpoints are written")
    dvc: Dvc = Field(default=Dvc(), exclude=True, description="what DVC keeps besides results")


def load_params(value: object, where: str = "params.yaml") -> Params:
    params = validate(Params, value, where)
    for name, checkpoint in params.checkpoints.items():
        if not re.fullmatch(NAME, name):
            proper = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "mine"
            raise ConfigError(
                f"{where}: checkpoints.{name}: a name has letters, digits, dots, dashes and underscores: "
                f"write '{proper}'"
            )
        if not checkpoint.source.startswith(SOURCE_KINDS):
            hint = source_meant(checkpoint.source)
            raise ConfigError(
                f"{where}: checkpoints.{name}.source: expected one of {', '.join(SOURCE_KINDS)} "
                f"(got {checkpoint.source!r}){'.' if hint else ''}{hint}"
            )
    if len(set(params.studies)) != len(params.studies):
        raise ConfigError(f"{where}: studies: a study is named twice (got {list(params.studies)})")
    for name, other in params.swap.items():
        for key in (name, other):
            if key not in params.checkpoints:
                hint = did_you_mean(key, params.checkpoints)
                raise ConfigError(f"{where}: swap.{name}: unknown checkpoint '{key}'.{hint}")
    if params.measure.warmup_max < params.measure.warmup_min:
        raise ConfigError(f"{where}: measure.warmup_max: expected at least warmup_min ({params.measure.warmup_min})")
    return params


def load_studies(names: tuple[str, ...], *folders: Path) -> dict[str, Study]:
    """What `names` ask for, by the names of the studies' files; the first of `folders` that has a name counts."""
    known = {name: paths for folder in reversed(folders) for name, paths in _asked_for_by(folder).items()}
    studies: dict[str, Study] = {}
    files: dict[str, Path] = {}
    for name in names:
        if name not in known:
            raise ConfigError(f"studies: there is no {folders[0] / name}.yaml.{did_you_mean(name, sorted(known))}")
        for path in known[name]:
            if files.setdefault(path.stem, path) != path:
                raise ConfigError(f"studies: {files[path.stem]} and {path} have one name: rename one of them")
            studies[path.stem] = validate(Study, read_yaml(path), str(path))
    return studies


def _asked_for_by(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The studies of each name: one alone is `kv_cache` or `public/kv_cache`, `public` is all that lie in it."""
    found: dict[str, tuple[Path, ...]] = {}
    for path in _all_studies(folder):
        inside = path.parent.relative_to(folder).as_posix()
        if inside != ".":
            found |= {inside: (*found.get(inside, ()), path), f"{inside}/{path.stem}": (path,)}
    return found | {name: (path,) for name, path in study_files(folder).items()}


def study_files(folder: Path) -> dict[str, Path]:
    """Every study in `folder` and in the folders inside it, by its name; those that lie nearer count."""
    nearest_last = sorted(_all_studies(folder), key=lambda path: -len(path.parts))
    return {path.stem: path for path in nearest_last}


def _all_studies(folder: Path) -> list[Path]:
    """Hidden folders, in which editors keep copies, are left out."""
    found = sorted(folder.rglob("*.yaml"))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def json_schemas() -> dict[str, dict[str, Any]]:
    """Schemas for editors, by file name."""
    return {
        "params.schema.json": Params.model_json_schema(),
        "study.schema.json": Study.model_json_schema(),
    }
