"""Softmax in one launch on CUDA: a kernel of our own in Triton, and Megatron's, as apex builds it."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from claimbench.engine.model.parts import Softmax
from claimbench.errors import Unavailable

Forward = Callable[[Tensor, Tensor, float], Tensor]
"""(scores, what is hidden, scale) -> probabilities of the scores' type."""
MEGATRON = "generic_scaled_masked_softmax_cuda"  # of Megatron's kernels, the one that takes a single query


def megatron_softmax() -> Softmax:
    """
    Raises:
        Unavailable: apex is not built with the kernel.
    """
    return MegatronSoftmax(_megatron_forward())


def _megatron_forward() -> Forward:
    for place in (MEGATRON, f"apex.extensions.{MEGATRON}"):
        try:
            forward: Forward = importlib.import_module(place).forward
        except ImportError:
            continue
        return forward
    raise Unavailable(f"apex is there without {MEGATRON}: build apex with its CUDA extensions for Megatron")


class MegatronSoftmax:
    """Its mask is of booleans: derived from the bias, which each pass has one of, or all false."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.hidden: tuple[Tensor, Tensor] | None = None
        self.nothing: list[Tensor] = []
        """Of growing sizes. Captured graphs read those that they were captured with, so none is given up."""

    def __call__(self, scores: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        """scores [batch, heads, new, keys]"""
        return self.forward(scores.contiguous(), self.mask(scores, bias), scale)

    def mask(self, scores: Tensor, bias: Tensor | None) -> Tensor:
        """[batch or 1, 1, new, keys]"""
        new, keys = scores.shape[2:]
        if bias is None:
            if not self.nothing or len(self.nothing[-1]) < new * keys:
                self.nothing.append(torch.zeros(2 * new * keys, dtype=torch.bool, device=scores.device))
            return self.nothing[-1][: new * keys].view(1, 1, new, keys)
        if self.hidden is None or self.hidden[0] is not bias:
            self.hidden = bias, (bias < 0).contiguous()
        return self.hidden[1]


def triton_softmax() -> Softmax:
    """
    Raises:
        Unavailable: Triton is not installed.
    """
    try:
        kernels = importlib.import_module("claimbench.engine.kernels.triton_softmax")
    except ImportError as error:
        raise Unavailable(f"Triton cannot be imported: {error}") from error
    softmax: Softmax = kernels.softmax
    return softmax
