"""What a decoder is, beside its weights: read from a Transformers `config.json`, or refused by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from claimbench.cost_model import cost
from claimbench.errors import Unavailable

NormKind = Literal["rms", "layer"]
PositionKind = Literal["rotary", "learned", "alibi"]
Activation = Literal["silu", "tanh_gelu", "gelu"]
SCALED = ("linear", "llama3", "yarn")
"""Ways to stretch rotary positions that do not depend on the length of a sequence."""


@dataclass(frozen=True)
class Spec:
    """The maths of one decoder of the Llama, Qwen, GPT-BigCode or BLOOM family."""

    arch: cost.Architecture
    norm: NormKind
    positions: PositionKind
    activation: Activation
    """With SiLU the feed-forward is gated, down(silu(gate(x)) * up(x)); else it is down(activation(up(x)))."""
    eps: float
    rope_theta: float = 0.0
    frequencies: tuple[float, ...] | None = None
    """Of rotary positions, for each pair of a head, where they are not the powers of `rope_theta`."""
    rope_scale: float = 1.0
    """What turned queries and keys are multiplied with."""
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
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    spec = Spec(
        arch, "rms", "rotary", "silu", eps=float(config.get("rms_norm_eps", 1e-6)), rope_theta=float(theta), window=window
    )
    if kind == "default":
        return spec
    if kind not in SCALED:
        known = ", ".join(SCALED)
        raise Unavailable(f"the engine scales rotary positions by {known}, and this model does by {kind}")
    frequencies, scale = _scaled(config, kind)
    return replace(spec, frequencies=frequencies, rope_scale=scale)


def _scaled(config: cost.ModelConfig, kind: str) -> tuple[tuple[float, ...], float]:
    """Frequencies of rotary positions and their factor, by Transformers' own functions."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {key: value for key, value in config.items() if key != "model_type"}
    found, scale = ROPE_INIT_FUNCTIONS[kind](AutoConfig.for_model(config["model_type"], **settings), "cpu")
    return tuple(found.tolist()), float(scale)


def _expect(config: cost.ModelConfig, key: str, *known: object) -> None:
    value = config.get(key, known[0])
    if value not in known:
        raise Unavailable(f"config.json {key}: expected {' or '.join(map(str, known))} for the engine, got {value}")
