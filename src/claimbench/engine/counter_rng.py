"""Random numbers that are a function: of a row's seed, of the token's number and of the place in the vocabulary.

A generator has a state, so it serves one row after the other. A hash of a counter has none: every number can be had at
once, in any order, on any device, and a row's numbers do not depend on its company. The hash is the finaliser of
SplitMix64 (Steele, Lea and Flood, 2014; constants by Stafford), in 64-bit integers that wrap around.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


STRIDE = _signed(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: counters are this far apart."""
FIRST, SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left: the shift of signed integers would bring their sign."""
    return (x >> by).bitwise_and_((1 << (64 - by)) - 1)


def mix(x: Tensor) -> Tensor:
    """Every bit of the result depends on every bit of `x`, int64 of any shape."""
    x = (x ^ _shifted(x, 30)).mul_(FIRST)
    x.bitwise_xor_(_shifted(x, 27)).mul_(SECOND)
    return x.bitwise_xor_(_shifted(x, 31))


def keys_of(seeds: Tensor, number: int) -> Tensor:
    """A key for token `number` of each row, int64 [rows], from the rows' seeds, int64 [rows]."""
    return mix(mix(seeds) + _signed(number * STRIDE % (1 << 64)))


def words(keys: Tensor, count: int) -> Tensor:
    """`count` even numbers below 2^32 for each of `keys` [rows]: int64 [rows, count]."""
    counters = torch.arange(1, count // 2 + count % 2 + 1, device=keys.device) * STRIDE
    pairs = mix(keys[:, None] + counters)  # [rows, count / 2]: two words in each
    return torch.cat((pairs & 0xFFFFFFFF, _shifted(pairs, 32)), 1)[:, :count]


def exponential(keys: Tensor, count: int) -> Tensor:
    """Independent draws of the exponential distribution of mean 1: float32 [rows, count], above 0 and finite.

    Small ones decide who wins a race, so the uniform numbers are as fine as 2^-33 near 0.
    """
    uniform = words(keys, count).float().add_(0.5).mul_(2**-32).clamp_(max=1 - 2**-24)
    return uniform.neg_().log1p_().neg_()
