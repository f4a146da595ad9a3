"""What a Transformers model is loaded from and driven by: the parts that optimizations change.

The plain setup is eager attention, a dynamic key-value cache and `model.generate`. Each optimization's
`apply(setup, settings)` changes the one part at its seam:

    seam        part
    attention   load["attn_implementation"], around
    weights     load["quantization_config"]
    compile     transforms
    cache       cache
    draft       drafts, uses_draft, drafting, generate
    grad        around
    loop        loop
    history     earlier
    injected    inference
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

from claimbench.hf.stepper import Around, Emit
from claimbench.schema.cell import Workload
from claimbench.technique import Technique

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache, PreTrainedModel
    from transformers.utils.quantization_config import QuantizationConfigMixin

Choose = Callable[["Tensor", "Tensor"], "Tensor"]
"""(sequence [batch, length], logits [batch, vocabulary]) -> next tokens [batch]."""
CacheKind = Literal["dynamic", "static", "none"]


@dataclass
class Phase:
    """Whether the pass about to run is the prompt's: compiled code serves decode steps and leaves prefill alone."""

    prefill: bool = True


@dataclass
class Generation:
    """One generation, as a loop sees it: what to run and where to hand each step's tokens."""

    model: PreTrainedModel
    """What is called: the model, or the wrapper that a transform made of it."""
    prompt: Tensor
    """Token ids, int64 tensor [batch, prompt tokens], on the device."""
    mask: Tensor
    """1 where the prompt has a token and 0 where it has padding, [batch, prompt tokens]."""
    new_tokens: int
    cache: Cache | None
    """An empty cache, or None where every step recomputes the whole sequence."""
    choose: Choose
    emit: Emit


NO_DRAFTS = ("assisted generate is", "assisted generation is not supported")
"""Texts of the library's errors by which it says that it does not draft for this model or cache."""

Loop = Callable[[Generation], None]


class LoadArguments(TypedDict):
    """Keyword arguments of `from_pretrained`."""

    attn_implementation: str
    quantization_config: NotRequired[QuantizationConfigMixin]


@dataclass
class GenerationSetup:
    dtype: str
    """Name of the type of weights and activations, such as "bfloat16"."""
    device: str = "cpu"
    techniques: tuple[Technique, ...] = ()
    """What changed it, to be proven of what ran."""
    load: LoadArguments = field(default_factory=lambda: LoadArguments(attn_implementation="eager"))
    transforms: list[Callable[[PreTrainedModel], PreTrainedModel]] = field(default_factory=list)
    """model -> model, in order, after loading; may return a wrapper."""
    cache: CacheKind = "dynamic"
    cache_length: int | None = None
    """Tokens that a static cache is allocated for; None: as many as there will be."""
    generate: dict[str, object] = field(default_factory=dict)
    """Fields of the generation config, beside length, sampling and cache."""
    drafting: dict[str, object] = field(default_factory=dict)
    """Fields of the generation config of the model that drafts."""
    uses_draft: bool = False
    """Whether the cell's draft checkpoint is the assistant."""
    drafts: bool = False
    """Whether a step may give several tokens, by any kind of draft."""
    around: list[Around] = field(default_factory=list)
    """Contexts that a whole generation runs in."""
    loop: Loop | None = None
    """Drives the model in place of its own `generate`."""
    earlier: Callable[[Workload], list[Workload]] | None = None
    """The cell's workload -> others that are generated once each, in the same process, before its first generation."""
    inference: dict[str, object] = field(default_factory=dict)
    """Settings of the system that puts its own modules into the model, where the backend has one."""
    unsupported: list[str] = field(default_factory=list)
    """Texts of the library's errors by which it says that it does not support what was asked for."""
    phase: Phase = field(default_factory=Phase)
