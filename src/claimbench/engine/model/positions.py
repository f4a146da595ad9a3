"""Where a token stands: tables that turn queries and keys, and slopes that make heads forget."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from claimbench.engine.model.spec import Spec


def rotary_frequencies(spec: Spec, local: bool = False) -> Tensor:
    """By how much each pair of a head turns from one position to the next, float32 [pairs]; `local`: in such layers."""
    given = spec.local_frequencies if local else spec.frequencies
    if given is not None:
        return torch.tensor(given, dtype=torch.float32)
    half = torch.arange(0, spec.arch.head_dim, 2, dtype=torch.float32) / spec.arch.head_dim
    return 1.0 / (spec.rope_theta or 1.0) ** half


class Rotary(nn.Module):
    """Rotary positions: pairs (i, i + width / 2) of a head turn by position x frequency, from tables of `longest` rows.

    What lies beyond `width`, twice the number of frequencies, does not turn.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, spec: Spec, longest: int, device: torch.device, local: bool = False) -> None:
        super().__init__()
        frequencies = rotary_frequencies(spec, local).to(device)
        self.width = 2 * len(frequencies)
        angles = torch.outer(torch.arange(longest, device=device).float(), frequencies)
        twice = torch.cat((angles, angles), -1)
        scale = spec.local_rope_scale if local else spec.rope_scale
        self.register_buffer("cos", twice.cos() * scale, persistent=False)  # [longest, width]
        self.register_buffer("sin", twice.sin() * scale, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn x, [batch, heads, new, head_dim]."""
        cos, sin = self.cos[positions].unsqueeze(1).to(x.dtype), self.sin[positions].unsqueeze(1).to(x.dtype)
        turning = x[..., : self.width]
        first, second = turning.chunk(2, dim=-1)
        turned = turning * cos + torch.cat((-second, first), -1) * sin
        return turned if self.width == x.shape[-1] else torch.cat((turned, x[..., self.width :]), -1)


def alibi_slopes(heads: int) -> Tensor:
    """How fast each head forgets, float32 [heads]: a geometric series (Press et al., 2021).

    Between powers of two, the rest are every other member of the next power's series.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (number + 1) / power) for number in range(power)]
    slopes += [2 ** (-4 * (2 * number + 1) / power) for number in range(heads - power)]
    return torch.tensor(slopes, dtype=torch.float32)
