"""What a pass costs, of every kind of model: what is counted beside what torch is seen to read and to multiply."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.conftest import save_tokenizer
from tests.contract.models import KINDS, SMALL, save, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from claimbench.analysis import roofline
from claimbench.backends import transformers as backend
from claimbench.checkpoints import counting, loaded_model
from claimbench.cost_model import cost
from claimbench.hf import weight_memory
from claimbench.schema.card import Card
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.cell import Cell, Checkpoint, Workload

pytestmark = [pytest.mark.model, pytest.mark.wide]

LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
ROUTED = {"num_key_value_heads": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
MIXTURES: dict[str, dict[str, Any]] = {
    "afmoe": {},
    "aria_text": {"moe_num_experts": 8},
    "cohere2_moe": {},
    "exaone_moe": {},
    "flex_olmo": {},
    "glm4_moe_lite": LATENT | ROUTED,
    "granitemoeshared": {},
    "hunyuan_v1_moe": {},
    "jamba": {"mamba_dt_rank": 4, "attn_layer_offset": 1, "attn_layer_period": 2, "use_mamba_kernels": False},
    "jetmoe": {"kv_channels": 16},
    "llama4_text": {"interleave_moe_layer_step": 1, "intermediate_size_mlp": 128},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe", "mlp"], "n_groups": 1, "mamba_num_heads": 8},
    "solar_open": {},
}
"""More of them: each keeps its experts in a way of its own. The tiny configs of the other kinds are in `models.py`."""
SEES: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {**SMALL, "model_type": "gemma3_text", "query_pre_attn_scalar": 16},
    "vision_config": {
        **{"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "image_size": 56, "patch_size": 14},
    },
    "mm_tokens_per_image": 4,
}


READ_EVERY_EXPERT = ("jetmoe", "llama4", "llama4_text")
"""In Transformers, outside of compiled kernels: more than the bound, which is of the mathematics."""


class Reads(TorchDispatchMode):
    """Which values that were there before are read: an embedding's rows aside, a view of a tensor is no read of it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[int] = set()
        self.read: dict[int, tuple[Any, torch.Tensor]] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [one for one in tree_leaves((args, kwargs or {})) if isinstance(one, torch.Tensor)]
        if not operator.is_view and operator.overloadpacket is not torch.ops.aten.embedding:
            for tensor in inputs:
                self._note(tensor)
        given = operator(*args, **(kwargs or {}))
        there = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        outputs = [one for one in tree_leaves(given) if isinstance(one, torch.Tensor)]
        self.made |= {one.untyped_storage().data_ptr() for one in outputs} - there
        return given

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.made or not tensor.numel():
            return
        with _disable_current_modes():
            values = storage.nbytes() // tensor.element_size()
            _, seen = self.read.setdefault(storage.data_ptr(), (storage, torch.zeros(values, dtype=torch.bool)))
            torch.as_strided(seen, tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)

    def begin(self) -> None:
        """Forget what was read; all that there is now was there before."""
        self.read.clear()
        self.made.clear()

    def values_of(self, model: Any) -> int:
        """Parameters that were read, each once."""
        addresses = {one.untyped_storage().data_ptr() for one in model.parameters()}
        return sum(int(seen.sum()) for at, (_, seen) in self.read.items() if at in addresses)

    @property
    def nbytes(self) -> int:
        """Of all that was read: weights, caches and buffers."""
        with _disable_current_modes():
            parts = self.read.values()
            return sum(int(seen.sum()) * (storage.nbytes() // max(1, len(seen))) for storage, seen in parts)


class Tiny:
    def __init__(self, config: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        torch.manual_seed(0)
        causal = type(config) in AutoModelForCausalLM._model_mapping
        family = AutoModelForCausalLM if causal else AutoModelForImageTextToText
        self.model = family.from_config(config, attn_implementation="eager", experts_implementation="eager").eval()
        self.card = counting.count(config.to_dict())

    def step_reads(self) -> int:
        """Parameters that one step over one token behind eight reads."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        kept: dict[str, Any] = {"use_cache": True, counting.cache_argument(self.model): cache}
        reads = Reads()
        with torch.no_grad():
            self.model(input_ids=torch.arange(8)[None], **kept)
            with reads:
                self.model(input_ids=torch.tensor([[5]]), **kept)
        return reads.values_of(self.model)


@pytest.fixture(scope="module", params=KINDS)
def tiny(request: pytest.FixtureRequest) -> Iterator[Tiny]:
    yield Tiny(tiny_config(request.param))
    gc.collect()


def mixture(kind: str) -> Any:
    return tiny_config(kind, **MIXTURES[kind])


def test_a_step_reads_the_parameters_that_are_counted(tiny: Tiny) -> None:
    """Neither more nor fewer: of a mixture those of the experts that the token passed through, of tables none."""
    if tiny.card.model_type in READ_EVERY_EXPERT:
        assert tiny.step_reads() == tiny.card.weights - tiny.card.looked_up - tiny.card.towers
    else:
        assert tiny.step_reads() == tiny.card.step_weights


def test_bytes_of_a_loaded_model_are_those_that_are_counted(tiny: Tiny) -> None:
    held, read = weight_memory.weight_bytes(tiny.model)
    buffers = sum(one.nbytes for one in tiny.model.buffers())
    assert (held - buffers, read) == (4 * tiny.card.weights, 4 * tiny.card.step_weights)


@pytest.mark.parametrize("kind", MIXTURES)
def test_no_step_of_any_mixture_reads_less_than_its_bound(kind: str) -> None:
    """Some implementations multiply with every expert, or with the zero that one weighs: they read more."""
    made = Tiny(mixture(kind))
    assert made.card.experts is not None
    assert made.card.experts.active < made.card.experts.count
    assert made.card.step_weights < made.card.weights - made.card.looked_up
    assert made.step_reads() >= made.card.step_weights
    assert weight_memory.weight_bytes(made.model)[1] == pytest.approx(4 * made.card.step_weights, abs=4)


def test_a_tower_is_held_and_never_read_by_a_pass_over_text() -> None:
    made = Tiny(counting.completed(SEES))
    own = sum(one.numel() for part in ("vision_tower", "multi_modal_projector") for one in part_of(made.model, part))
    assert made.card.towers == own > 0
    assert made.step_reads() == made.card.step_weights
    assert weight_memory.weight_bytes(made.model)[1] == 4 * made.card.step_weights


def part_of(model: Any, name: str) -> Iterator[Any]:
    return (one for each, one in model.named_parameters() if f".{name}." in f".{each}")


@pytest.mark.parametrize("tokens", [8, 48, 80])
def test_caches_hold_what_is_counted_before_and_behind_the_end_of_a_window(tiny: Tiny, tokens: int) -> None:
    from transformers import DynamicCache

    cache = DynamicCache(config=tiny.model.config.get_text_config(decoder=True))
    with torch.no_grad():
        kept = {counting.cache_argument(tiny.model): cache}
        tiny.model(input_ids=torch.arange(tokens)[None] % 250, use_cache=True, **kept)
    assert sum(counting._held(layer) for layer in cache.layers) == tiny.card.kept_values(tokens) > 0


PADDED, CHUNKS = 1.001, 10.0
"""A convolution runs over the padding too; a scan is made in chunks, whole squares of them, whatever the length is."""
TORCH_MULTIPLIES_MORE = {
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba"), PADDED),
    **dict.fromkeys(("mamba2", "bamba", "falcon_h1", "granitemoehybrid", "nemotron_h"), CHUNKS),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "olmo_hybrid"), 1.3),  # the same, in chunks of 64
    "recurrent_gemma": 1.1,  # gates of blocks, which are no matrices
    "gemma3n_text": 1.3,  # the residual stream is several, and each layer mixes them
    **dict.fromkeys(("llama4", "llama4_text"), 2.1),  # every expert multiplies
}
"""By how much at most: a recurrence needs none of these products, so the bound leaves them out."""


def test_operations_of_a_prompt_are_those_that_torch_counts(tiny: Tiny) -> None:
    """Torch multiplies the whole square of queries and keys, whatever is masked; ours are the pairs that are seen."""
    tokens, card = 64, tiny.card
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tiny.model(input_ids=torch.arange(tokens)[None], use_cache=False)
    square = sum(each.layers * each.query_values * tokens**2 for each in card.kept or ())
    ours = cost.pass_flops(card, 1, tokens, past=0) + 2 * (square - card.attention_products(tokens, 0))
    more = TORCH_MULTIPLIES_MORE.get(card.model_type)
    if more is None:
        assert counter.get_total_flops() == ours
    else:
        assert ours < counter.get_total_flops() < more * ours


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_of_a_session_moves_fewer_bytes_than_its_ceiling(kind: str, tmp_path: Path) -> None:
    """Through the backend's own session and the ceiling of its cell: at one byte a second, seconds are bytes."""
    save(kind, tmp_path)
    save_tokenizer(tmp_path)
    card = loaded_model.decoder_in(tmp_path, Checkpoint(name="tiny", source="file://tiny"))
    assert isinstance(card, Card)
    cell = Cell(
        checkpoint=Checkpoint(name="tiny", source="file://tiny", card=card),
        backend="transformers",
        workload=Workload(prompt="hello " * 30, new_tokens=8, batch=2),
        device="cpu",
    )
    session = backend.load(cell, tmp_path, None)
    moved = list(step_bytes(session))
    slow = Ceilings(read_bytes_per_s=1.0, matmul_flops_per_s={"float32": 1e30})
    limit = roofline.step_ms(cell, slow, session.prompt_tokens, session.memory())
    session.close()
    assert len(moved) == 7
    assert limit is not None
    assert sum(moved) / len(moved) >= limit / 1e3 > 4 * card.step_weights


def step_bytes(session: Any) -> Iterator[int]:
    """What each decode step reads of what was there before it."""
    with Reads() as reads:
        for number, _ in enumerate(session.generate()):
            if number:
                yield reads.nbytes
            reads.begin()


@pytest.mark.parametrize("window", [2, 8, 12, 16])
def test_a_window_that_ends_before_the_passes_that_count_it_is_counted_as_well(window: int) -> None:
    from transformers import DynamicCache

    made = Tiny(tiny_config("mistral", sliding_window=window))
    for tokens in (1, 8, 48):
        cache = DynamicCache(config=made.model.config)
        with torch.no_grad():
            made.model(input_ids=torch.arange(tokens)[None], past_key_values=cache, use_cache=True)
        assert sum(counting._held(layer) for layer in cache.layers) == made.card.kept_values(tokens) > 0
