"""A cell and what it is made of: frozen values, known before anything runs.

A cell is one point of an experiment: checkpoint x backend x optimizations x workload x device. Its id is a hash of
its settings alone, so that two studies which ask for the same point share its results. How often it is measured is no
part of it: whoever asks for more samples keeps what is there, and gets them in blocks that are still to come.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, StrictFloat, StrictInt, model_validator

from claimbench.errors import SourceError
from claimbench.schema.card import Card
from claimbench.schema.frozen import Frozen
from claimbench.schema.json_file import digest

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16", "float16"]

PageCache = Literal["as_it_is", "cold", "warm"]


DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


class Sampling(Frozen):
    """Draw tokens instead of taking the likeliest one."""

    temperature: StrictFloat = Field(default=1.0, gt=0, description="what logits are divided by")
    top_k: StrictInt = Field(default=0, ge=0, description="0 keeps all")
    top_p: StrictFloat = Field(
        default=1.0, gt=0, le=1, description="the likeliest tokens up to that share; 1 keeps all"
    )
    typical_p: StrictFloat = Field(default=1.0, gt=0, le=1, description="locally typical sampling; 1 keeps all")
    repetition_penalty: StrictFloat = Field(
        default=1.0, gt=0, description="of tokens that the row holds already; 1 is none"
    )
    seed: StrictInt = Field(default=0, ge=0, description="of the first row; every row has its own")


class Workload(Frozen):
    """What is asked of the model: one prompt, `batch` rows of it, exactly `new_tokens` each.

    The end-of-sequence token is an ordinary token here: every row runs to its full length. With `shortest`, row 0 is
    the whole prompt and the others are its ends, so that all rows end alike; see `row_lengths` below.
    """

    prompt: str = Field(min_length=1, description="the prompt's text, or what the user says in a chat")
    chat: bool = Field(default=False, description="the checkpoint's chat template makes the prompt of it")
    system: str | None = Field(default=None, description="what comes before it in a chat")
    base: str | None = Field(default=None, description="the prompt in its place where there is no chat template")
    prompt_tokens: int | None = Field(default=None, ge=1, description="repeat or cut the prompt to exactly this length")
    shortest: int | None = Field(
        default=None,
        ge=1,
        description="prompt tokens of the shortest row; rows are cut to lengths spread evenly from it up to the full "
        "prompt. Absent: all rows are equal",
    )
    new_tokens: int = Field(ge=1)
    batch: int = Field(default=1, ge=1)
    sampling: Sampling | None = Field(default=None, description="absent: greedy")
    others: tuple[str, ...] = Field(
        default=(), description="prompts of the next rows; a batch of more rows begins again with the first"
    )
    pads: Literal["right"] | None = Field(default=None, description="shorter rows on the right; absent: on the left")

    @model_validator(mode="after")
    def _shortest_row_fits(self) -> Workload:
        if self.others and (self.shortest is not None or self.prompt_tokens is not None or self.chat):
            raise ValueError("rows with prompts of their own have the lengths of those, and are no chat")
        if self.shortest is None:
            return self
        if self.batch < 2:
            raise ValueError(f"shortest: rows of several lengths need a batch of at least 2 (got {self.batch})")
        if self.prompt_tokens is not None and self.shortest > self.prompt_tokens:
            raise ValueError(f"shortest: expected at most prompt_tokens ({self.prompt_tokens}), got {self.shortest}")
        return self


class Protocol(Frozen):
    """How one block measures: warm-up until steady within bounds, then `samples` timed generations."""

    samples: int = Field(default=5, ge=1)
    warmup_min: int = Field(default=1, ge=1, description="the first call is always a warm-up")
    warmup_max: int = Field(default=4, ge=1)
    timeout_s: float = Field(default=900.0, gt=0, description="for the whole block, loading included")
    threads: int | None = Field(default=None, ge=1, description="absent: every core that the process may use")
    memory_limit: int | None = Field(default=None, ge=1, description="bytes of address space each rank may take")
    page_cache: PageCache = Field(
        default="as_it_is", description="of the checkpoint's files when loading begins: dropped, or read ahead"
    )
    warmup_tokens: int | None = Field(
        default=None,
        ge=1,
        description="prompt and new tokens together of each warm-up generation; absent: warm-ups are whole",
    )

    @property
    def takes_turns(self) -> bool:
        """Whether rounds may measure it: not where a document's own protocol, or a cold start, is asked for."""
        return self.page_cache == "as_it_is" and self.memory_limit is None and self.warmup_tokens is None


class Checkpoint(Frozen):
    """Weights by name. `source` pins what they are.

    What is known of them before they are fetched: `architecture` names a file in `architectures/`, or `card` has the
    numbers, counted from the source's own config. Neither is needed.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="also of its folder")
    source: str
    architecture: str | None = None
    card: Card | None = Field(default=None, description="found when planning")
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="of the fetched file, where it is one"
    )
    content: str | None = Field(
        default=None,
        description="what the source does not pin: the commit of a hub's branch, or a hash of a local source's files "
        "or of a declared architecture that random weights are drawn for. Found when planning",
    )
    keep_layers: int | None = Field(default=None, ge=1, description="keep only the first layers: a small draft model")
    tensor_parallel: int | None = Field(
        default=None,
        ge=1,
        description="cut for so many ranks ahead of time; set when planning, by the backend's options",
    )


class OptimizationUse(Frozen):
    """One technique switched on: `name` is a file in `optimizations/`, `settings` its validated parameters."""

    name: str
    settings: dict[str, Any] = {}


_NO_SETTINGS = {"protocol": {"samples"}, "checkpoint": {"card"}, "draft": {"card"}}
"""Fields of a cell that say how often it is measured, or what follows from others."""


_LATER = {"protocol": ("warmup_tokens",), "workload": ("others", "pads")}
"""Fields that came later: left out where they say nothing, so that older cells keep their ids."""


class Cell(Frozen):
    checkpoint: Checkpoint
    draft: Checkpoint | None = Field(default=None, description="the assistant of speculative decoding")
    backend: str
    options: dict[str, Any] = Field(default={}, description="the backend's own settings, validated by it")
    optimizations: tuple[OptimizationUse, ...] = ()
    dtype: Dtype = "float32"
    workload: Workload
    device: Device
    protocol: Protocol = Protocol()

    @property
    def id(self) -> str:
        settings = self.model_dump(mode="json", exclude=_NO_SETTINGS)
        for field, names in _LATER.items():
            settings[field] = {k: v for k, v in settings[field].items() if k not in names or v}
        return digest(settings)

    @property
    def devices(self) -> int:
        """Ranks that share the work: processes on a CPU, GPUs elsewhere."""
        return int(self.options.get("devices", 1))

    @property
    def rows(self) -> int:
        """Rows that come out of one generation: of the batch, times the devices that serve rows of their own."""
        return self.workload.batch * int(self.options.get("streams", 1))

    @property
    def nodes(self) -> int:
        """Machines that the devices are on."""
        return int(self.options.get("nodes", 1))

    def uses(self, optimization: str) -> bool:
        return any(use.name == optimization for use in self.optimizations)


def row_lengths(workload: Workload, prompt_tokens: int) -> list[int]:
    """Prompt tokens of each row of the batch, row 0 the full prompt, the last one `shortest`, evenly spaced in between.

    Row r has the last `row_lengths(...)[r]` tokens of the prompt: shorter rows begin later and all end alike.

    Raises:
        SourceError: the prompt has fewer tokens than the shortest row is to have.
    """
    shortest, batch = workload.shortest, workload.batch
    if shortest is None:
        return [prompt_tokens] * batch
    if shortest > prompt_tokens:
        raise SourceError(
            f"the prompt has {prompt_tokens} tokens, and its shortest row is to have {shortest}: "
            f"set prompt_tokens, or a smaller shortest"
        )
    return [prompt_tokens - row * (prompt_tokens - shortest) // (batch - 1) for row in range(batch)]
