"""A GGUF file as Transformers' tensors: names mapped, values dequantized to float32, one tensor in memory at a time.

GGUF's writer reorders the rows of the query and key matrices of Llama models, from Transformers' order (all first
halves of a head's rotary pairs, then all second halves) to neighbouring pairs. Reading must undo that.
Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py, `LlamaModel.permute`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from claimbench.checkpoints.safetensors_file import StreamedTensor
from claimbench.cost_model.cost import Architecture, ModelConfig
from claimbench.errors import SourceError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from gguf.gguf_reader import ReaderTensor

TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GgufFile:
    """An opened GGUF file of the Llama family (Mistral files are of it too)."""

    def __init__(self, path: Path) -> None:
        """Reads the metadata; tensors stay on disk.

        Raises:
            SourceError: the file is cut short or not GGUF.
        """
        from gguf import GGUFReader

        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (ValueError, KeyError, IndexError, OverflowError, MemoryError, struct.error) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise SourceError(f"{path}: not a whole GGUF file ({reason}): delete it and run again") from error

    @property
    def family(self) -> object:
        return self._value("general.architecture")

    def bytes_by_dtype(self) -> dict[str, int]:
        """Of all tensors, by the name that GGUF gives their type."""
        found: dict[str, int] = {}
        for tensor in self._reader.tensors:
            found[tensor.tensor_type.name] = found.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
        return found

    def _value(self, key: str) -> object:
        """What the metadata says under `key`, of the type that its writer chose; None where it says nothing."""
        field = self._reader.fields.get(key)
        return None if field is None else field.contents()

    def _number(self, key: str, default: float | None = None) -> float:
        """The number under `key`, or `default` where there is none.

        Raises:
            SourceError: there is neither, or something else than a number is there.
        """
        value = self._value(key)
        if value is None:
            value = default
        if value is None:
            raise SourceError(f"{self.path}: expected the metadata key {key}, which is missing")
        if not isinstance(value, int | float):
            raise SourceError(f"{self.path}: {key}: expected one number, got {value!r}: use the original checkpoint")
        return value

    def config(self) -> ModelConfig:
        """The Transformers config that the metadata stands for.

        Raises:
            SourceError: another family, or a feature that the Llama family's tensors do not show.
        """
        family = self._value("general.architecture")
        if family != "llama":
            raise SourceError(f"{self.path}: expected a GGUF file of the llama family, got {family!r}")
        names = {tensor.name for tensor in self._reader.tensors}
        for key, allowed in (("llama.expert_count", (None, 0)), ("llama.rope.scaling.type", (None, "none"))):
            if self._value(key) not in allowed:
                raise SourceError(
                    f"{self.path}: {key} = {self._value(key)!r} is not supported: use the original checkpoint"
                )
        if "rope_freqs.weight" in names:
            raise SourceError(f"{self.path}: scaled rotary frequencies are not supported: use the original checkpoint")
        heads = int(self._number("llama.attention.head_count"))
        hidden = int(self._number("llama.embedding_length"))
        embedding = next((tensor for tensor in self._reader.tensors if tensor.name == "token_embd.weight"), None)
        if embedding is None:
            raise SourceError(f"{self.path}: expected a tensor token_embd.weight, which is missing")
        config: ModelConfig = {
            "model_type": "llama",
            "attention_bias": False,
            "mlp_bias": False,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": int(self._number("llama.feed_forward_length")),
            "max_position_embeddings": int(self._number("llama.context_length")),
            "num_attention_heads": heads,
            "num_hidden_layers": int(self._number("llama.block_count")),
            "num_key_value_heads": int(self._number("llama.attention.head_count_kv", heads)),
            "head_dim": int(self._number("llama.attention.key_length", hidden // heads)),
            "rms_norm_eps": _decimal(self._number("llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": _decimal(self._number("llama.rope.freq_base", 10000.0)),
            "tie_word_embeddings": "output.weight" not in names,
            "vocab_size": int(embedding.shape[1]),
        }
        for token in ("bos", "eos"):
            config[f"{token}_token_id"] = self._value(f"tokenizer.ggml.{token}_token_id")
        padding = self._value("tokenizer.ggml.padding_token_id")
        return config if padding is None else config | {"pad_token_id": padding}

    def tensors(self, arch: Architecture) -> list[StreamedTensor]:
        """Every tensor under its Transformers name; values are dequantized when the chunks are asked for."""
        return [
            StreamedTensor(
                _transformers_name(tensor.name),
                "F32",
                tuple(int(side) for side in reversed(tensor.shape)),
                self._chunks(tensor, arch),
            )
            for tensor in self._reader.tensors
        ]

    def _chunks(self, tensor: ReaderTensor, arch: Architecture) -> Callable[[], Iterator[memoryview]]:
        def chunks() -> Iterator[memoryview]:
            import numpy as np
            from gguf.quants import dequantize

            try:
                values = dequantize(tensor.data, tensor.tensor_type)
            except NotImplementedError as error:
                raise SourceError(f"{self.path}: {tensor.name}: {error}") from error
            if tensor.name.endswith("attn_q.weight"):
                values = from_neighbouring_pairs(values, arch.heads)
            elif tensor.name.endswith("attn_k.weight"):
                values = from_neighbouring_pairs(values, arch.kv_heads)
            yield np.ascontiguousarray(values, dtype="<f4").data.cast("B")

        return chunks


def from_neighbouring_pairs(matrix: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of `matrix`, (heads x head_dim, inputs), from GGUF's rotary order to Transformers'."""
    rows, inputs = matrix.shape
    half = rows // heads // 2
    return matrix.reshape(heads, half, 2, inputs).swapaxes(1, 2).reshape(rows, inputs)


def _transformers_name(name: str) -> str:
    """Unknown names stay as they are; the comparison with the architecture's tensors reports them."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in LAYER_NAMES:
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{parts[3]}"
    return name


def _decimal(value: float) -> float:
    """The shortest decimal that is the same float32: GGUF stores 1e-05 as 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
