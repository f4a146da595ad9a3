"""A Transformers `config.json` as what the engine computes, or refused by name."""

from __future__ import annotations

from dataclasses import replace

from claimbench.checkpoints import counting
from claimbench.cost_model import cost
from claimbench.engine.model import families
from claimbench.engine.model.spec import SCALED, Activation, Spec
from claimbench.errors import Unavailable


def read_spec(config: cost.ModelConfig) -> Spec:
    """The decoder that a Transformers `config.json` describes.

    Raises:
        Unavailable: it is of another family, or asks for a variant that the reference transformer does not have.
    """
    if config.get("model_type") not in (*cost.LLAMA_LIKE, "gpt_bigcode", "bloom"):
        return families.read(config)
    try:
        arch = cost.parse(config)
    except KeyError as error:
        raise Unavailable(f"the engine needs a config with {error}") from error
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
        arch,
        "rms",
        "rotary",
        "silu",
        eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=float(theta),
        window=window,
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
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found, scale = ROPE_INIT_FUNCTIONS[kind](counting.completed(config), "cpu")
    return tuple(found.tolist()), float(scale)


def _expect(config: cost.ModelConfig, key: str, *known: object) -> None:
    value = config.get(key, known[0])
    if value not in known:
        raise Unavailable(f"config.json {key}: expected {' or '.join(map(str, known))} for the engine, got {value}")
