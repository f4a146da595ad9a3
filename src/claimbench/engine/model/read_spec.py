"""A Transformers `config.json` as what the engine computes, or refused by name."""

from __future__ import annotations

from claimbench.checkpoints import counting
from claimbench.cost_model import cost
from claimbench.engine.model import families
from claimbench.engine.model.gpt_families import BLOOM, GPT_BIGCODE
from claimbench.engine.model.spec import Activation, Spec
from claimbench.engine.model.traits import LLAMA, turned, windowed, with_qk_norm
from claimbench.errors import Unavailable


def read_spec(config: cost.ModelConfig) -> Spec:
    """The decoder that a Transformers `config.json` describes: the one of its text, where there is more.

    Raises:
        Unavailable: it is of another family, or asks for a variant that the reference transformer does not have.
    """
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "some method")
        raise Unavailable(f"the engine has no weights quantized by {method}: it reads plain ones (config.json)")
    if isinstance(config.get("text_config"), dict):
        return read_spec(_of_text(config))
    if config.get("model_type") not in (*cost.LLAMA_LIKE, "gpt_bigcode", "bloom"):
        return families.read(config)
    try:
        arch = cost.parse(config)
    except KeyError as error:
        raise Unavailable(f"the engine needs a config with {error}") from error
    if arch.family == "llama":
        return _llama(config, arch)
    eps = float(config.get("layer_norm_epsilon", 1e-5))
    if arch.family == "gpt_bigcode":
        _expect(config, "activation_function", "gelu_pytorch_tanh", "gelu_new", "gelu")
        _expect(config, "scale_attn_weights", True)
        activation: Activation = "gelu" if config.get("activation_function") == "gelu" else "tanh_gelu"
        return Spec(arch, "layer", "learned", activation, eps, GPT_BIGCODE)
    _expect(config, "apply_residual_connection_post_layernorm", False)
    return Spec(arch, "layer", "alibi", "tanh_gelu", eps, BLOOM)


def _of_text(config: cost.ModelConfig) -> cost.ModelConfig:
    """The language part of a config of several parts, completed."""
    whole = counting.completed(config)
    text: cost.ModelConfig = whole.get_text_config(decoder=True).to_dict()
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", whole.tie_word_embeddings))
    return {**text, "tie_word_embeddings": tied}


def _llama(config: cost.ModelConfig, arch: cost.Architecture) -> Spec:
    """By the numbers of the config alone, which takes no time; what they do not say is completed."""
    _expect(config, "hidden_act", "silu")
    # transformers 5 writes rope_parameters, 4 wrote rope_theta and rope_scaling
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    names = with_qk_norm(LLAMA) if arch.qk_norm else LLAMA
    eps = float(config.get("rms_norm_eps", 1e-6))
    spec = Spec(arch, "rms", "rotary", "silu", eps, names, rope_theta=float(theta))
    text = None
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        text = counting.completed(config)
        spec = turned(spec, text)
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        spec = windowed(spec, text or counting.completed(config))
    return spec


def _expect(config: cost.ModelConfig, key: str, *known: object) -> None:
    value = config.get(key, known[0])
    if value not in known:
        raise Unavailable(f"config.json {key}: expected {' or '.join(map(str, known))} for the engine, got {value}")
