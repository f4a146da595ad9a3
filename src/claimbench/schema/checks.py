"""The kinds of checks that a claim is made of. How each is judged is in `judging/checks/<kind>.py`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictFloat, StrictInt, model_validator

from claimbench.schema.frozen import Frozen


class Region(Frozen):
    """Where a number must lie for its sentence to be true. `about` with `within` 0.1 means 10 % either way."""

    at_least: StrictFloat | None = Field(default=None, description="lower end")
    at_most: StrictFloat | None = Field(default=None, description="upper end")
    about: StrictFloat | None = Field(default=None, description="middle")
    within: StrictFloat | None = Field(default=None, gt=0, description="share of `about` either way")

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
    expect: Region = Field(description="where the number must lie there")


class RatioCheck(Frozen):
    """metric(of) / metric(to), with an interval over interleaved blocks."""

    kind: Literal["ratio"] = Field(description="metric(of) / metric(to)")
    metric: str = Field(description="a metric: `claimbench list metrics`")
    of: str = Field(description="experiment/label of a cell, with @setting=value where it is swept")
    to: str = Field(description="what it is divided by")
    expect: Expectation = Field(description="above, below or same (as 1, by the tolerance), or a region")
    there: There | None = Field(default=None, description="a size that holds on the document's hardware")
    published: StrictFloat | None = Field(default=None, description="the document's figure")


class GainCheck(Frozen):
    """Whether one technique gains more here than there: metric(of)/metric(to) over metric(than_of)/metric(than_to)."""

    kind: Literal["gain"] = Field(description="a ratio of two ratios")
    metric: str = Field(description="a metric: `claimbench list metrics`")
    of: str = Field(description="experiment/label of a cell, with @setting=value where it is swept")
    to: str = Field(description="what it is divided by")
    than_of: str = Field(description="the other ratio's numerator")
    than_to: str = Field(description="and denominator")
    expect: Expectation = Field(description="above, below or same (as 1, by the tolerance), or a region")
    published: StrictFloat | None = Field(default=None, description="the document's figure")


class IdentityCheck(Frozen):
    """The same tokens, row by row."""

    kind: Literal["identity"] = Field(description="the same tokens")
    of: str = Field(description="experiment/label of a cell, with @setting=value where it is swept")
    to: str = Field(description="whose tokens they must be")


class ShapeCheck(Frozen):
    """The exponent of metric ~ over^exponent: 0 is flat, 1 linear, 2 quadratic, -1 as 1/x.

    With `to`, the curve is the ratio metric(of) / metric(to).
    """

    kind: Literal["shape"] = Field(description="the exponent of a curve")
    metric: str = Field(description="a metric: `claimbench list metrics`")
    of: str = Field(description="experiment/label, without the swept value")
    to: str | None = Field(default=None, description="a curve to divide by, point by point")
    over: str = Field(description="the swept setting")
    expect: Region = Field(description="of the exponent")


class ValueCheck(Frozen):
    """A metric of one cell in its own unit: a count, or bytes."""

    kind: Literal["value"] = Field(description="a number of one cell")
    metric: str = Field(description="a metric: `claimbench list metrics`")
    of: str = Field(description="experiment/label of a cell, with @setting=value where it is swept")
    expect: Region = Field(description="in the metric's unit")
    published: StrictFloat | None = Field(default=None, description="the document's figure")


class OutcomeCheck(Frozen):
    """How a cell ends, for claims about what is not supported or does not fit."""

    kind: Literal["outcome"] = Field(description="how a cell ends")
    of: str = Field(description="experiment/label of a cell, with @setting=value where it is swept")
    expect: Literal["ok", "oom", "unavailable", "wrong", "error"] = Field(description="the outcome")
    reason_contains: str | None = Field(default=None, description="words of its reason")


class ComputedCheck(Frozen):
    """Bytes or seconds that follow from an architecture alone, from the cost model."""

    kind: Literal["computed"] = Field(description="from the document's figures alone")
    quantity: Literal["weight_bytes", "kv_bytes", "weight_read_ms"] = Field(description="what is computed")
    architecture: str = Field(description="a file of cost_model/architectures")
    bytes_per_weight: StrictFloat = Field(default=2, description="2 for 16 bits")
    batch: StrictInt = Field(default=1, description="rows")
    length: StrictInt = Field(default=0, description="tokens in the cache")
    bandwidth: StrictFloat | None = Field(default=None, description="bytes per second, for weight_read_ms")
    expect: Region = Field(description="in bytes or milliseconds")
    published: StrictFloat | None = Field(default=None, description="the document's figure")


class AbsoluteCheck(Frozen):
    """A figure that belongs to the document's own hardware; judged only there."""

    kind: Literal["absolute"] = Field(description="a figure of the document's hardware")
    metric: str = Field(description="a metric: `claimbench list metrics`")
    of: str = Field(description="experiment/label of a cell, with @setting=value where it is swept")
    hardware: str = Field(description="regular expression that the device's name must match")
    devices: StrictInt = Field(default=1, ge=1, description="of them, at least")
    published: StrictFloat = Field(description="the document's figure")
    within: StrictFloat = Field(default=0.1, gt=0, description="share of the figure either way")
    expect: Region | None = Field(default=None, description="where the document says it lies; absent: `within` of it")


class FrontierCheck(Frozen):
    """The largest batch of a sweep that fits in memory; judged only on the document's hardware."""

    kind: Literal["frontier"] = Field(description="the largest batch that fits, on the document's hardware")
    of: str = Field(description="experiment/label, without the swept value")
    over: str = Field(default="batch", description="the swept setting")
    hardware: str = Field(description="regular expression that the device's name must match")
    devices: StrictInt = Field(default=1, ge=1, description="of them, at least")
    published: StrictInt = Field(description="the document's figure")


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
