"""Where a mixture keeps its experts, and how many of them a token passes: read from modules and their config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.schema.card import Experts

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

ACTIVE = (
    "num_experts_per_tok",
    "moe_k",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "top_k_experts",
    "num_selected_experts",
)
"""What configs call the number of experts that a token passes through."""
COUNT = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
"""And the number that there are in a layer."""


def expert_modules(layers: list[nn.Module]) -> list[nn.Module]:
    """What holds the experts: modules whose matrices are stacked, [experts, ., .], or lists of experts."""
    import torch

    found: list[nn.Module] = []
    for layer in layers:
        for name, module in layer.named_modules():
            parts = [part for part in module.modules() if _is_stacked(part)]
            called = name.rpartition(".")[2] == "experts" and any(True for _ in module.parameters())
            listed = called and isinstance(module, torch.nn.ModuleList)
            if listed or _is_stacked(module) or (called and not parts):
                found.append(module)
    return found


def _is_stacked(module: nn.Module) -> bool:
    from torch.nn.modules.conv import _ConvNd

    own = module.parameters(recurse=False)
    return not isinstance(module, _ConvNd) and any(one.dim() == 3 for one in own)


def experts_of(layers: list[nn.Module], text: PreTrainedConfig) -> Experts | None:
    """The mixture of a decoder's layers; None where it has none.

    A token passes through one at least, where the config does not say through how many.
    """
    stated = _number(text, ACTIVE), _number(text, COUNT)
    found = expert_modules(layers)
    if not found or stated == (None, None):  # stacked matrices may be blocks of one, as Griffin's gates are
        return None
    active, count = stated[0] or 1, stated[1] or _counted(found[0])
    named = {id(one): (name, one.numel()) for module in found for name, one in module.named_parameters()}
    biases = sum(values for name, values in named.values() if name.endswith("bias"))
    weights = sum(values for _, values in named.values())
    return Experts(weights=weights, biases=biases, count=max(count, active), active=active)


def _number(text: PreTrainedConfig, names: tuple[str, ...]) -> int | None:
    """The first of `names` that the config has; the least where it has one for each layer."""
    for name in names:
        value = getattr(text, name, None)
        least = min(value, default=None) if isinstance(value, list) else value
        if isinstance(least, int):
            return least
    return None


def _counted(module: nn.Module) -> int:
    import torch

    return len(module) if isinstance(module, torch.nn.ModuleList) else next(module.parameters()).shape[0]
