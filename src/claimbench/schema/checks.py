"""The kinds of checks that a claim is made of. How each is judged is in `judging/checks/<kind>.py`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictFloat, StrictInt, model_validator

from claimbench.schema.frozen import Frozen


class Region(Frozen):
    """Where a number must lie for its sentence to be true. `about` with `within` 0.1 means 10 % either way."""

    at_least: StrictFloat | None = None
    at_most: StrictFloat | None = None
    about: StrictFloat | None = None
    within: StrictFloat | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _says_one_thing(self) -> Region:
        bounds = self.at_least is not None or self.at_most is not None
        if bounds == (self.about is not None) or (self.about is None) != (self.within is None):
            raise ValueError("expected at_least and/or at_most, or about together with within")
        return self


Expectation = Literal["above", "below", "same"] | Region
"""For ratios: `above` 1, `below` 1 or the `same`, each by the tolerance; or a region in plain numbers."""


class There(Frozen):
    """A size that belongs to the document's own hardware: judged on it alone, in place of the direction."""

    hardware: str = Field(description="regular expression that the device's name must match")
    expect: Region


class RatioCheck(Frozen):
    """metric(of) / metric(to), with an interval over interleaved blocks."""

    kind: Literal["ratio"]
    metric: str
    of: str
    to: str
    expect: Expectation
    there: There | None = None
    published: StrictFloat | None = None


class GainCheck(Frozen):
    """Whether one technique gains more here than there: metric(of)/metric(to) over metric(than_of)/metric(than_to)."""

    kind: Literal["gain"]
    metric: str
    of: str
    to: str
    than_of: str
    than_to: str
    expect: Expectation
    published: StrictFloat | None = None


class IdentityCheck(Frozen):
    """The same tokens, row by row."""

    kind: Literal["identity"]
    of: str
    to: str


class ShapeCheck(Frozen):
    """The exponent of metric ~ over^exponent: 0 is flat, 1 linear, 2 quadratic, -1 as 1/x.

    With `to`, the curve is the ratio metric(of) / metric(to).
    """

    kind: Literal["shape"]
    metric: str
    of: str = Field(description="experiment/label, without the swept value")
    to: str | None = None
    over: str
    expect: Region


class ValueCheck(Frozen):
    """A metric of one cell in its own unit: a count, or bytes."""

    kind: Literal["value"]
    metric: str
    of: str
    expect: Region
    published: StrictFloat | None = None


class OutcomeCheck(Frozen):
    """How a cell ends, for claims about what is not supported or does not fit."""

    kind: Literal["outcome"]
    of: str
    expect: Literal["ok", "oom", "unavailable", "wrong", "error"]
    reason_contains: str | None = None


class ComputedCheck(Frozen):
    """Bytes or seconds that follow from an architecture alone, from the cost model."""

    kind: Literal["computed"]
    quantity: Literal["weight_bytes", "kv_bytes", "weight_read_ms"]
    architecture: str
    bytes_per_weight: StrictFloat = 2
    batch: StrictInt = 1
    length: StrictInt = 0
    bandwidth: StrictFloat | None = Field(default=None, description="bytes per second, for weight_read_ms")
    expect: Region
    published: StrictFloat | None = None


class AbsoluteCheck(Frozen):
    """A figure that belongs to the document's own hardware; judged only there."""

    kind: Literal["absolute"]
    metric: str
    of: str
    hardware: str = Field(description="regular expression that the device's name must match")
    devices: StrictInt = Field(default=1, ge=1)
    published: StrictFloat
    within: StrictFloat = Field(default=0.1, gt=0)
    expect: Region | None = Field(default=None, description="where the document says it lies; absent: `within` of it")


class FrontierCheck(Frozen):
    """The largest batch of a sweep that fits in memory; judged only on the document's hardware."""

    kind: Literal["frontier"]
    of: str
    over: str = "batch"
    hardware: str
    devices: StrictInt = Field(default=1, ge=1)
    published: StrictInt


SIDES = ("of", "to", "than_of", "than_to")
"""Fields of a check that hold the address of a cell, or of a curve."""

Check = Annotated[
    RatioCheck
    | GainCheck
    | IdentityCheck
    | ShapeCheck
    | ValueCheck
    | OutcomeCheck
    | ComputedCheck
    | AbsoluteCheck
    | FrontierCheck,
    Field(discriminator="kind"),
]
