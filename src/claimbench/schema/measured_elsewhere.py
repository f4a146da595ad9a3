"""Figures that others measured with other tools, `results/measured_elsewhere/<digest>.json`.

They are sealed like a result, so that nobody edits them unseen, but they are no result: no proof of what ran, no
tokens, no turns with what they would be compared with. No table, no verdict and no recommendation reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from claimbench.schema import sealed
from claimbench.schema.frozen import Frozen

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Figure(Frozen):
    name: str = Field(description="as the tool calls it, a path into its file")
    statistic: str = Field(description="mean, median, p99, ..., or `total` where it is one figure")
    value: Finite
    unit: str
    samples: tuple[Finite, ...] = Field(default=(), description="that it was made of, in the same unit, if there")
    near: str | None = Field(default=None, description="the metric here that asks nearly the same; never the same")


class MeasuredElsewhere(Frozen):
    """One workload of one file of another tool."""

    schema_version: Literal[1] = 1
    measured_by: Literal["others"] = "others"
    tool: str
    tool_version: str | None
    source: str = Field(description="name of the file")
    source_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    place: int = Field(default=0, ge=0, description="which of the file's workloads it is")
    model: str | None
    hardware: str | None
    when: str | None = Field(description="as the file says it")
    settings: dict[str, str] = Field(description="what was asked for, as the file says it")
    figures: tuple[Figure, ...]


def write(path: Path, record: MeasuredElsewhere) -> None:
    sealed.write(path, "measured_elsewhere", record)


def read(path: Path) -> MeasuredElsewhere:
    """
    Raises:
        ResultError: the file is missing, cut short, edited by hand, or of another schema.
    """
    return sealed.read(path, "measured_elsewhere", MeasuredElsewhere, "Import the tool's own file again")
