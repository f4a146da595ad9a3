"""One rank's share of the reference transformer, and where the shares meet.

Every rank computes its own heads and its own slice of the feed-forward, from weights cut as tp_partition.py says.
What a half of a layer adds to the residual stream is a sum over ranks: one all-reduce each, of [batch, new, hidden].
The vocabulary is split as well, since the head is read in full at every step: a look-up is a sum in which all ranks but
one give zeros, and the logits of all ranks are gathered. The rest (norms, positions) every rank does for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from claimbench.checkpoints import manifest, tp_partition
from claimbench.checkpoints.safetensors_file import TensorFile
from claimbench.checkpoints.tensors import shapes
from claimbench.checkpoints.tp_partition import Partition
from claimbench.engine.model.parts import Linear, Parts
from claimbench.engine.model.shards import Affine, Shards
from claimbench.engine.model.spec import Spec


@dataclass
class TensorParallelGroup:
    """Where the ranks exchange what they have; counts how often they did."""

    rank: int
    ranks: int
    all_reduces: int = 0
    all_gathers: int = 0

    def sum(self, x: Tensor) -> Tensor:
        """`x` of all ranks, summed in place."""
        self.all_reduces += 1
        dist.all_reduce(x)
        return x

    def join(self, x: Tensor) -> Tensor:
        """The last axes of all ranks, equally long, one after the other."""
        self.all_gathers += 1
        parts = [torch.empty_like(x) for _ in range(self.ranks)]
        dist.all_gather(parts, x)
        return torch.cat(parts, -1)


def share_of(spec: Spec, rank: int, ranks: int) -> Spec:
    return replace(spec, arch=tp_partition.share_of(spec.arch, ranks), rank=rank, ranks=ranks)


class SharedHead(nn.Module):
    """A rank's rows of the output head, and the logits of all of them."""

    def __init__(self, own: Linear, rows: int, most: int, vocabulary: int, group: TensorParallelGroup) -> None:
        super().__init__()
        self.own, self.padding, self.vocabulary, self.group = own, most - rows, vocabulary, group

    def forward(self, x: Tensor) -> Tensor:
        """[batch, new, hidden] -> [batch, new, vocabulary]"""
        own = self.own(x)
        if self.padding:
            own = functional.pad(own, (0, self.padding))
        return self.group.join(own.contiguous())[..., : self.vocabulary]


def meet(parts: Parts, spec: Spec, group: TensorParallelGroup) -> None:
    """Put the exchanges into `parts`, around whatever is there."""
    vocabulary = spec.arch.vocabulary
    most = -(-vocabulary // group.ranks)
    first = group.rank * most
    plain_add, plain_head = parts.add, parts.head or parts.linear

    def look_up(tokens: Tensor, table: Tensor) -> Tensor:
        local = tokens - first
        here = (local >= 0) & (local < len(table))
        found = functional.embedding(local.clamp(0, len(table) - 1), table)
        return group.sum(found * here[..., None])

    def add(stream: Tensor, half: Tensor) -> Tensor:
        return plain_add(stream, group.sum(half))

    def head(affine: Affine) -> Linear:
        return SharedHead(plain_head(affine), len(affine.weight), most, vocabulary, group)

    parts.look_up, parts.add, parts.head = look_up, add, head


class RankShards(Shards):
    """The tensors of a folder as one rank needs them: from files of its own, or slices of whole ones."""

    def __init__(self, folder: Path, spec: Spec, dtype: torch.dtype, device: str, group: TensorParallelGroup) -> None:
        super().__init__(folder, dtype, device)
        self.rank, self.whole = group.rank, spec.arch
        self.cuts: dict[str, Partition] = tp_partition.partitions(spec.arch, group.ranks)
        self.manifest = manifest.read(folder) if (folder / manifest.MANIFEST).exists() else None
        self.presharded = self.manifest is not None and self.manifest.layout.kind == "tensor_parallel"
        if self.presharded and self.manifest:
            self.manifest.require_ranks(group.ranks)

    def names(self) -> list[str]:
        if self.presharded and self.manifest:
            return [file.name for file in self.manifest.files_of(self.rank)]
        return super().names()

    def find(self, name: str) -> Tensor | None:
        if self.rank and tp_partition.added_once(name):
            return None  # it is part of a sum over ranks, and rank 0 has it
        return super().find(name)

    def read(self, file: TensorFile, known: str, name: str) -> Tensor:
        cut = self.cuts[name]
        if self.presharded or cut.axis is None:
            return super().read(file, known, name)
        whole = file.get_slice(known)
        ranges = [slice(*each) for each in cut.ranges[self.rank]]
        return torch.cat([whole[each] if cut.axis == 0 else whole[:, each] for each in ranges], cut.axis)

    def expected_bytes(self) -> int:
        """Of this rank's share of the weights, by where the cuts are."""
        values = 0
        for name, shape in shapes(self.whole).items():
            if not (self.rank and tp_partition.added_once(name)):
                values += torch.Size(self.cuts[name].share(shape, self.rank)).numel()
        return values * self.dtype.itemsize
