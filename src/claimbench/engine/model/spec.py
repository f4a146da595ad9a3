"""What a decoder is, beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from claimbench.cost_model import cost
from claimbench.errors import Unavailable

NormKind = Literal["rms", "layer"]
PositionKind = Literal["rotary", "learned", "alibi"]
Activation = Literal["silu", "tanh_gelu", "gelu", "relu", "squared_relu", "clamped_swish"]
SCALED = ("linear", "llama3", "yarn", "longrope")
"""Ways to stretch rotary positions that hold for a whole generation."""


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
    embedding_norm: str | None = None
    positions: str | None = None
    first_position: int = 0
    """Row of the table of positions that a sequence begins at."""
    q_norm: str | None = None
    k_norm: str | None = None
    norms_by_head: bool = False
    """Every head's norm has weights of its own under a number, as `q_norm.norms.0`."""
    sinks: str | None = None
    after_attention: str | None = None
    """A norm of what is added to the residual stream."""
    after_mlp: str | None = None
    joined_by_head: bool = False
    """The one matrix has queries, keys and values of each key-value head together."""
    transposed: bool = False
    """Matrices of a layer are stored [in, out]."""
    neighbours_turn: bool = False
    """Rotary positions turn neighbouring pairs; rows are put in the order of halves when they are read."""
    norm_offset: float = 0.0
    """A norm multiplies by its weight and this."""
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    head_bias: bool = False


@dataclass(frozen=True)
class SharedExpert:
    """An expert that every token passes through, weighed by the sigmoid of a gate of its own. Names in a layer."""

    gate: str
    up: tuple[str, str]
    down: str


@dataclass(frozen=True)
class Mixture:
    """Experts in place of every layer's feed-forward: each token passes through those that its router ranks first."""

    count: int
    active: int
    intermediate: int
    """Width of an expert."""
    renormalised: bool
    """The weights of those that are chosen are made to sum to one."""
    router: str
    """Its name in a layer."""
    experts: str
    """What the experts' names in a layer begin with; a number follows, unless they are stacked."""
    up: tuple[str, ...]
    """Gate and up of an expert, or both as one tensor of all experts, [experts, hidden, 2 * intermediate]."""
    down: str
    shared: SharedExpert | None = None

    @property
    def stacked(self) -> bool:
        """All experts' weights are one tensor, whose gates and ups take turns."""
        return len(self.up) == 1


@dataclass(frozen=True)
class LongPositions:
    """Of longrope: other frequencies for sequences that are longer than those of the first training."""

    beyond: int
    frequencies: tuple[float, ...]


@dataclass(frozen=True)
class Spec:
    """The maths of one decoder."""

    arch: cost.Architecture
    norm: NormKind
    positions: PositionKind
    activation: Activation
    """Gated, the feed-forward is down(activation(gate(x)) * up(x)); else it is down(activation(up(x)))."""
    eps: float
    names: Names
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
    local_rope_scale: float = 1.0
    long: LongPositions | None = None
    """Until `served_at` has settled it."""
    queries_grow_beyond: int | None = None
    """Position from which queries would be scaled by the logarithm of where they stand."""
    gate: bool = False
    """The feed-forward is gated by the activation; one of SiLU always is."""
    swish: tuple[float, float] = (1.0, 0.0)
    """Of a clamped swish: the factor in its sigmoid, and the most that gate and up may be."""
    parallel: bool = False
    """Both halves of a layer read the residual stream as it was before the layer."""
    whole_qk_norm: bool = False
    """The norms of queries and keys are over all heads together."""
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    """Of scores; None: 1 / sqrt(head_dim)."""
    mixture: Mixture | None = None
    window: int | None = None
    """A token sees itself and the tokens before it, this many in all; except in `unwindowed` layers."""
    unwindowed: frozenset[int] = frozenset()
    score_cap: float | None = None
    """Scores come to cap * tanh(score / cap), before they are masked; and logits."""
    logit_cap: float | None = None

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

    def window_of(self, layer: int) -> int | None:
        return None if layer in self.unwindowed else self.window

    @property
    def sinks(self) -> bool:
        """Each head has a score that no key has, and that takes a part of the weights."""
        return self.names.sinks is not None

    @property
    def matrices(self) -> int:
        """How many a decode step may read: those of layers, experts apart, and the head; routers do not count."""
        mixture = self.mixture
        if mixture is None:
            return 4 * self.arch.layers + 1
        of_layer = 2 + 2 * mixture.count + (2 if mixture.shared else 0)
        return of_layer * self.arch.layers + 1

    @property
    def matrices_of_token(self) -> int:
        """Those of `matrices` that one token passes through."""
        mixture = self.mixture
        idle = 0 if mixture is None else 2 * (mixture.count - mixture.active)
        return self.matrices - idle * self.arch.layers

    @property
    def norms(self) -> int:
        """How many a pass computes over whole hidden states."""
        names = self.names
        own = (names.norm1, names.norm2, names.after_attention, names.after_mlp)
        return sum(name is not None for name in own) * self.arch.layers + 1

    def served_at(self, prompt: int, tokens: int) -> Spec:
        """The decoder of sequences of up to `tokens`, the longest prompt being of `prompt` of them.

        Raises:
            Unavailable: they would cross a length at which positions change.
        """
        if self.queries_grow_beyond is not None and tokens > self.queries_grow_beyond:
            raise Unavailable(
                f"the engine has no queries that grow with their position: {tokens} tokens, and this model's do "
                f"beyond {self.queries_grow_beyond}"
            )
        if self.long is None or tokens <= self.long.beyond:
            return replace(self, long=None)
        if prompt <= self.long.beyond:
            raise Unavailable(
                f"the engine has no rotary positions that change within a generation: from {prompt} to {tokens} "
                f"tokens, and this model's change at {self.long.beyond}"
            )
        return replace(self, frequencies=self.long.frequencies, long=None)

    @property
    def unlike_a_graph(self) -> str | None:
        """Why a step cannot be one graph; None: it can."""
        if self.mixture is None:
            return None
        return "a graph has no mixture of experts: which of them a token takes is a value"

    @property
    def odd(self) -> list[str]:
        """Traits, by name, that the step in C does not have."""
        names, mixture = self.names, self.mixture
        behind = bool(names.after_attention or names.after_mlp)
        found = {
            "gate of ReLU": self.gated and self.activation.endswith("relu"),
            "expert that every token passes through": mixture is not None and mixture.shared is not None,
            "mixture of experts between norms or beside attention": mixture is not None and (behind or self.parallel),
        }
        return [name for name, is_so in found.items() if is_so]
