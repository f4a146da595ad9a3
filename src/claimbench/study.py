"""What a study file says: experiments, and claims about them. One file per document, `studies/<name>.yaml`.

An experiment's cells are addressed as `experiment/label`, or `experiment/label@batch=8` where the experiment sweeps.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from claimbench.cell import Device, Dtype, Frozen, PageCache, Real, Sampling, Whole

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Scalar = float | int | str
Published = dict[str, Scalar | dict[Scalar, Scalar]]

SWEEPABLE = ("checkpoint", "dtype", "prompt", "prompt_tokens", "shortest", "new_tokens", "batch")


class Hold(Frozen):
    """Settings of cells, each optional: a cell's own, else its experiment's, else the study's defaults."""

    checkpoint: str | None = None
    backend: str | None = None
    options: dict[str, Any] | None = None
    optimizations: tuple[str | dict[str, dict[str, Any]], ...] | None = Field(
        default=None, description="names, or {name: {setting: value}}; replaces what is held, does not add to it"
    )
    dtype: Dtype | None = None
    prompt: str | None = Field(default=None, description="a name in `prompts`")
    prompt_tokens: Whole | None = Field(default=None, ge=1)
    shortest: Whole | None = Field(
        default=None, ge=1, description="prompt tokens of the shortest row of a batch; absent: all rows are equal"
    )
    new_tokens: Whole | None = Field(default=None, ge=1)
    batch: Whole | None = Field(default=None, ge=1)
    sampling: Sampling | None = None
    page_cache: PageCache | None = Field(
        default=None, description="of the checkpoint's files when a block loads them; absent: as it is"
    )


class StudyCell(Hold):
    title: str | None = Field(default=None, description="the row's name in the report; the label otherwise")
    blocks: Whole | None = Field(
        default=None, ge=1, description="fresh processes of this cell; absent: the experiment's. One: no interval"
    )
    published: Published = Field(
        default={}, description="the document's own figures by metric; by swept value where the experiment sweeps"
    )


Shape = Literal["rates", "grid", "curves", "bars"]


class Experiment(Frozen):
    """One question: what is held, what varies.

    `show` is the shape of its table: `rates` (tokens per second, one row a cell), `grid` (milliseconds per token, one
    column a batch size), `curves` (latency against the swept length), `bars` (ratio to the first cell).
    """

    question: str
    show: Shape = "bars"
    device: Device | None = Field(default=None, description="the kind of device that it is about; absent: any")
    blocks: Whole | None = Field(
        default=None, ge=1, description="fresh processes per cell; absent: the study's. One gives a curve, no interval"
    )
    hold: Hold = Hold()
    cells: dict[Name, StudyCell] = Field(min_length=1)
    sweep: dict[str, tuple[Scalar, ...]] = {}
    frontier: Literal["bisect"] | None = Field(
        default=None, description="search between the swept batches for the largest that fits; absent: the sweep's own"
    )

    @model_validator(mode="after")
    def _sweep_is_over_settings(self) -> Experiment:
        for key, values in self.sweep.items():
            if key not in SWEEPABLE:
                raise ValueError(f"cannot sweep over '{key}': expected one of {', '.join(SWEEPABLE)}")
            if not values or len(set(values)) != len(values):
                raise ValueError(f"sweep over '{key}' needs at least one value, none of them twice")
            for value in values:
                try:
                    Hold.model_validate({key: value})
                except ValidationError as error:
                    raise ValueError(f"sweep over '{key}': {error.errors()[0]['msg']} (got {value!r})") from None
        if self.frontier and "batch" not in self.sweep:
            raise ValueError("frontier: expected a sweep over 'batch' to search in")
        return self


class Region(Frozen):
    """Where a number must lie for its sentence to be true. `about` with `within` 0.1 means 10 % either way."""

    at_least: Real | None = None
    at_most: Real | None = None
    about: Real | None = None
    within: Real | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _says_one_thing(self) -> Region:
        bounds = self.at_least is not None or self.at_most is not None
        if bounds == (self.about is not None) or (self.about is None) != (self.within is None):
            raise ValueError("expected at_least and/or at_most, or about together with within")
        return self


Expectation = Literal["above", "below", "same"] | Region
"""For ratios: `above` 1, `below` 1 or the `same`, each by the tolerance; or a region in plain numbers."""


class RatioCheck(Frozen):
    """metric(of) / metric(to), with an interval over interleaved blocks."""

    kind: Literal["ratio"]
    metric: str
    of: str
    to: str
    expect: Expectation
    published: Real | None = None


class GainCheck(Frozen):
    """Whether one technique gains more here than there: metric(of)/metric(to) over metric(than_of)/metric(than_to)."""

    kind: Literal["gain"]
    metric: str
    of: str
    to: str
    than_of: str
    than_to: str
    expect: Expectation
    published: Real | None = None


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
    published: Real | None = None


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
    bytes_per_weight: Real = 2
    batch: Whole = 1
    length: Whole = 0
    bandwidth: Real | None = Field(default=None, description="bytes per second, for weight_read_ms")
    expect: Region
    published: Real | None = None


class AbsoluteCheck(Frozen):
    """A figure that belongs to the document's own hardware; judged only there."""

    kind: Literal["absolute"]
    metric: str
    of: str
    hardware: str = Field(description="regular expression that the device's name must match")
    devices: Whole = Field(default=1, ge=1)
    published: Real
    within: Real = Field(default=0.1, gt=0)


class FrontierCheck(Frozen):
    """The largest batch of a sweep that fits in memory; judged only on the document's hardware."""

    kind: Literal["frontier"]
    of: str
    over: str = "batch"
    hardware: str
    devices: Whole = Field(default=1, ge=1)
    published: Whole


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


class Claim(Frozen):
    """A testable sentence. It is supported when every one of its checks is."""

    id: Name
    kind: str = Field(description="ratio, shape, identity, size or absolute; joined with + where it is several")
    statement: str
    published: str | None = Field(default=None, description="the document's figure, as a person would say it")
    note: str | None = Field(default=None, description="what a reader must know to understand the verdict")
    checks: tuple[Check, ...] = Field(min_length=1)


class Document(Frozen):
    title: str
    url: str | None = None
    setting: str | None = Field(default=None, description="the hardware, model and lengths that it measured")
    hardware: str | None = Field(
        default=None, description="its accelerator, by a name of model/hardware.py: limits on paper stand in the report"
    )


class Planned(Frozen):
    """Names that this study uses and this version does not have yet; their cells are `unavailable`."""

    backends: tuple[str, ...] = ()
    optimizations: tuple[str, ...] | dict[str, str] = Field(
        default=(), description="names, or {name: why it is not there}, as a reader of its row should know it"
    )

    def reason(self, optimization: str) -> str:
        reasons = self.optimizations if isinstance(self.optimizations, dict) else {}
        return reasons.get(optimization, f"this version has no optimization '{optimization}' yet")


class MeasureOverrides(Frozen):
    blocks: Whole | None = Field(default=None, ge=1)
    samples: Whole | None = Field(default=None, ge=1)
    warmup_min: Whole | None = Field(default=None, ge=1)
    warmup_max: Whole | None = Field(default=None, ge=1)
    timeout_s: Real | None = Field(default=None, gt=0)


class Study(Frozen):
    title: str
    document: Document
    prompts: dict[Name, str] = Field(min_length=1)
    defaults: Hold
    measure: MeasureOverrides = MeasureOverrides()
    presets: dict[Name, tuple[str | dict[str, dict[str, Any]], ...]] = Field(
        default={}, description="named sets of optimizations; a set may name another"
    )
    planned: Planned = Planned()
    experiments: dict[Name, Experiment] = Field(min_length=1)
    claims: tuple[Claim, ...] = ()
