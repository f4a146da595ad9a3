"""The weights of a decoder by their role, whatever their family calls them, read straight from safetensors shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from claimbench.engine.model.shards import Affine, Shards
from claimbench.engine.model.spec import Mixture, SharedExpert, Spec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SharedWeights:
    gate: Affine
    """[1, hidden]"""
    up: Affine
    down: Affine


@dataclass(frozen=True)
class ExpertWeights:
    router: Affine
    """[experts, hidden]"""
    up: list[Affine]
    """Of each expert, its gate first: [2 * intermediate, hidden]."""
    down: list[Affine]
    """[hidden, intermediate] each."""
    shared: SharedWeights | None = None


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
    """Of every query [head_dim], of each head's own [heads, 1, head_dim], or of all [heads * head_dim]; and of keys."""
    k_norm: Affine | None = None
    after_attention: Affine | None = None
    """A norm of what attention adds; and the feed-forward."""
    after_mlp: Affine | None = None
    experts: ExpertWeights | None = None
    sinks: torch.Tensor | None = None
    """[heads]"""


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
    """What only changes numbers is folded in: a norm's offset, factors of the residual stream and of the logits."""
    names = spec.names
    embedding = shards.get(f"{names.embedding}.weight")
    head = next((name for name in names.head if shards.known(f"{name}.weight")), names.head[0])
    last = _norm(shards, spec, names.norm, names.logits_scale)
    assert last is not None
    return Weights(
        embedding=embedding,
        positions=shards.get(f"{names.positions}.weight")[names.first_position :] if names.positions else None,
        embedding_norm=_norm(shards, spec, names.embedding_norm),
        layers=[_layer(shards, spec, f"{names.layers}.{number}.") for number in range(spec.arch.layers)],
        norm=last,
        head=embedding if spec.arch.tied else shards.get(f"{head}.weight"),
        head_bias=shards.find(f"{head}.bias") if names.head_bias else None,
    )


def _layer(shards: Shards, spec: Spec, at: str) -> LayerWeights:
    names, mixture = spec.names, spec.mixture
    own = {
        key: _norm(shards, spec, name and at + name)
        for key, name in (
            ("norm1", names.norm1),
            ("norm2", names.norm2),
            ("after_attention", names.after_attention),
            ("after_mlp", names.after_mlp),
        )
    }
    return LayerWeights(
        qkv=_qkv(shards, spec, at),
        out=_scaled(_matrix(shards, spec, [at + names.out]), names.residual_scale),
        up=None if mixture else _matrix(shards, spec, [at + name for name in names.up]),
        down=None if mixture else _scaled(_matrix(shards, spec, [at + names.down]), names.residual_scale),
        experts=_experts(shards, spec, at, mixture) if mixture else None,
        q_norm=_head_norm(shards, spec, names.q_norm and at + names.q_norm, spec.arch.heads),
        k_norm=_head_norm(shards, spec, names.k_norm and at + names.k_norm, spec.arch.kv_heads),
        sinks=shards.get(at + names.sinks) if names.sinks else None,
        **own,
    )


def _matrix(shards: Shards, spec: Spec, names: list[str]) -> Affine:
    joined = shards.joined(names)
    return Affine(joined.weight.t().contiguous(), joined.bias) if spec.names.transposed else joined


def _scaled(affine: Affine, factor: float) -> Affine:
    if factor == 1:
        return affine
    return Affine(affine.weight * factor, None if affine.bias is None else affine.bias * factor)


def _norm(shards: Shards, spec: Spec, name: str | None, factor: float = 1.0) -> Affine | None:
    if name is None:
        return None
    found, offset = shards.affine(name), spec.names.norm_offset
    return _scaled(Affine(found.weight + offset, found.bias) if offset else found, factor)


def _head_norm(shards: Shards, spec: Spec, name: str | None, heads: int) -> Affine | None:
    """The norm of queries or keys, in the order in which their values turn."""
    import torch

    if name is None:
        return None
    if spec.names.norms_by_head:
        found = Affine(torch.stack([shards.get(f"{name}.norms.{head}.weight") for head in range(heads)]))
    else:
        norm = _norm(shards, spec, name)
        assert norm is not None
        found = norm
    if found.weight.ndim == 2:
        found = Affine(found.weight[:, None], found.bias)
    return found if not spec.names.neighbours_turn else Affine(found.weight[..., _halves(spec)], found.bias)


def _qkv(shards: Shards, spec: Spec, at: str) -> Affine:
    qkv = _matrix(shards, spec, [at + name for name in spec.names.qkv])
    if spec.names.joined_by_head:
        qkv = _by_kind(qkv, spec)
    return _in_halves(qkv, spec) if spec.names.neighbours_turn else qkv


def _experts(shards: Shards, spec: Spec, at: str, mixture: Mixture) -> ExpertWeights:
    where = at + mixture.experts
    if mixture.stacked:
        up, down = _stacked(shards, f"{where}.{mixture.up[0]}"), _stacked(shards, f"{where}.{mixture.down}")
        up = [_without_turns(each) for each in up]
    else:
        each = [f"{where}.{number}." for number in range(mixture.count)]
        up = [shards.joined([name + part for part in mixture.up]) for name in each]
        down = [shards.affine(name + mixture.down) for name in each]
    return ExpertWeights(
        router=shards.affine(at + mixture.router),
        up=up,
        down=[_scaled(one, spec.names.residual_scale) for one in down],
        shared=_shared(shards, at, mixture.shared) if mixture.shared else None,
    )


def _shared(shards: Shards, at: str, names: SharedExpert) -> SharedWeights:
    up = shards.joined([at + name for name in names.up])
    return SharedWeights(shards.affine(at + names.gate), up, shards.affine(at + names.down))


def _stacked(shards: Shards, name: str) -> list[Affine]:
    """Every expert's matrix, of one tensor [experts, in, out]."""
    weights, biases = shards.get(name), shards.get(f"{name}_bias")
    return [Affine(weight.t().contiguous(), bias) for weight, bias in zip(weights, biases, strict=True)]


def _without_turns(up: Affine) -> Affine:
    """Rows of gate and up that take turns, as all gates and then all ups."""
    import torch

    assert up.bias is not None
    weight, bias = ((each[0::2], each[1::2]) for each in (up.weight, up.bias))
    return Affine(torch.cat(weight), torch.cat(bias))


def _halves(spec: Spec) -> list[int]:
    """Places of a head whose neighbouring pairs turn, in the order in which halves do."""
    assert spec.frequencies is not None
    width = 2 * len(spec.frequencies)
    return [*range(0, width, 2), *range(1, width, 2), *range(width, spec.arch.head_dim)]


def _in_halves(qkv: Affine, spec: Spec) -> Affine:
    """Rows of queries and keys whose neighbouring pairs turn, in the order in which halves do."""
    arch, order = spec.arch, _halves(spec)
    heads = arch.heads + arch.kv_heads

    def regroup(rows: torch.Tensor) -> torch.Tensor:
        import torch

        turned = rows[: heads * arch.head_dim].view(heads, arch.head_dim, *rows.shape[1:])[:, order]
        return torch.cat((turned.flatten(0, 1), rows[heads * arch.head_dim :]))

    return Affine(regroup(qkv.weight), None if qkv.bias is None else regroup(qkv.bias))


def _by_kind(fused: Affine, spec: Spec) -> Affine:
    """[kv_heads, (its queries, key, value), head_dim] -> queries of all heads, then keys, then values."""
    arch = spec.arch

    def regroup(tensor: torch.Tensor) -> torch.Tensor:
        import torch

        own = tensor.view(arch.kv_heads, arch.heads // arch.kv_heads + 2, arch.head_dim, *tensor.shape[1:])
        return torch.cat([part.flatten(0, 2) for part in (own[:, :-2], own[:, -2:-1], own[:, -1:])])

    return Affine(regroup(fused.weight), None if fused.bias is None else regroup(fused.bias))
