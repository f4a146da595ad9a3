"""A GGUF file of any architecture that Transformers reads, by its reader's own parts, one tensor in memory at a time.

The library's loader makes the whole model in float32 in memory, and refuses to save what it made. Its parts do not:
the map of names (of a model on the meta device), and for each architecture a processor that undoes what GGUF's writer
did to a tensor (the order of rotary pairs, norms one larger). Quantized values are written as float32, which holds them
exactly, and those in half precision as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claimbench.checkpoints import counting, gguf, gguf_config, gguf_rotary
from claimbench.checkpoints.gguf import Header, Stored, dequantized
from claimbench.checkpoints.safetensors_file import StreamedTensor
from claimbench.cost_model.cost import ModelConfig
from claimbench.errors import SourceError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedModel

KEPT = {"F16": "F16", "BF16": "BF16"}
"""Kinds of matrices that are stored as they come, as safetensors calls them."""


def read(path: Path) -> tuple[ModelConfig, list[StreamedTensor]]:
    """The config of the file at `path` and its tensors, not yet read.

    Raises:
        SourceError: Transformers does not read this architecture, or file and model do not have the same tensors.
    """
    from transformers import modeling_gguf_pytorch_utils as theirs

    header = gguf.read(path)
    config = gguf_config.of(header)
    model = counting.meta_model(config)
    processor = theirs.TENSOR_PROCESSORS.get(header.architecture, theirs.TensorProcessor)(config=config)
    try:
        names = theirs.get_gguf_hf_weights_map(model, processor)
    except Exception as error:  # a converter of another library: anything it raises means that it cannot
        raise gguf_config.unread(path, error) from error
    gguf_rotary.require_rotated(header, model)
    groups, shapes = _grouped(header, names), _expected(model)
    missing = [name for name in shapes if name not in groups]
    if missing:
        raise SourceError(f"{path}: the tensor {missing[0]} of the model is missing ({len(missing)} in all)")
    return config, [_tensor(header, name, group, shapes, processor, names) for name, group in groups.items()]


def _grouped(header: Header, names: dict[str, str]) -> dict[str, list[Stored]]:
    """The file's tensors by the name of the model's tensor that they are, or are parts of."""
    groups: dict[str, list[Stored]] = {}
    for stored in header.tensors:
        if stored.name in gguf_rotary.ROTARY_TABLES:
            continue
        name = names.get(stored.name) or names.get(stored.name.removesuffix(".weight"))
        if name is None:
            raise SourceError(f"{header.path}: {stored.name} has no place in the model that Transformers makes of it")
        groups.setdefault(name, []).append(stored)
    return groups


def _expected(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that a checkpoint of the model must have; a shared one comes once."""
    kept = model.state_dict().keys()
    buffers = {name: one for name, one in model.named_buffers() if name in kept}
    return {name: tuple(one.shape) for name, one in (*model.named_parameters(), *buffers.items())}


def _tensor(
    header: Header,
    name: str,
    group: list[Stored],
    shapes: dict[str, tuple[int, ...]],
    processor: Any,
    names: dict[str, str],
) -> StreamedTensor:
    """The model's tensor `name`, of one tensor of the file or, where experts' matrices are fused, of several."""
    if name not in shapes:
        raise SourceError(f"{header.path}: {group[0].name} has no place in the model that Transformers makes of it")
    kind = KEPT.get(group[0].kind, "F32") if len(group) == 1 and len(group[0].shape) > 1 else "F32"

    def chunks() -> Iterator[memoryview]:
        values = _processed(header.path, name, group, processor, names)
        if values.shape != shapes[name]:
            raise SourceError(
                f"{header.path}: {group[0].name}: expected shape {shapes[name]} of {name}, arrived {values.shape}"
            )
        yield _encoded(values, kind)

    return StreamedTensor(name, kind, shapes[name], chunks)


def _processed(
    path: Path, name: str, group: list[Stored], processor: Any, names: dict[str, str]
) -> npt.NDArray[np.float32]:
    whole: dict[str, dict[str, Any]] = {"tensors": {}}
    for stored in group:
        made = processor.process(
            dequantized(path, stored), stored.name, tensor_key_mapping=names, parsed_parameters=whole
        )
        if made.name is not None:
            result: npt.NDArray[np.float32] = made.weights
            return result
    joined: npt.NDArray[np.float32] = whole["tensors"][name].numpy()
    return joined


def _encoded(values: npt.NDArray[np.float32], kind: str) -> memoryview:
    import numpy as np

    if kind == "F16":
        return np.ascontiguousarray(values, dtype="<f2").data.cast("B")
    whole = np.ascontiguousarray(values, dtype="<f4")
    if kind == "BF16":
        return (whole.view("<u4") >> np.uint32(16)).astype("<u2").data.cast("B")
    return whole.data.cast("B")
