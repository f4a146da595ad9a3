"""From logits to tokens: temperature, top-k, top-p, typical, repetition penalty, the draw, and stopping.

The plain way serves one request after the other, as text-generation-inference did when document B was written: the
cost of a step grows with the batch, because every request brings its own handful of small operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from claimbench.engine import counter_rng
from claimbench.schema.cell import Sampling

STOP_TOKENS: frozenset[int] = frozenset()
"""The end of sequence is an ordinary token here; what is compared with is empty, and compared with all the same."""


def warp(logits: Tensor, sequence: Tensor, sampling: Sampling) -> Tensor:
    """Logits [rows, vocabulary] after the request's settings, in Transformers' own order; all rows at once."""
    if sampling.repetition_penalty != 1:
        seen = logits.gather(1, sequence)
        logits = logits.scatter(
            1, sequence, torch.where(seen < 0, seen * sampling.repetition_penalty, seen / sampling.repetition_penalty)
        )
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if sampling.top_k:
        least = logits.topk(min(sampling.top_k, logits.shape[-1]))[0][..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=False)
        beyond = ordered.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        beyond[..., -1:] = False
        logits = logits.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    if sampling.typical_p < 1:
        logs = logits.log_softmax(-1)
        entropy = -(logs * logs.exp()).nansum(-1, keepdim=True)
        surprise, order = (-logs - entropy).abs().sort(descending=False)
        mass = logits.gather(-1, order).softmax(-1).cumsum(-1)
        last = (mass < sampling.typical_p).sum(-1).clamp(max=logits.shape[-1] - 1)
        dull = surprise > surprise.gather(1, last[:, None])
        dull[..., :1] = False
        logits = logits.masked_fill(dull.scatter(1, order, dull), -torch.inf)
    return logits


def choose_one_by_one(
    logits: Tensor, sequence: Tensor, sampling: Sampling | None, draw: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Next tokens [batch]: every request's logits are warped, and its end looked for, by itself."""
    rows = []
    for row in range(len(logits)):
        own = logits[row : row + 1].float()
        rows.append(own if sampling is None else warp(own, sequence[row : row + 1], sampling))
    tokens = torch.cat([row.argmax(-1) for row in rows]) if draw is None else draw(torch.cat(rows))
    for token in tokens:
        if int(token) in STOP_TOKENS:  # one read back from the device per request
            break
    return tokens


def choose_together(
    logits: Tensor, sequence: Tensor, sampling: Sampling | None, draw: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Next tokens [batch]: the same operations for one request and for many, and nothing is waited for."""
    wide = logits.float()
    if sampling is not None:
        wide = warp(wide, sequence, sampling)
    tokens = wide.argmax(-1) if draw is None else draw(wide)
    have_ended(tokens)
    return tokens


def have_ended(tokens: Tensor) -> Tensor:
    """Which rows ended with a stop token, bool [batch]: a server reads it when it likes, this one never has to."""
    return torch.isin(tokens, _stop_tokens(tokens.device))


@cache
def _stop_tokens(device: torch.device) -> Tensor:
    return torch.tensor(sorted(STOP_TOKENS), dtype=torch.int64, device=device)


def draw_seeded(sampling: Sampling, batch: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A generator per request, so that its tokens are the same in any company: PyTorch draws from one at a time."""
    generators = [torch.Generator(device).manual_seed(sampling.seed + row) for row in range(batch)]

    def draw(logits: Tensor) -> Tensor:
        odds = logits.softmax(-1)
        return torch.cat(
            [
                torch.multinomial(odds[row : row + 1], 1, generator=generator)[:, 0]
                for row, generator in enumerate(generators)
            ]
        )

    return draw


def draw_together(sampling: Sampling, batch: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """One generator and one draw for all rows: what a row gets depends on its company."""
    generator = torch.Generator(device).manual_seed(sampling.seed)

    def draw(logits: Tensor) -> Tensor:
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]

    return draw


def draw_by_counter(sampling: Sampling, batch: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A seed per request, and one draw for all: noise by a hash of the row's seed and the token's number.

    The token that wins a race of exponential clocks, each as fast as its token is likely, is drawn from the softmax;
    in logarithms, that is the largest logit after Gumbel noise.
    """
    seeds = torch.arange(sampling.seed, sampling.seed + batch, device=device)
    number = 0

    def draw(logits: Tensor) -> Tensor:
        nonlocal number
        clocks = counter_rng.exponential(counter_rng.keys_of(seeds, number), logits.shape[-1])
        number += 1
        return (logits - clocks.log_()).argmax(-1)

    return draw
