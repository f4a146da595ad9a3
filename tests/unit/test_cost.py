"""The cost model, against the tensors of Transformers' own modules and against arithmetic done by hand."""

from __future__ import annotations

from typing import Any

import pytest

from claimbench.cost_model import cost, weight_bytes

SMOL = cost.architecture("smollm2-135m")


def small_configs() -> dict[str, dict[str, Any]]:
    """One config a family and variant, with sizes that are all different so that no two can be mixed up."""
    llama = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 101,
        "max_position_embeddings": 64,
    }
    bigcode = {"n_embd": 48, "n_head": 6, "n_layer": 3, "n_positions": 64, "vocab_size": 101}
    return {
        "llama": {"model_type": "llama", **llama, "tie_word_embeddings": False},
        "llama tied": {"model_type": "llama", **llama, "tie_word_embeddings": True},
        "llama wide heads": {"model_type": "llama", **llama, "head_dim": 16, "tie_word_embeddings": True},
        "mistral": {"model_type": "mistral", **llama, "tie_word_embeddings": False},
        "bigcode multi-query": {"model_type": "gpt_bigcode", **bigcode, "multi_query": True},
        "bigcode multi-head": {"model_type": "gpt_bigcode", **bigcode, "multi_query": False, "n_inner": 100},
        "bloom": {"model_type": "bloom", "hidden_size": 48, "n_head": 6, "n_layer": 3, "vocab_size": 101},
    }


def empty_model(config: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **settings))


def zero_model(config: dict[str, Any]) -> Any:
    """The module on the CPU, buffers in place, all weights zero."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **settings)).eval()
    for tensor in model.parameters():
        torch.nn.init.zeros_(tensor)
    return model


def parameters(model: Any) -> int:
    return sum(tensor.numel() for tensor in model.parameters())  # tied weights are one tensor here


@pytest.mark.model
@pytest.mark.parametrize("name", small_configs())
def test_parameters_are_those_of_the_module(name: str) -> None:
    config = small_configs()[name]
    assert cost.parse(config).weights == parameters(empty_model(config))


@pytest.mark.model
@pytest.mark.parametrize("name", [name for name in cost.architecture_names() if "tiny-" not in name])
def test_parameters_of_every_architecture_are_those_of_its_module(name: str) -> None:
    assert cost.architecture(name).weights == parameters(empty_model(cost.config(name)))


@pytest.mark.model
@pytest.mark.parametrize("name", ["llama", "llama tied", "bigcode multi-query", "bloom"])
def test_a_step_reads_every_parameter_but_the_looked_up_embeddings(name: str) -> None:
    config = small_configs()[name]
    model, arch = empty_model(config), cost.parse(config)
    looked_up = {"llama": ["embed_tokens"], "bigcode multi-query": ["wpe"]}.get(name, [])
    skipped = sum(tensor.numel() for key, tensor in model.named_parameters() if any(part in key for part in looked_up))
    assert arch.step_weights == parameters(model) - skipped


@pytest.mark.model
@pytest.mark.parametrize(("name", "kv_heads"), [("llama", 2), ("bigcode multi-query", 1), ("bloom", 6)])
def test_the_cache_of_the_module_takes_these_bytes(name: str, kv_heads: int) -> None:
    import torch

    config = small_configs()[name]
    arch, model = cost.parse(config), zero_model(config)
    with torch.no_grad():
        past = model(torch.zeros(2, 5, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in past.layers)
    assert arch.kv_heads == kv_heads
    assert cost.kv_bytes(arch, batch=2, length=5, bytes_per_value=4) == held


@pytest.mark.model
@pytest.mark.parametrize("name", ["llama", "bigcode multi-query", "bloom"])
def test_operations_are_those_that_torch_counts(name: str) -> None:
    """Torch counts the full square of attention and ours is the triangle: they differ by that and by nothing else."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config = small_configs()[name]
    arch, model = cost.parse(config), zero_model({**config, "attn_implementation": "eager"})
    new, batch = 7, 2
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(batch, new, dtype=torch.long), use_cache=False)
    upper_triangle = 2 * batch * arch.layers * 2 * (new * (new - 1) / 2) * arch.heads * arch.head_dim
    assert cost.pass_flops(arch, batch, new, past=0) + upper_triangle == counter.get_total_flops()


def test_the_published_sizes_come_out() -> None:
    assert cost.architecture("mistral-7b").weights == 7_241_732_096
    assert SMOL.weights == 134_515_008


def test_a_decode_step_reads_weights_once_and_the_cache_of_every_row() -> None:
    one, eight = (cost.step_bytes(SMOL, batch, 100, 4) for batch in (1, 8))
    assert one == SMOL.step_weights * 4 + cost.kv_bytes(SMOL, 1, 100, 4)
    assert eight - one == 7 * cost.kv_bytes(SMOL, 1, 100, 4)
    assert cost.step_bytes(SMOL, 1, 0, 4) == SMOL.step_weights * 4


def test_a_pass_over_a_prompt_is_the_sum_of_its_steps() -> None:
    whole = cost.pass_flops(SMOL, 3, new=6, past=0)
    assert whole == pytest.approx(sum(cost.pass_flops(SMOL, 3, new=1, past=past) for past in range(6)))
    assert cost.pass_flops(SMOL, 3, new=6, past=0, heads_at=1) < whole


def test_the_peak_holds_weights_cache_and_activations_and_grows_with_each() -> None:
    peak = cost.peak_bytes(SMOL, 2, 100, 4)
    parts = SMOL.weights * 4 + cost.kv_bytes(SMOL, 2, 100, 4) + cost.activation_bytes(SMOL, 2, 100, 4)
    assert peak == parts
    assert cost.activation_bytes(SMOL, 2, 100, 4) == 2 * (100 * (2 * 576 + 3 * 1536) * 4 + 4 * 49152)
    assert cost.peak_bytes(SMOL, 4, 100, 4) > peak < cost.peak_bytes(SMOL, 2, 200, 4)


SPLIT_ROWS = ("q_proj", "gate_proj", "up_proj", "c_fc", "dense_h_to_4h", "lm_head", "embed_tokens", "wte", "word_emb")
SPLIT_COLUMNS = ("o_proj.weight", "down_proj.weight", "c_proj.weight", "dense.weight", "dense_4h_to_h.weight")
KEYS_AND_VALUES = ("k_proj", "v_proj")


def values_on_one_device(name: str, tensor: Any, arch: cost.Architecture, devices: int) -> int:
    """How much of a named tensor of Transformers the first of `devices` devices gets, by cutting it up for real.

    `chunk` rounds up, and heads of keys and values are cut as whole ones.
    """
    if "layernorm" in name:
        return int(tensor.numel())
    if name.endswith(("c_attn.weight", "c_attn.bias")):  # queries, then keys and values
        queries, rest = tensor[: arch.heads * arch.head_dim], tensor[arch.heads * arch.head_dim :]
        kept = rest.unflatten(0, (arch.kv_heads, 2 * arch.head_dim)).chunk(devices)[0]
        return int(queries.chunk(devices)[0].numel() + kept.numel())
    if any(part in name for part in KEYS_AND_VALUES):
        return int(tensor.unflatten(0, (arch.kv_heads, arch.head_dim)).chunk(devices)[0].numel())
    if "query_key_value" in name or any(part in name for part in SPLIT_ROWS):
        return int(tensor.chunk(devices)[0].numel())
    if name.endswith(SPLIT_COLUMNS):
        return int(tensor.chunk(devices, dim=1)[0].numel())
    return int(tensor.numel())


@pytest.mark.model
@pytest.mark.parametrize("devices", [1, 2, 3, 6])
@pytest.mark.parametrize("name", small_configs())
def test_a_device_s_share_is_what_cutting_up_the_module_leaves_it(name: str, devices: int) -> None:
    config = small_configs()[name] | ({"n_inner": 96} if "bigcode" in name else {})
    config |= {"intermediate_size": 96} if "intermediate_size" in config else {}
    arch, model = cost.parse(config), empty_model(config)
    kept = sum(values_on_one_device(key, tensor, arch, devices) for key, tensor in model.named_parameters())
    assert cost.device_share(arch, devices).weights == kept


@pytest.mark.parametrize(
    ("kv_heads", "devices", "held"),
    [(8, 1, 8), (8, 4, 2), (8, 16, 1), (2, 4, 1), (1, 8, 1), (6, 4, 2), (4, 6, 1), (3, 2, 2)],
)
def test_a_device_holds_whole_key_value_heads_one_at_least(kv_heads: int, devices: int, held: int) -> None:
    arch = SMOL._replace(heads=48, kv_heads=kv_heads, intermediate=96)
    assert cost.device_share(arch, devices).kv_heads == held


def test_the_single_key_value_head_is_on_every_device() -> None:
    santacoder = cost.architecture("santacoder")
    one, two = (cost.device_share(santacoder, devices) for devices in (1, 2))
    assert cost.kv_bytes(one, 1, 100, 2) == cost.kv_bytes(two, 1, 100, 2)
    read = [weight_bytes.read_weight_bytes(share, weight_bytes.Precision(2)) for share in (one, two)]
    flops = [cost.pass_flops(share, 1, new=1, past=99) for share in (one, two)]
    assert read[0] / 2 < read[1] < read[0]
    assert flops[0] / 2 < flops[1] < flops[0]


def test_what_cannot_be_split_evenly_is_an_error() -> None:
    with pytest.raises(ValueError, match="heads: expected a multiple of 2 devices, got 9"):
        cost.device_share(SMOL, 2)
    with pytest.raises(ValueError, match="intermediate: expected a multiple of 9 devices, got 1537"):
        cost.device_share(SMOL._replace(intermediate=1537), 9)


@pytest.mark.model
@pytest.mark.parametrize("name", ["llama", "llama tied", "bigcode multi-query", "bloom"])
def test_quantized_bytes_are_those_of_the_module_s_linear_layers(name: str) -> None:
    import torch

    config = small_configs()[name]
    arch, model = cost.parse(config), empty_model(config)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    linears = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"}
    layers = sum(p.numel() for p in model.parameters() if id(p) in linears - {id(head)})
    others = sum(p.numel() for p in model.parameters() if id(p) not in linears | {id(head), id(embedding)})
    separate = embedding is not head
    precision = weight_bytes.Precision(value_bytes=2, layer_bits=4.5)
    held = layers * 4.5 / 8 + others * 2 + head.numel() * 2 + (embedding.numel() * 2 if separate else 0)
    assert weight_bytes.held_weight_bytes(arch, precision) == held
    positions = sum(p.numel() for key, p in model.named_parameters() if "wpe" in key)
    looked_up = positions + (embedding.numel() if separate else 0)
    assert weight_bytes.read_weight_bytes(arch, precision) == held - 2 * looked_up


@pytest.mark.parametrize("config", [{"model_type": "gpt2"}, {"model_type": "llama"}])
def test_a_config_that_cannot_be_costed_is_an_error(config: dict[str, Any]) -> None:
    with pytest.raises(KeyError):
        cost.parse(config)
    with pytest.raises(KeyError):
        cost.architecture("no-such-architecture")
