"""A GGUF file of any architecture that Transformers reads, by its reader's own parts, one tensor in memory at a time.

The library's loader makes the whole model in float32 in memory, and refuses to save what it made. Its parts do not:
the config, the map of names (of a model on the meta device), and for each architecture a processor that undoes what
GGUF's writer did to a tensor (the order of rotary pairs, norms one larger).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claimbench.checkpoints import counting
from claimbench.checkpoints.safetensors_file import StreamedTensor
from claimbench.cost_model.cost import ModelConfig
from claimbench.errors import SourceError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ALONE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Factors of rotary positions that a config has as settings, and a file as tensors."""


def read(path: Path) -> tuple[ModelConfig, None, list[StreamedTensor]]:
    """The config of the file at `path`, no architecture with a table of tensors, and its tensors, not yet read.

    Raises:
        SourceError: Transformers does not read this architecture, or some tensor of the file has no place in the model.
    """
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
        load_gguf_checkpoint,
    )

    try:
        config = dict(load_gguf_checkpoint(str(path))["config"])
        reader = GGUFReader(path)
        model = counting.meta_model(config)
        architecture = str(reader.fields["general.architecture"].contents())
        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config)
        names = get_gguf_hf_weights_map(model, processor)
    except SourceError:
        raise
    except Exception as error:  # a converter of another library: anything it raises means that it cannot
        raise SourceError(f"{path}: Transformers does not read it ({str(error).splitlines()[0]})") from error
    expected = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    unknown = [one.name for one in reader.tensors if one.name not in names]
    if unknown:
        why = ": scaled rotary positions are not taken from a GGUF" if unknown[0] in ALONE else ""
        raise SourceError(f"{path}: {unknown[0]} has no place in the model that Transformers makes of it{why}")
    found = [
        StreamedTensor(names[one.name], "F32", expected[names[one.name]], _chunks(path, one, processor, names))
        for one in reader.tensors
    ]
    twice = len(found) - len({one.name for one in found})
    if twice:
        raise SourceError(f"{path}: experts that are stored apart are not joined: use the original checkpoint")
    return config | {"model_type": model.config.model_type}, None, found


def _chunks(path: Path, tensor: Any, processor: Any, names: dict[str, str]) -> Callable[[], Iterator[memoryview]]:
    def chunks() -> Iterator[memoryview]:
        import numpy as np
        from gguf.quants import dequantize

        try:
            values: npt.NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise SourceError(f"{path}: {tensor.name}: {error}") from error
        made = processor.process(values, tensor.name, tensor_key_mapping=names, parsed_parameters={"tensors": {}})
        yield np.ascontiguousarray(made.weights, dtype="<f4").data.cast("B")

    return chunks
