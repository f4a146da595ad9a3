"""Bytes of a model's weights: those that it holds, and those that a decode step reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from claimbench.checkpoints.counting import layers_of
from claimbench.checkpoints.mixtures import expert_modules, experts_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def _storage_type(parameter: Tensor) -> str:
    """Class and type of what is stored: a torchao weight calls itself float32 and holds int8."""
    inner = list(inner_tensors(parameter))
    return f"{type(parameter).__name__} {str(max(inner, key=lambda part: part.nbytes).dtype).removeprefix('torch.')}"


def inner_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a weight is stored in: packed values, scales, zero points."""
    import torch

    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None and type(tensor) is not torch.nn.Parameter:
        for part in (getattr(tensor, name) for name in flatten()[0]):
            if isinstance(part, torch.Tensor):  # a distributed one names its mesh of devices as well
                yield from inner_tensors(part)
        return
    yield tensor.data
    for extra in vars(tensor).values():
        yield from _tensors_in(extra)


def _tensors_in(thing: object, depth: int = 2) -> Iterator[Tensor]:
    """Tensors that a quantization state holds, such as the scales of a bitsandbytes weight."""
    import torch

    if isinstance(thing, torch.Tensor):
        yield thing
    elif depth and type(thing).__name__ in ("QuantState", "MatmulLtState"):
        for value in vars(thing).values():
            yield from _tensors_in(value, depth - 1)


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address -> bytes of each storage, shared ones once; a meta tensor has none."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type != "meta"]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _parts(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address -> bytes of each tensor: a device's part of a matrix may be a view of the whole one's storage."""
    return {tensor.data_ptr(): tensor.nbytes for tensor in tensors if tensor.device.type != "meta"}


def weight_bytes(model: PreTrainedModel) -> tuple[int, int]:
    """Bytes that the model holds, buffers included, and bytes of weights that one decode step reads at least.

    A step looks up one row of an embedding and reads all of everything else; an embedding that is also the output head
    is read. Of a mixture's experts it reads those of one token, and of a model that sees or hears, the language's part.
    """
    import torch

    held: dict[int, int] = {}
    read: dict[int, int] = {}
    for module in model.modules():
        weights = list(_weights_of(module))
        held |= _storages([*weights, *module.buffers(recurse=False)])
        if not isinstance(module, torch.nn.Embedding):
            read |= _parts(weights)
    return sum(held.values()), int(sum(read.values()) - _unread_bytes(model, read))


def narrow_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights that are held in a type narrower than what is computed in, as quantized ones are."""
    import torch

    wide = {torch.float32, torch.bfloat16, torch.float16, torch.float64}
    parts = [part for weight in model.parameters() for part in inner_tensors(weight)]
    parts += [one for module in model.modules() if hasattr(module, "in_features") for one in module.buffers(False)]
    return sum(_storages(part for part in parts if part.dtype not in wide and part.dim() > 1).values())


def _packed(module: nn.Module) -> Iterator[Tensor]:
    """Some quantized layers (AWQ, GPTQ) hold their packed matrix as a buffer, and no parameter at all."""
    if hasattr(module, "in_features") and not any(True for _ in module.parameters(recurse=False)):
        yield from (one for one in module.buffers(recurse=False) if one.dim() > 1)


def _weights_of(module: nn.Module, recurse: bool = False) -> Iterator[Tensor]:
    for one in module.modules() if recurse else [module]:
        for weight in one.parameters(recurse=False):
            yield from inner_tensors(weight)
        yield from _tensors_in(getattr(one, "state", None))
        yield from _packed(one)


def _unread_bytes(model: PreTrainedModel, read: dict[int, int]) -> float:
    """Of what lies in other modules than embeddings, what a step over one token of text leaves out."""
    text = model.config.get_text_config(decoder=True)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    language = _parts(one for part in (decoder, head) if part is not None for one in _weights_of(part, recurse=True))
    towers = sum(size for address, size in read.items() if address not in language)
    layers = layers_of(decoder, text)
    mixture = experts_of(layers, text)
    if mixture is None:
        return towers
    experts = sum(sum(_parts(_weights_of(module, recurse=True)).values()) for module in expert_modules(layers))
    return towers + experts * mixture.idle_share
