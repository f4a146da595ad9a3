"""What a decoder is, beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from claimbench.cost_model import cost

NormKind = Literal["rms", "layer"]
PositionKind = Literal["rotary", "learned", "alibi"]
Activation = Literal["silu", "tanh_gelu", "gelu", "relu"]
SCALED = ("linear", "llama3", "yarn")
"""Ways to stretch rotary positions that do not depend on the length of a sequence."""


@dataclass(frozen=True)
class Names:
    """What weights are called in a checkpoint. Those of a layer follow the layer's own name."""

    embedding: str
    layers: str
    norm1: str | None
    """None: attention reads the residual stream itself."""
    qkv: tuple[str, ...]
    """One matrix, or queries, keys and values apart."""
    out: str
    norm2: str | None
    """None: the feed-forward reads the residual stream itself, or in a parallel layer what attention reads."""
    up: tuple[str, ...]
    """One matrix, or gate and up apart."""
    down: str
    norm: str
    head: tuple[str, ...] = ("lm_head",)
    """The first that is there."""
    positions: str | None = None
    first_position: int = 0
    """Row of the table of positions that a sequence begins at."""
    q_norm: str | None = None
    k_norm: str | None = None
    after_attention: str | None = None
    """A norm of what is added to the residual stream."""
    after_mlp: str | None = None
    joined_by_head: bool = False
    """The one matrix has queries, keys and values of each head together."""
    neighbours_turn: bool = False
    """Rotary positions turn neighbouring pairs; rows are put in the order of halves when they are read."""
    norm_offset: float = 0.0
    """A norm multiplies by its weight and this."""
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    head_bias: bool = False


@dataclass(frozen=True)
class Mixture:
    """Experts in place of every layer's feed-forward: each token passes through those that its router ranks first."""

    count: int
    active: int
    renormalised: bool
    """The weights of those that are chosen are made to sum to one."""
    router: str
    """Its name in a layer."""
    experts: str
    """What the experts' names in a layer begin with; a number follows."""
    up: tuple[str, str]
    """Gate and up of an expert."""
    down: str


@dataclass(frozen=True)
class Spec:
    """The maths of one decoder of the Llama, Qwen, GPT-BigCode or BLOOM family."""

    arch: cost.Architecture
    norm: NormKind
    positions: PositionKind
    activation: Activation
    """Gated, the feed-forward is down(activation(gate(x)) * up(x)); else it is down(activation(up(x)))."""
    eps: float
    rope_theta: float = 0.0
    frequencies: tuple[float, ...] | None = None
    """Of rotary positions, for each pair of a head, where they are not the powers of `rope_theta`."""
    rope_scale: float = 1.0
    """What turned queries and keys are multiplied with."""
    unturned: frozenset[int] = frozenset()
    """Layers without positions."""
    local_layers: frozenset[int] = frozenset()
    local_frequencies: tuple[float, ...] | None = None
    """Of the rotary positions of `local_layers`, where they are others."""
    gate: bool = False
    """The feed-forward is gated by the activation; one of SiLU always is."""
    parallel: bool = False
    """Both halves of a layer read the residual stream as it was before the layer."""
    whole_qk_norm: bool = False
    """The norms of queries and keys are over all heads together."""
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    """Of scores; None: 1 / sqrt(head_dim)."""
    names: Names | None = None
    """None: those of `arch.family`."""
    mixture: Mixture | None = None
    window: int | None = None
    """A token attends to at most this many before it; the engine serves only sequences that are not longer."""

    rank: int = 0
    ranks: int = 1
    """Of several, the heads of this decoder are those of `rank`: then `arch` is a share of the whole one."""

    @property
    def gated(self) -> bool:
        return self.gate or self.activation == "silu"

    @property
    def scale(self) -> float:
        """Of scores."""
        return self.arch.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def odd(self) -> list[str]:
        """Traits, by name, that only the plain step of modules has."""
        names = self.names
        found = {
            "mixture of experts": self.mixture is not None,
            "a parallel layer": self.parallel,
            "norms behind a layer's halves": names is not None and bool(names.after_attention or names.after_mlp),
            "layers without a norm before attention": names is not None and names.norm1 is None,
            "a norm over all queries": self.whole_qk_norm,
            "layers that turn by another base, or not at all": bool(self.unturned or self.local_layers),
            "a bias of the head": names is not None and names.head_bias,
        }
        return [name for name, is_so in found.items() if is_so]

    @property
    def unlike_llama(self) -> list[str]:
        """`odd`, and what only the plain step and the one in C have."""
        found = {
            "a gate of another activation than SiLU": self.gated and self.activation != "silu",
            "ReLU": self.activation == "relu",
            "scaled embeddings": self.embedding_scale != 1,
            "rotary positions on a part of a head": self.frequencies is not None
            and 2 * len(self.frequencies) != self.arch.head_dim,
        }
        return self.odd + [name for name, is_so in found.items() if is_so]
