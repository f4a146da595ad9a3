"""Models of a real model's shape whose weights are drawn on the device: no disk and no download is waited for.

The rule is that of `random://` checkpoints: activations stay near 1 at any depth. The values are others.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch

from claimbench.checkpoints import random_weights
from claimbench.checkpoints.tensors import shapes
from claimbench.cost_model import cost
from claimbench.engine.model.shards import Shards
from claimbench.engine.model.spec import Spec
from claimbench.engine.model.weights import Weights, weights_in
from claimbench.engine.session import EngineSession, spec_in


def folder_of(architecture: str, scratch: Path) -> Path:
    """A folder with the configuration alone."""
    folder = scratch / architecture
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(cost.config(architecture)), encoding="utf-8")
    return folder


def fill(tensor: torch.Tensor, name: str, spread: float | None) -> torch.Tensor:
    """Normal values of deviation `spread`, the same on each call; without one, what a vector is: a bias, or a scale."""
    if spread is None:
        return tensor.fill_(0.0 if name.endswith(".bias") else 1.0)
    generator = torch.Generator(tensor.device)
    generator.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little"))
    return tensor.normal_(0.0, spread, generator=generator)


class DrawnShards(Shards):
    """Tensors that are made when they are asked for."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: str, architecture: str) -> None:
        super().__init__(folder, dtype, device)
        self.arch = cost.architecture(architecture)
        self.initial = float(cost.config(architecture)["initializer_range"])
        self.table = shapes(self.arch)
        self.where = dict.fromkeys(self.table)  # type: ignore[assignment]

    def find(self, name: str) -> torch.Tensor | None:
        known = self.known(name)
        if known is None:
            return None
        shape = self.table[known]
        spread = random_weights._spread(self.arch, known, shape, self.initial)
        return fill(torch.empty(shape, dtype=self.dtype, device=self.device), known, spread)


class DrawnSession(EngineSession):
    """The engine's session over such weights."""

    def open(self, folder: Path) -> tuple[Spec, Weights]:
        spec, dtype = spec_in(folder), getattr(torch, self.cell.dtype)
        shape = str(self.cell.checkpoint.architecture)
        return spec, weights_in(DrawnShards(folder, dtype, self.cell.device, shape), spec)


def transformers_session(cell: Any, folder: Path) -> Any:
    """Transformers' session over such weights; torchao's quantisation is put on as Transformers would."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from claimbench import optimizations
    from claimbench.hf.session import TransformersSession, make_setup

    setup = make_setup(cell, optimizations.used_by(cell))
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device(cell.device), torch.no_grad():
        attention = setup.load["attn_implementation"]
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, cell.dtype), attn_implementation=attention
        ).eval()
        for name, parameter in model.named_parameters():
            matrix = parameter.ndim > 1
            fill(parameter, name, _spread(name, parameter, config) if matrix else None)
    quantization = setup.load.get("quantization_config")
    if quantization is not None:
        from torchao.quantization import quantize_

        quantize_(model, quantization.quant_type, _is_layers_matrix)
    return TransformersSession(cell, setup, folder, model, None)


def _is_layers_matrix(part: torch.nn.Module, name: str) -> bool:
    """The head stays as it is, as Transformers keeps it."""
    return isinstance(part, torch.nn.Linear) and name != "lm_head"


def _spread(name: str, parameter: torch.Tensor, config: Any) -> float:
    if name.endswith(random_weights._EMBEDDINGS):
        return float(config.initializer_range)
    spread = 1 / math.sqrt(parameter.shape[1])
    return spread / math.sqrt(2 * config.num_hidden_layers) if name.endswith(random_weights._RESIDUAL) else spread
