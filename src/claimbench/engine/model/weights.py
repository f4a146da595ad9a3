"""The weights of a decoder by their role, whatever their family calls them, read straight from safetensors shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from claimbench.checkpoints.safetensors_file import TensorFile
from claimbench.engine.model.spec import Mixture, Names, Spec
from claimbench.errors import CorruptCheckpoint

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Affine:
    """A matrix [out, in] or a norm's scale [hidden], and its bias [out], where there is one."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class ExpertWeights:
    router: Affine
    """[experts, hidden]"""
    up: torch.Tensor
    """Gates first: [experts, 2 * intermediate, hidden]."""
    down: torch.Tensor
    """[experts, hidden, intermediate]"""


@dataclass(frozen=True)
class LayerWeights:
    norm1: Affine | None
    qkv: Affine
    """Queries of all heads, then keys, then values: [(heads + 2 kv_heads) * head_dim, hidden]."""
    out: Affine
    norm2: Affine | None
    up: Affine | None
    """[intermediate, hidden]; with a gate, its rows come first: [2 * intermediate, hidden]. None: there are experts."""
    down: Affine | None
    q_norm: Affine | None = None
    """[head_dim], of every query where there is one; and of keys."""
    k_norm: Affine | None = None
    after_attention: Affine | None = None
    """A norm of what attention adds; and the feed-forward."""
    after_mlp: Affine | None = None
    experts: ExpertWeights | None = None


@dataclass(frozen=True)
class Weights:
    embedding: torch.Tensor
    """[vocabulary, hidden]"""
    positions: torch.Tensor | None
    """[context, hidden] where positions are learned."""
    embedding_norm: Affine | None
    layers: list[LayerWeights]
    norm: Affine
    head: torch.Tensor
    """[vocabulary, hidden]; the embedding itself where they are tied."""
    head_bias: torch.Tensor | None = None


def read_weights(folder: Path, spec: Spec, dtype: torch.dtype, device: str) -> Weights:
    """The weights in `folder`, cast to `dtype` on `device`, one tensor at a time.

    Raises:
        CorruptCheckpoint: a tensor that the architecture needs is not there.
    """
    with Shards(folder, dtype, device) as shards:
        return weights_in(shards, spec)


def weights_in(shards: Shards, spec: Spec) -> Weights:
    if spec.names is not None:
        return _named(shards, spec, spec.names)
    return {"llama": _llama, "gpt_bigcode": _gpt_bigcode, "bloom": _bloom}[spec.arch.family](shards, spec)


class Shards:
    """The tensors of a folder by name; each file is opened once."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: str) -> None:
        self.folder, self.dtype, self.device = folder, dtype, device

    def names(self) -> list[str]:
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return sorted(path.name for path in self.folder.glob("*.safetensors"))

    def __enter__(self) -> Self:
        from safetensors import safe_open

        self.files: list[TensorFile] = [safe_open(self.folder / name, framework="pt") for name in self.names()]
        self.where: dict[str, TensorFile] = {key: file for file in self.files for key in file.keys()}  # noqa: SIM118
        return self

    def __exit__(self, *_: object) -> None:
        self.files.clear()
        self.where.clear()

    def find(self, name: str) -> torch.Tensor | None:
        """Some checkpoints were saved from the bare decoder, without the wrapper's prefix."""
        for known in (name, name.partition(".")[2]):
            if known in self.where:
                return self.read(self.where[known], known, name).to(device=self.device, dtype=self.dtype)
        return None

    def read(self, file: TensorFile, known: str, name: str) -> torch.Tensor:
        """The tensor that the model calls `name`, under the name by which `file` knows it."""
        return file.get_tensor(known)

    def get(self, name: str) -> torch.Tensor:
        tensor = self.find(name)
        if tensor is None:
            raise CorruptCheckpoint(
                f"{self.folder}: expected a tensor '{name}', found none: fetch the checkpoint again"
            )
        return tensor

    def affine(self, name: str) -> Affine:
        return Affine(self.get(f"{name}.weight"), self.find(f"{name}.bias"))

    def joined(self, names: list[str]) -> Affine:
        """Several matrices that read the same input, as one."""
        import torch

        parts = [self.affine(name) for name in names]
        biases = [part.bias for part in parts if part.bias is not None]
        return Affine(torch.cat([part.weight for part in parts]), torch.cat(biases) if biases else None)


def _llama(shards: Shards, spec: Spec) -> Weights:
    embedding = shards.get("model.embed_tokens.weight")
    return Weights(
        embedding=embedding,
        positions=None,
        embedding_norm=None,
        layers=[
            LayerWeights(
                norm1=shards.affine(f"{layer}.input_layernorm"),
                qkv=shards.joined([f"{layer}.self_attn.{part}_proj" for part in "qkv"]),
                out=shards.affine(f"{layer}.self_attn.o_proj"),
                norm2=shards.affine(f"{layer}.post_attention_layernorm"),
                up=shards.joined([f"{layer}.mlp.{part}_proj" for part in ("gate", "up")]),
                down=shards.affine(f"{layer}.mlp.down_proj"),
                q_norm=shards.affine(f"{layer}.self_attn.q_norm") if spec.arch.qk_norm else None,
                k_norm=shards.affine(f"{layer}.self_attn.k_norm") if spec.arch.qk_norm else None,
            )
            for layer in _names("model.layers", spec)
        ],
        norm=shards.affine("model.norm"),
        head=embedding if spec.arch.tied else shards.get("lm_head.weight"),
    )


def _gpt_bigcode(shards: Shards, spec: Spec) -> Weights:
    embedding = shards.get("transformer.wte.weight")
    return Weights(
        embedding=embedding,
        positions=shards.get("transformer.wpe.weight"),
        embedding_norm=None,
        layers=[
            LayerWeights(
                norm1=shards.affine(f"{layer}.ln_1"),
                qkv=_bigcode_qkv(shards.affine(f"{layer}.attn.c_attn"), spec),
                out=shards.affine(f"{layer}.attn.c_proj"),
                norm2=shards.affine(f"{layer}.ln_2"),
                up=shards.affine(f"{layer}.mlp.c_fc"),
                down=shards.affine(f"{layer}.mlp.c_proj"),
            )
            for layer in _names("transformer.h", spec)
        ],
        norm=shards.affine("transformer.ln_f"),
        head=embedding if spec.arch.tied else shards.get("lm_head.weight"),
    )


def _bloom(shards: Shards, spec: Spec) -> Weights:
    embedding = shards.get("transformer.word_embeddings.weight")
    return Weights(
        embedding=embedding,
        positions=None,
        embedding_norm=shards.affine("transformer.word_embeddings_layernorm"),
        layers=[
            LayerWeights(
                norm1=shards.affine(f"{layer}.input_layernorm"),
                qkv=_by_kind(shards.affine(f"{layer}.self_attention.query_key_value"), spec),
                out=shards.affine(f"{layer}.self_attention.dense"),
                norm2=shards.affine(f"{layer}.post_attention_layernorm"),
                up=shards.affine(f"{layer}.mlp.dense_h_to_4h"),
                down=shards.affine(f"{layer}.mlp.dense_4h_to_h"),
            )
            for layer in _names("transformer.h", spec)
        ],
        norm=shards.affine("transformer.ln_f"),
        head=embedding if spec.arch.tied else shards.get("lm_head.weight"),
    )


def _named(shards: Shards, spec: Spec, names: Names) -> Weights:
    """Weights under the names of a family, with what only changes numbers folded in."""

    def norm(name: str | None, factor: float = 1.0) -> Affine | None:
        if name is None:
            return None
        found = shards.affine(name)
        bias = None if found.bias is None else found.bias * factor
        return Affine((found.weight + names.norm_offset) * factor, bias)

    def scaled(affine: Affine) -> Affine:
        factor = names.residual_scale
        return Affine(affine.weight * factor, None if affine.bias is None else affine.bias * factor)

    def layer(at: str) -> LayerWeights:
        qkv = shards.joined([f"{at}.{name}" for name in names.qkv])
        qkv = _by_kind(qkv, spec) if names.joined_by_head else qkv
        parts = {
            key: norm(name and f"{at}.{name}")
            for key, name in (
                ("norm1", names.norm1),
                ("norm2", names.norm2),
                ("q_norm", names.q_norm),
                ("k_norm", names.k_norm),
                ("after_attention", names.after_attention),
                ("after_mlp", names.after_mlp),
            )
        }
        return LayerWeights(
            qkv=_in_halves(qkv, spec) if names.neighbours_turn else qkv,
            out=scaled(shards.affine(f"{at}.{names.out}")),
            up=None if spec.mixture else shards.joined([f"{at}.{name}" for name in names.up]),
            down=None if spec.mixture else scaled(shards.affine(f"{at}.{names.down}")),
            experts=_experts(shards, at, spec.mixture) if spec.mixture else None,
            **parts,
        )

    embedding = shards.get(f"{names.embedding}.weight")
    head = next((name for name in names.head if shards.find(f"{name}.weight") is not None), names.head[0])
    last = norm(names.norm, names.logits_scale)
    assert last is not None
    return Weights(
        embedding=embedding,
        positions=shards.get(f"{names.positions}.weight")[names.first_position :] if names.positions else None,
        embedding_norm=None,
        layers=[layer(at) for at in _names(names.layers, spec)],
        norm=last,
        head=embedding if spec.arch.tied else shards.get(f"{head}.weight"),
        head_bias=shards.find(f"{head}.bias") if names.head_bias else None,
    )


def _experts(shards: Shards, at: str, mixture: Mixture) -> ExpertWeights:
    import torch

    each = [f"{at}.{mixture.experts}.{number}" for number in range(mixture.count)]
    return ExpertWeights(
        router=shards.affine(f"{at}.{mixture.router}"),
        up=torch.stack([shards.joined([f"{name}.{part}" for part in mixture.up]).weight for name in each]),
        down=torch.stack([shards.get(f"{name}.{mixture.down}.weight") for name in each]),
    )


def _in_halves(qkv: Affine, spec: Spec) -> Affine:
    """Rows of queries and keys whose neighbouring pairs turn, in the order in which halves do."""
    assert spec.frequencies is not None
    arch, width = spec.arch, 2 * len(spec.frequencies)
    turning = (arch.heads + arch.kv_heads) * arch.head_dim

    def regroup(rows: torch.Tensor) -> torch.Tensor:
        import torch

        heads = rows[:turning].view(arch.heads + arch.kv_heads, arch.head_dim, *rows.shape[1:])
        turned = torch.cat((heads[:, 0:width:2], heads[:, 1:width:2], heads[:, width:]), 1)
        return torch.cat((turned.reshape(turning, *rows.shape[1:]), rows[turning:]))

    return Affine(regroup(qkv.weight), None if qkv.bias is None else regroup(qkv.bias))


def _names(prefix: str, spec: Spec) -> Iterator[str]:
    return (f"{prefix}.{number}" for number in range(spec.arch.layers))


def _bigcode_qkv(fused: Affine, spec: Spec) -> Affine:
    """With one key-value head the parts follow each other; with one for each head they are interleaved."""
    return fused if spec.arch.kv_heads == 1 else _by_kind(fused, spec)


def _by_kind(fused: Affine, spec: Spec) -> Affine:
    """[heads, (query, key, value), head_dim] -> [(query, key, value), heads, head_dim]."""

    def regroup(tensor: torch.Tensor) -> torch.Tensor:
        heads = tensor.view(spec.arch.heads, 3, spec.arch.head_dim, *tensor.shape[1:])
        return heads.transpose(0, 1).reshape(tensor.shape)

    return Affine(regroup(fused.weight), None if fused.bias is None else regroup(fused.bias))
