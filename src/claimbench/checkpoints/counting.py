"""A `config.json` -> the numbers of its model, counted from Transformers' own modules without a single value of them.

The model is built on torch's meta device, where tensors have shapes and no memory. Two passes over shapes alone tell
what each layer keeps: what grows from one to the other is kept for each token, the rest is a state. Experts are left
out of these passes, since which of them a token takes is a value.

    echo '{"config": {...}, "keep_layers": null}' | python -m claimbench.checkpoints.counting

prints a card, or says why there is none.
"""

from __future__ import annotations

import inspect
import json
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from claimbench.checkpoints import quantized
from claimbench.checkpoints.mixtures import experts_of
from claimbench.checkpoints.model_config import method_of, with_floats, with_layers
from claimbench.cost_model import cost
from claimbench.cost_model.cost import ModelConfig
from claimbench.errors import SourceError
from claimbench.schema.card import Card, KeptLayers

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

VERSION = 5
"""Raise it when what is counted changes: cards are remembered."""
MOST_BYTES = 16 << 30
SHORT, LONG = 8, 16
"""Tokens of the two passes."""
NOT_COUNTED = ("quantization_config", "auto_map", "_name_or_path", "transformers_version", "dtype", "torch_dtype")


def count(config: ModelConfig, keep_layers: int | None = None) -> Card:
    """The card of the model that `config` describes, or of its first layers.

    Raises:
        SourceError: Transformers knows no such model, or not with these numbers.
    """
    model = meta_model(with_layers(config, keep_layers) if keep_layers else config)
    text = model.config.get_text_config(decoder=True)
    text.allow_global_per_layer_attribute_access = True  # of heads that differ, the config's own width will do
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    language = _parameters(decoder) | (_parameters(head) if head is not None else {})
    everything = _parameters(model)
    layers = layers_of(decoder, text)
    in_layers = {id: one for layer in layers for id, one in _parameters(layer).items()}
    stored = quantized.stored_format(config)
    return Card(
        model_type=str(config["model_type"]),
        layers=len(layers),
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        context=getattr(text, "max_position_embeddings", None),
        weights=_values(everything),
        looked_up=_values(_looked_up(decoder, head)),
        towers=_values({id: one for id, one in everything.items() if id not in language}),
        in_layers=_values(in_layers),
        matrices=_values(_matrices(layers)),
        largest=max(one.numel() for one in everything.values()),
        widest=max((_widest(layer) for layer in layers), default=0),
        experts=experts_of(layers, text),
        stored=stored,
        shape=None if stored else _shape(config, _values(everything)),
        kept=_kept(model, text),
        quantized=method_of(config),
    )


def completed(config: ModelConfig) -> PreTrainedConfig:
    """A `config.json` as Transformers completes it.

    Raises:
        SourceError: Transformers knows no such model, or not with these settings.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise SourceError("config.json: expected a mapping with a model_type")
    if kind not in CONFIG_MAPPING:
        raise SourceError(f"config.json: Transformers {transformers.__version__} knows no model_type {kind!r}")
    try:
        made: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(
            {key: with_floats(value) for key, value in config.items() if key not in NOT_COUNTED}
        )
    except Exception as error:  # a library's own checks: whatever it raises means that it cannot
        version = transformers.__version__
        raise SourceError(f"config.json: Transformers {version} cannot read it: {_first_line(error)}") from error
    return made


def meta_model(config: ModelConfig) -> PreTrainedModel:
    """The model of `config` on the meta device.

    Raises:
        SourceError: Transformers knows no such model, or not with these numbers.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    made, kind = completed(config), config["model_type"]
    families = (AutoModelForCausalLM, AutoModelForImageTextToText)
    known = next((each for each in families if type(made) in each._model_mapping), None)
    if known is None:
        raise SourceError(
            f"config.json: model_type {kind!r} generates no text in Transformers {transformers.__version__}"
        )
    try:
        with torch.device("meta"):
            model: PreTrainedModel = known.from_config(made, attn_implementation="eager").eval()
    except Exception as error:  # as above
        raise SourceError(f"config.json: no model can be made of it: {_first_line(error)}") from error
    return model


def layers_of(decoder: nn.Module, text: PreTrainedConfig) -> list[nn.Module]:
    """The decoder's layers: the first list of as many modules as the config has layers, or that is called so.

    Some configs count each half of a layer, since each has a cache of its own.

    Raises:
        SourceError: there is none.
    """
    import torch

    lists = {name: one for name, one in decoder.named_modules() if isinstance(one, torch.nn.ModuleList)}
    for module in lists.values():
        if len(module) == text.num_hidden_layers:
            return list(module)
    if "layers" in lists:
        return list(lists["layers"])
    raise SourceError(f"config.json: found no list of {text.num_hidden_layers} layers in {type(decoder).__name__}")


def _parameters(module: nn.Module) -> dict[int, Tensor]:
    """By identity: a shared one comes once."""
    return {id(one): one for one in module.parameters()}


def _values(tensors: dict[int, Tensor]) -> int:
    return sum(one.numel() for one in tensors.values())


def _matrices(layers: list[nn.Module]) -> dict[int, Tensor]:
    """Of the layers' parameters, what is multiplied: experts' biases have two dimensions and are none."""
    named = (pair for layer in layers for pair in layer.named_parameters())
    return {id(one): one for name, one in named if one.dim() > 1 and not name.endswith("bias")}


def _looked_up(decoder: nn.Module, head: nn.Module | None) -> dict[int, Tensor]:
    """Embeddings that are not the head as well: of tokens, of positions, of layers."""
    import torch

    read = _parameters(head) if head is not None else {}
    tables = [module for module in decoder.modules() if isinstance(module, torch.nn.Embedding)]
    return {id: one for table in tables for id, one in _parameters(table).items() if id not in read}


def _widest(layer: nn.Module) -> int:
    """Outputs of the widest matrix of a layer: an activation that is held while the next product runs, at least."""
    import torch

    return max((one.out_features for one in layer.modules() if isinstance(one, torch.nn.Linear)), default=0)


def _shape(config: ModelConfig, weights: int) -> dict[str, int | bool | str | tuple[str, ...]] | None:
    """The `Architecture` of a dense decoder of a family that has a formula, where that counts the same weights."""
    try:
        found = cost.parse(config)
    except (KeyError, TypeError, ZeroDivisionError):
        return None
    windowed = config.get("sliding_window") and config.get("use_sliding_window", True)
    return found._asdict() if found.weights == weights and not windowed else None


def _kept(model: PreTrainedModel, text: PreTrainedConfig) -> tuple[KeptLayers, ...] | None:
    """What the layers keep, equal neighbours as one; None where it is not known.

    Some models ask for a value on the way, and a pass over shapes has none. Those whose layers all attend to
    everything keep what their heads say.
    """
    try:
        with _without_experts(model):
            short, long = (_cache_after(model, text, tokens) for tokens in (SHORT, LONG))
    except Exception:  # whatever a model's code raises without values
        if any(getattr(text, name, None) for name in ("layer_types", "kv_lora_rank", "sliding_window")):
            return None
        heads = text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
        values = 2 * (getattr(text, "num_key_value_heads", None) or heads) * width
        return (KeptLayers(layers=text.num_hidden_layers, token_values=values, query_values=_query_values(text)),)
    return tuple(_as_kept(short, long, text))


def _as_kept(short: list[Any], long: list[Any], text: PreTrainedConfig) -> Iterator[KeptLayers]:
    """From the layers of the caches behind `SHORT` and `LONG` tokens."""
    products = _query_values(text) if getattr(text, "num_attention_heads", None) else 0
    before: KeptLayers | None = None
    for least, most in zip(short, long, strict=True):
        said = getattr(most, "sliding_window", None)
        window = said if isinstance(said, int) and said > 0 else None
        each = (_held(most) - _held(least)) // (LONG - SHORT)
        if window is not None:  # which may end before the longer pass does
            each = _held(least) // max(1, min(SHORT, window - 1))
        now = KeptLayers(
            layers=1,
            token_values=each,
            fixed_values=max(0, _held(least) - each * SHORT) if window is None else 0,
            window=window,
            query_values=products if each else 0,
        )
        if before is not None and now == before.model_copy(update={"layers": 1}):
            before = before.model_copy(update={"layers": before.layers + 1})
            continue
        if before is not None:
            yield before
        before = now
    if before is not None:
        yield before


def _query_values(text: PreTrainedConfig) -> int:
    """Multiply-adds for each pair of a query and a key in a layer: of the keys' width and of the values'."""
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    of_keys = (getattr(text, "qk_nope_head_dim", 0) or 0) + (getattr(text, "qk_rope_head_dim", 0) or 0)
    of_values = getattr(text, "v_head_dim", 0) or 0
    return int(heads * ((of_keys or width) + (of_values or width)))


def _cache_after(model: PreTrainedModel, text: PreTrainedConfig, tokens: int) -> list[Any]:
    """Layers of the cache behind a pass over `tokens` tokens."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=text)
    ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    with torch.no_grad():
        model(input_ids=ids, use_cache=True, **{cache_argument(model): cache})
    return list(cache.layers)


def cache_argument(model: PreTrainedModel) -> str:
    """What the model's pass calls its cache: those with states alone have a name of their own for it."""
    taken = inspect.signature(model.forward).parameters
    return "cache_params" if "cache_params" in taken and "past_key_values" not in taken else "past_key_values"


def _held(layer: object) -> int:
    """Values that a layer of a cache holds for one row."""
    import torch

    found = 0
    for thing in vars(layer).values():
        parts = thing.values() if isinstance(thing, dict) else [thing]
        found += sum(one.numel() for one in parts if isinstance(one, torch.Tensor) and one.is_floating_point())
    return found


@contextmanager
def _without_experts(model: PreTrainedModel) -> Iterator[None]:
    """Which experts a token takes is a value, and there are none: hidden states pass them by."""
    import torch

    def pass_by(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return hidden_states

    stubbed: list[nn.Module] = []
    for module in model.modules():
        experts = getattr(module, "experts", None)
        if isinstance(experts, torch.nn.Module):
            stubbed.append(module if isinstance(experts, torch.nn.ModuleList) else experts)
    for module in stubbed:
        module.forward = pass_by
    try:
        yield
    finally:
        for module in stubbed:
            module.__dict__.pop("forward", None)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def bound_memory() -> None:
    """Shapes take little; what a mistaken config asks for is stopped there."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))


def main() -> int:
    bound_memory()
    request = json.load(sys.stdin)
    try:
        card = count(request["config"], request["keep_layers"])
    except ValidationError as error:
        first = error.errors()[0]
        print(f"config.json: {'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']}", file=sys.stderr)
        return 1
    except (SourceError, ValueError) as error:
        print(_first_line(error) if isinstance(error, ValueError) else error, file=sys.stderr)
        return 1
    print(card.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
