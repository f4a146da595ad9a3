"""The tensors of a checkpoint's safetensors files by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from claimbench.checkpoints.safetensors_file import TensorFile
from claimbench.errors import CorruptCheckpoint

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Affine:
    """A matrix [out, in] or a norm's scale [hidden], and its bias [out], where there is one."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


class Shards:
    """The tensors of a folder by name; each file is opened once."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: str) -> None:
        self.folder, self.dtype, self.device = folder, dtype, device

    def names(self) -> list[str]:
        """In the order in which Transformers reads them: of a tensor in two files, the last one counts."""
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
        known = self.known(name)
        if known is None:
            return None
        return self.read(self.where[known], known, name).to(device=self.device, dtype=self.dtype)

    def known(self, name: str) -> str | None:
        """What a file calls the tensor that the decoder calls `name`, or None where there is no such tensor."""
        return next((each for each in aliases(name) if each in self.where), None)

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


def aliases(name: str) -> Iterator[str]:
    """What a tensor is called: with the prefix of the model's head, without, and as the language part of a wrapper."""
    bare = name.partition(".")[2]
    yield from (name, bare, f"model.language_model.{bare}", f"language_model.{name}")
