"""What a study file says: experiments, and claims about them. One file per document, `studies/<name>.yaml`.

An experiment's cells are addressed as `experiment/label`, or `experiment/label@batch=8` where the experiment sweeps.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, ValidationError, model_validator

from claimbench.schema.cell import Device, Dtype, PageCache, Sampling
from claimbench.schema.checks import Check
from claimbench.schema.frozen import Frozen
from claimbench.schema.setting import Setting

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Scalar = float | int | str
Published = dict[str, Scalar | dict[Scalar, Scalar]]

SWEEPABLE = ("checkpoint", "dtype", "prompt", "prompt_tokens", "shortest", "new_tokens", "batch")


class Hold(Frozen):
    """Settings of cells, each optional: a cell's own, else its experiment's, else the study's defaults."""

    checkpoint: str | None = Field(default=None, description="a name in the checkpoints of params.yaml")
    backend: str | None = Field(default=None, description="the system: `claimbench list backends`")
    options: dict[str, Any] | None = Field(default=None, description="of the backend, by name")
    optimizations: tuple[str | dict[str, dict[str, Any]], ...] | None = Field(
        default=None, description="names, or {name: {setting: value}}; replaces what is held, does not add to it"
    )
    dtype: Dtype | None = Field(default=None, description="of weights and activations")
    prompt: str | None = Field(default=None, description="a name in `prompts`")
    prompt_tokens: StrictInt | None = Field(
        default=None, ge=1, description="length that the prompt is cut or repeated to; absent: as long as it is"
    )
    shortest: StrictInt | None = Field(
        default=None, ge=1, description="prompt tokens of the shortest row of a batch; absent: all rows are equal"
    )
    new_tokens: StrictInt | None = Field(default=None, ge=1, description="generated tokens per row")
    batch: StrictInt | None = Field(
        default=None, ge=1, description="rows, each a copy of the prompt or a text of its list"
    )
    sampling: Sampling | None = Field(default=None, description="draw tokens; absent: the likeliest one")
    pads: Literal["right"] | None = Field(
        default=None, description="where rows of several prompts are filled up to the longest; absent: on the left"
    )
    page_cache: PageCache | None = Field(
        default=None, description="of the checkpoint's files when a block loads them; absent: as it is"
    )


class OwnProtocol(Frozen):
    """A document's own way to measure, in place of rounds: each block warms up and times as it did."""

    warmups: StrictInt = Field(ge=1, description="untimed generations before the timed ones")
    warmup_tokens: StrictInt = Field(ge=1, description="of each, prompt and new ones together")
    samples: StrictInt = Field(ge=1, description="timed generations of one process")


class StudyCell(Hold):
    title: str | None = Field(default=None, description="the row's name in the report; the label otherwise")
    blocks: StrictInt | None = Field(
        default=None, ge=1, description="fresh processes of this cell; absent: the experiment's. One: no interval"
    )
    where_built: StrictBool = Field(
        default=False, description="unavailable where its environment is not there, which is not built for it"
    )
    published: Published = Field(
        default={}, description="the document's own figures by metric; by swept value where the experiment sweeps"
    )
    setting: Setting | None = Field(
        default=None, description="what the document had in this row; else its experiment's"
    )
    protocol: OwnProtocol | None = Field(
        default=None, description="how the document measured; absent: as the study does"
    )


Shape = Literal["rates", "grid", "curves", "bars"]


class Experiment(Frozen):
    """One question: what is held, what varies.

    `show` is the shape of its table: `rates` (tokens per second, one row a cell), `grid` (milliseconds per token, one
    column a batch size), `curves` (latency against the swept length), `bars` (ratio to the first cell).
    """

    question: str = Field(description="what it asks, in one sentence")
    show: Shape = Field(default="bars", description="the shape of its table: rates, grid, curves or bars")
    device: Device | None = Field(default=None, description="the kind of device that it is about; absent: any")
    blocks: StrictInt | None = Field(
        default=None, ge=1, description="fresh processes per cell; absent: the study's. One gives a curve, no interval"
    )
    hold: Hold = Field(default=Hold(), description="what all its cells have, unless they say otherwise")
    setting: Setting | None = Field(default=None, description="what the document had here; absent: `document.setting`")
    cells: dict[Name, StudyCell] = Field(min_length=1, description="by label")
    sweep: dict[str, tuple[Scalar, ...]] = Field(
        default={}, description="a setting -> its values; each cell runs at every combination"
    )
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


class Needs(Frozen):
    """What the cells of a claim must be, or its sentence cannot be decided by them. Outcomes and tokens always can."""

    model: bool = Field(default=False, description="the document's own model, or random weights of its shape")
    trained: bool = Field(default=False, description="weights that were trained: what is said decides the speed")
    draft: bool = Field(default=False, description="a draft model that was trained as one, not layers of its target")
    checkpoint_gb: StrictFloat | None = Field(
        default=None,
        gt=0,
        description="1e9 bytes of weights, at least: below, start and libraries are what takes time and memory",
    )


class Claim(Frozen):
    """A testable sentence. It is supported when every one of its checks is.

    One of computed checks alone is of the kind `computed`: it holds on paper or does not, on every machine alike.
    """

    id: Name = Field(description="stands before the statement, and is its address")
    kind: str = Field(
        description="ratio, shape, identity, size or absolute, joined with + where it is several; or computed, alone"
    )
    statement: str = Field(description="one sentence that can be wrong")
    published: str | None = Field(default=None, description="the document's figure, as a person would say it")
    note: str | None = Field(default=None, description="what a reader must know to understand the verdict")
    device: Device | None = Field(
        default=None, description="the kind of device that the sentence is about; absent: any"
    )
    needs: Needs = Field(default=Needs(), description="what its cells must be")
    checks: tuple[Check, ...] = Field(min_length=1, description="what must be so for it to be supported")

    @model_validator(mode="after")
    def _computed_stands_alone(self) -> Claim:
        computed = {check.kind == "computed" for check in self.checks}
        if len(computed) > 1:
            raise ValueError("a computed check stands beside a measured one: make two claims of them")
        if computed == {True} and self.kind != "computed":
            raise ValueError(f"a claim of computed checks alone is of the kind 'computed' (got '{self.kind}')")
        if computed == {False} and self.kind == "computed":
            raise ValueError("a claim of the kind 'computed' has computed checks alone")
        return self


class Document(Frozen):
    title: str = Field(description="where the claims come from")
    url: str | None = Field(default=None, description="its address")
    measured: str | None = Field(default=None, description="hardware, models and lengths, as a person would say them")
    setting: Setting = Field(default=Setting(), description="the same, for what runs here to be compared with")
    hardware: str | None = Field(
        default=None,
        description="its accelerator, by a name of cost_model/hardware.py: limits on paper stand in the report",
    )


class Planned(Frozen):
    """Names that this study uses and this version does not have yet; their cells are `unavailable`."""

    backends: tuple[str, ...] = Field(default=(), description="names")
    optimizations: tuple[str, ...] | dict[str, str] = Field(
        default=(), description="names, or {name: why it is not there}, as a reader of its row should know it"
    )

    def reason(self, optimization: str) -> str:
        reasons = self.optimizations if isinstance(self.optimizations, dict) else {}
        return reasons.get(optimization, f"this version has no optimization '{optimization}' yet")


class MeasureOverrides(Frozen):
    budget_minutes: StrictFloat | None = Field(default=None, gt=0, description="for rounds in turn; absent: blocks")
    blocks: StrictInt | None = Field(default=None, ge=1, description="fresh processes per cell that cannot take turns")
    samples: StrictInt | None = Field(default=None, ge=1, description="timed generations per block")
    warmup_min: StrictInt | None = Field(default=None, ge=1, description="untimed generations before them, at least")
    warmup_max: StrictInt | None = Field(default=None, ge=1, description="and at most")
    timeout_s: StrictFloat | None = Field(default=None, gt=0, description="seconds for a whole block, loading included")


class Message(Frozen):
    """What a person says to a chat model, whose own template makes the prompt of it; and what a base model is given."""

    user: str = Field(min_length=1, description="what the person says")
    system: str | None = Field(default=None, description="absent: what the template says by itself, if anything")
    base: str | None = Field(
        default=None,
        min_length=1,
        description="text to go on with, for a checkpoint that has no chat template; absent: its rows are unavailable",
    )


class Study(Frozen):
    title: str = Field(description="of the report")
    document: Document = Field(description="where the claims come from, and what was measured there")
    prompts: dict[Name, str | Message | tuple[str, ...]] = Field(
        min_length=1,
        description="text as it is, a message to a chat model: {user: ...}, or a list of texts for the rows of a batch",
    )
    defaults: Hold = Field(description="what all cells have, unless their experiment or they say otherwise")
    measure: MeasureOverrides = Field(default=MeasureOverrides(), description="in place of params.yaml")
    presets: dict[Name, tuple[str | dict[str, dict[str, Any]], ...]] = Field(
        default={}, description="named sets of optimizations; a set may name another"
    )
    planned: Planned = Field(default=Planned(), description="names that this version lacks")
    experiments: dict[Name, Experiment] = Field(min_length=1, description="by name")
    claims: tuple[Claim, ...] = Field(default=(), description="judged one by one")
