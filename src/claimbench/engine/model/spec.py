"""What a decoder is, beside its weights: read from a Transformers `config.json`, or refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from claimbench.cost_model import cost
from claimbench.errors import Unavailable

NormKind = Literal["rms", "layer"]
PositionKind = Literal["rotary", "learned", "alibi"]
Activation = Literal["silu", "tanh_gelu", "gelu"]


@dataclass(frozen=True)
class Spec:
    """The maths of one decoder of the Llama, GPT-BigCode or BLOOM family."""

    arch: cost.Architecture
    norm: NormKind
    positions: PositionKind
    activation: Activation
    """With SiLU the feed-forward is gated, down(silu(gate(x)) * up(x)); else it is down(activation(up(x)))."""
    eps: float
    rope_theta: float = 0.0
    window: int | None = None
    """A token attends to at most this many before it; the engine serves only sequences that are not longer."""

    rank: int = 0
    ranks: int = 1
    """Of several, the heads of this decoder are those of `rank`: then `arch` is a share of the whole one."""

    @property
    def gated(self) -> bool:
        return self.activation == "silu"


def read_spec(config: cost.ModelConfig) -> Spec:
    """The decoder that a Transformers `config.json` describes.

    Raises:
        Unavailable: it is of another family, or asks for a variant that the reference transformer does not have.
    """
    try:
        arch = cost.parse(config)
    except KeyError as error:
        raise Unavailable(f"the engine does not know this architecture: {error.args[0]}") from error
    if arch.family == "llama":
        return _llama(config, arch)
    if arch.family == "gpt_bigcode":
        _expect(config, "activation_function", "gelu_pytorch_tanh", "gelu_new", "gelu")
        _expect(config, "scale_attn_weights", True)
        activation: Activation = "gelu" if config.get("activation_function") == "gelu" else "tanh_gelu"
        return Spec(arch, "layer", "learned", activation, eps=float(config.get("layer_norm_epsilon", 1e-5)))
    _expect(config, "apply_residual_connection_post_layernorm", False)
    return Spec(arch, "layer", "alibi", "tanh_gelu", eps=float(config.get("layer_norm_epsilon", 1e-5)))


def _llama(config: cost.ModelConfig, arch: cost.Architecture) -> Spec:
    _expect(config, "hidden_act", "silu")
    # transformers 5 writes rope_parameters, 4 wrote rope_theta and rope_scaling
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise Unavailable(f"the engine knows plain rotary positions only, and this model scales them: {kind}")
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    eps, window = float(config.get("rms_norm_eps", 1e-6)), config.get("sliding_window")
    return Spec(arch, "rms", "rotary", "silu", eps=eps, rope_theta=float(theta), window=window)


def _expect(config: cost.ModelConfig, key: str, *known: object) -> None:
    value = config.get(key, known[0])
    if value not in known:
        raise Unavailable(f"config.json {key}: expected {' or '.join(map(str, known))} for the engine, got {value}")
