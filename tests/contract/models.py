"""Tiny random checkpoints of every kind of model that people serve, as Transformers itself makes and saves them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 300
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "ffn_dim": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "sliding_window": 32,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
}
"""Where a config has such a number."""
EYES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "depth": 2,
    "embed_dim": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [1],
}
"""The same of the part that sees."""
TURNS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
"""Rotary positions of time, height and width, in heads of 16."""

KINDS: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": {"attn_layer_indices": [1], "mamba_n_groups": 1},
    "bitnet": {},
    "bloom": {"n_head": 4},
    "codegen": {"n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 256, "n_ctx": 256, "rotary_dim": 8},
    "cohere": {},
    "cohere2": {},
    "deepseek_v2": {
        **{"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
        **{"num_key_value_heads": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    },
    "deepseek_v3": {
        **{"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
        **{
            "head_dim": 8,
            "num_key_value_heads": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
    },
    "ernie4_5": {},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "exaone4": {},
    "exaone_moe": {},
    "falcon": {"num_kv_heads": 1, "multi_query": True},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_groups": 1},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    "flex_olmo": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16},
    "gemma3n_text": {
        **{"intermediate_size": [128] * 4, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 300},
        **{"laurel_rank": 8, "num_kv_shared_layers": 1, "activation_sparsity_pattern": [0.0] * 4},
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
    },
    "glm": {},
    "glm4": {},
    "glm4_moe": {"n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 256},
    "gpt_bigcode": {"n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 256},
    "gpt_neo": {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 256},
    "gpt_neox": {},
    "gpt_oss": {},
    "gptj": {"n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 256, "rotary_dim": 8},
    "granite": {},
    "granitemoe": {},
    "granitemoehybrid": {
        **{"layer_types": ["mamba", "mamba", "attention", "mamba"], "shared_intermediate_size": 64},
        "mamba_n_groups": 1,
    },
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "jamba": {
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        **{"mamba_dt_rank": 4, "mamba_d_state": 16, "use_mamba_kernels": False},
    },
    "jetmoe": {},
    "lfm2": {},
    "llama": {},
    "llama4_text": {"num_experts_per_tok": 1, "intermediate_size_mlp": 128, "attention_chunk_size": 64},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 1},
    "minimax_m2": {},
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 4, "max_seq_len": 256},
    "nemotron": {},
    "nemotron_h": {
        **{"layers_block_type": ["mamba", "attention", "mamba", "moe"], "n_groups": 1, "n_shared_experts": 1},
        **{"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16},
        "moe_shared_expert_intermediate_size": 32,
    },
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmo_hybrid": {},
    "olmoe": {},
    "opt": {"word_embed_proj_dim": 64},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {"shared_expert_intermediate_size": 32},
    "qwen3": {},
    "qwen3_5_text": {
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16},
        "linear_value_head_dim": 16,
    },
    "qwen3_moe": {"num_experts": 8},
    "qwen3_next": {
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16},
        **{"linear_value_head_dim": 16, "shared_expert_intermediate_size": 32},
    },
    "recurrent_gemma": {
        **{"lru_width": 64, "attention_window_size": 32},
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {},
}
"""model_type -> what its config has beside `SMALL`."""

WRAPPERS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": {"query_pre_attn_scalar": 16}, "mm_tokens_per_image": 4, "image_token_index": 290},
    "llama4": {
        "text_config": {"num_experts_per_tok": 1, "intermediate_size_mlp": 128, "attention_chunk_size": 64},
        "vision_config": {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    },
    "llava": {"image_token_index": 290},
    "mistral3": {"image_token_index": 290},
    "paligemma": {"text_config": {"model_type": "gemma2", "query_pre_attn_scalar": 16}, "image_token_index": 290},
    "qwen2_vl": {"text_config": TURNS, "vision_config": {"hidden_size": 64}},
    "qwen2_5_vl": {"text_config": TURNS},
    "qwen3_vl": {"text_config": TURNS},
}
"""model_type of a model that sees as well -> what its config and those of its parts have beside `SMALL` and `EYES`."""

KINDS |= WRAPPERS


def tiny_config(kind: str, **changes: Any) -> PreTrainedConfig:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    make = CONFIG_MAPPING[kind]
    wanted = KINDS.get(kind, {}) | changes
    usual = make()
    for name, sizes in (("text_config", SMALL), ("vision_config", EYES)):
        if kind in WRAPPERS:
            own = wanted.get(name, {})
            part = CONFIG_MAPPING[own["model_type"]] if "model_type" in own else type(getattr(usual, name))
            wanted |= {name: _fitting(part, sizes) | {"model_type": part.model_type} | own}
    return make(**_fitting(make, SMALL) | wanted)


def _fitting(make: type[PreTrainedConfig], sizes: dict[str, Any]) -> dict[str, Any]:
    """Those of `sizes` that the config has, and does not derive from others."""
    usual = make()
    return {
        key: value
        for key, value in sizes.items()
        if hasattr(usual, key) and not isinstance(getattr(make, key, None), property)
    }


def tiny_model(kind: str, **changes: Any) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(0)
    config = tiny_config(kind, **changes)
    causal = type(config) in AutoModelForCausalLM._model_mapping
    return (AutoModelForCausalLM if causal else AutoModelForImageTextToText).from_config(config).eval()


def save(kind: str, folder: Path, **changes: Any) -> PreTrainedModel:
    """Write a tiny random checkpoint to `folder`, as its makers would publish it."""
    model = tiny_model(kind, **changes)
    model.save_pretrained(folder)
    return model
