"""Weights from a seed: for the speed of shapes whose trained weights cannot be had.

Each tensor has its own generator, seeded by the seed and the tensor's name, so its values do not depend on how the
checkpoint is cut into files or on how many of its layers are kept. Values come in chunks: memory stays at one chunk.

Sizes are chosen so that activations stay near 1 in half precision at any depth. A matrix has standard deviation
1/sqrt(inputs), so a normalised input gives outputs of variance 1. The two matrices of a layer that write to the
residual stream are smaller by 1/sqrt(2 x layers), so all layers together add a variance of about 1 (GPT-2's rule). The
embedding keeps the config's `initializer_range`, so the stream is dominated by the layers and not by a copy of the
last token. A head of its own counts as a matrix. Norms are 1, biases 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from math import prod, sqrt

import numpy as np
import numpy.typing as npt

from claimbench.checkpoints import counting
from claimbench.checkpoints.safetensors_file import DTYPE_OF, StreamedTensor
from claimbench.checkpoints.sources import RandomSource
from claimbench.checkpoints.tensors import shapes
from claimbench.cost_model.cost import Architecture, ModelConfig

CHUNK_VALUES = 1 << 24
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "wpe.weight", "word_embeddings.weight")
_RESIDUAL = (
    "o_proj.weight",
    "down_proj.weight",
    "c_proj.weight",
    "self_attention.dense.weight",
    "dense_4h_to_h.weight",
)


def tensors(source: RandomSource, arch: Architecture, initializer_range: float) -> list[StreamedTensor]:
    """Every tensor of `arch`, unmade until its chunks are asked for."""
    made = []
    for name, shape in shapes(arch).items():
        chunks = _chunks(source, name, prod(shape), _spread(arch, name, shape, initializer_range))
        made.append(StreamedTensor(name, DTYPE_OF[source.dtype], shape, chunks))
    return made


def of_any(source: RandomSource, config: ModelConfig) -> list[StreamedTensor]:
    """Every tensor of the model that `config` describes, by the names that Transformers gives them."""
    import torch

    model = counting.meta_model(config)
    text = model.config.get_text_config(decoder=True)
    tables = {id(one.weight) for one in model.modules() if isinstance(one, torch.nn.Embedding)}
    initial = float(getattr(text, "initializer_range", None) or 0.02)
    made = []
    for name, parameter in model.named_parameters():  # a shared one comes once
        shape = tuple(parameter.shape)
        if id(parameter) in tables:
            spread: float | None = initial
        elif len(shape) == 1:
            spread = None
        else:
            spread = 1 / sqrt(shape[-1])
            if name.endswith(_RESIDUAL):
                spread /= sqrt(2 * text.num_hidden_layers)
        made.append(StreamedTensor(name, DTYPE_OF[source.dtype], shape, _chunks(source, name, prod(shape), spread)))
    return made


def _spread(arch: Architecture, name: str, shape: tuple[int, ...], initializer_range: float) -> float | None:
    """Standard deviation of a tensor's values; None for vectors, which are constant."""
    if len(shape) == 1:
        return None
    if name.endswith(_EMBEDDINGS):
        return initializer_range
    spread = 1 / sqrt(shape[1])
    return spread / sqrt(2 * arch.layers) if name.endswith(_RESIDUAL) else spread


def _chunks(source: RandomSource, name: str, values: int, spread: float | None) -> Callable[[], Iterator[memoryview]]:
    def chunks() -> Iterator[memoryview]:
        if spread is None:
            constant = 0.0 if name.endswith(".bias") else 1.0
            yield encode(np.full(values, constant, dtype=np.float32), source.dtype)
            return
        seed = hashlib.sha256(f"{source.seed}/{name}".encode()).digest()[:16]
        generator = np.random.Generator(np.random.SFC64(int.from_bytes(seed, "little")))
        for begin in range(0, values, CHUNK_VALUES):
            drawn = generator.standard_normal(min(CHUNK_VALUES, values - begin), dtype=np.float32)
            drawn *= np.float32(spread)
            yield encode(drawn, source.dtype)

    return chunks


def encode(values: npt.NDArray[np.float32], dtype: str) -> memoryview:
    """float32 `values` as the bytes of `dtype`, rounded to nearest, ties to even."""
    if dtype == "float16":
        return values.astype("<f2").data.cast("B")
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        return (rounded >> np.uint32(16)).astype("<u2").data.cast("B")
    return values.astype("<f4", copy=False).data.cast("B")
