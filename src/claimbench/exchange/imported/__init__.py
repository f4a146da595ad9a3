"""Files of other tools; a file here per tool, whose docstring says where each field is documented.

What a module holds:

    TOOL: str                             its name, as people know it
    is_one(content) -> bool               whether a parsed JSON value is a file of this tool
    records(content) -> list[Workload]    what it says, a record for each workload

Nothing is converted but bytes of megabytes and seconds of milliseconds, nothing is averaged, and what a file does not
say is absent.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from claimbench.errors import ResultError
from claimbench.schema import plain_file
from claimbench.schema.measured_elsewhere import Figure, MeasuredElsewhere
from claimbench.system.redaction import redact

MOST_BYTES = 200_000_000


class Workload(NamedTuple):
    """What a file says of one workload."""

    figures: tuple[Figure, ...]
    settings: dict[str, str]
    model: str | None = None
    hardware: str | None = None
    when: str | None = None
    tool_version: str | None = None


class Tool(Protocol):
    TOOL: str

    def is_one(self, content: Any) -> bool: ...

    def records(self, content: Any) -> list[Workload]: ...


@cache
def tools() -> tuple[Tool, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}") for name in names)


def read(path: Path) -> list[MeasuredElsewhere]:
    """The workloads in a file of one of the known tools.

    Raises:
        ResultError: it cannot be read, is no JSON, is of no known tool, or says something that cannot be.
    """
    try:
        raw = plain_file.read_bytes(path, MOST_BYTES)
        content = parsed(raw.decode("utf-8"))
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path}: neither JSON nor JSON lines ({str(error).splitlines()[0]})") from error
    known = [tool for tool in tools() if tool.is_one(content)]
    if len(known) != 1:
        names = ", ".join(tool.TOOL for tool in tools())
        raise ResultError(f"{path}: JSON of no known tool: expected a result file of {names}")
    tool = known[0]
    try:
        found = tool.records(content)
        return [_record(tool.TOOL, path, raw, place, workload) for place, workload in enumerate(found)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ResultError(f"{path}: looks like a file of {tool.TOOL}, and is not whole: {first}") from error


def parsed(text: str) -> Any:
    """A JSON value, or the list of those that stand in a line each."""
    try:
        return json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        return [json.loads(line) for line in lines]


def _record(tool: str, path: Path, raw: bytes, place: int, found: Workload) -> MeasuredElsewhere:
    if not found.figures:
        raise ValueError("it has no figure")
    return MeasuredElsewhere(
        tool=tool,
        tool_version=found.tool_version,
        source=path.name,
        source_sha256=hashlib.sha256(raw).hexdigest(),
        place=place,
        model=found.model,
        hardware=found.hardware,
        when=found.when,
        settings={name: redact(value) for name, value in found.settings.items()},
        figures=found.figures,
    )


def settings(content: Any, names: tuple[str, ...]) -> dict[str, str]:
    """Those of `names` that `content` says, as text."""
    return {name: str(content[name]) for name in names if content.get(name) is not None}


def figure(
    name: str, statistic: str, value: object, unit: str, near: str | None = None, samples: Any = ()
) -> Iterator[Figure]:
    """The figure, or none where the file has no finite number for it."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        kept = tuple(float(one) for one in samples or ())
        yield Figure(name=name, statistic=statistic, value=float(value), unit=unit, near=near, samples=kept)
