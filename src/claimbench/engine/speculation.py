"""Several tokens from one pass: drafts are proposed cheaply, and one pass of the model verifies them all.

A pass over k drafts reads the weights once, as a pass over one token does. It takes in the last token and the drafts,
and gives logits before each draft and after the last: k + 1 places. Tokens are kept as far as the model agrees, and one
more comes from the first place where it does not.

What "agrees" means keeps the model's own distribution, place by place:

    greedy             the draft is the model's argmax
    certain drafts     the model's token is drawn as ever, and is the draft: a draft's chance is the model's own, and
                       what is drawn instead of it is distributed as the rest. Equal seeds give the tokens that they
                       would give without drafts, since every kept token took one draw of its request
    drafts with odds   drawn from q, kept with probability min(1, p / q); else drawn from max(p - q, 0), normalised
                       (Leviathan et al., 2023; Chen et al., 2023)

The rows of a batch stay aligned, so all rows keep as many tokens as the row that agrees with the fewest. Verification
stops at the first place where any row disagrees. That depends on no later place, so the distribution of a row is
untouched by its company; the speed is not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from claimbench.engine.decoder import Decoder
from claimbench.engine.kv_cache import Cache
from claimbench.engine.model.transformer import Transformer
from claimbench.engine.pass_setup import PassSetup, Step


@dataclass(frozen=True)
class Drafts:
    tokens: Tensor
    """[batch, drafts]"""
    odds: Tensor | None = None
    """What each was drawn from, float32 [batch, drafts, vocabulary]. None: each was certain."""


Propose = Callable[[Decoder, Cache, int], Drafts | None]
"""(decoder, cache, how many at most) -> what may follow `decoder.sequence`, whose last column is not in the cache
yet."""


def speculate(propose: Propose, tokens_per_pass: int) -> Callable[[Decoder, Tensor, Cache, int], Iterator[Tensor]]:
    """The decode loop that drafts `tokens_per_pass`, and fewer where fewer are wanted."""

    def several_tokens_a_step(decoder: Decoder, tokens: Tensor, cache: Cache, wanted: int) -> Iterator[Tensor]:
        """New columns [batch, n] after the first, which `tokens` [batch] is."""
        given = 1
        while given < wanted:
            cache = decoder.engine.between_steps(decoder, cache, tokens)
            count = min(tokens_per_pass, wanted - given - 1)
            drafts = propose(decoder, cache, count) if count else None
            if drafts is None:
                tokens = decoder.sample_next(decoder.step(tokens[:, None], cache))
                columns = tokens[:, None]
            else:
                columns = verify(decoder, tokens, cache, drafts)
                tokens = columns[:, -1]
            given += columns.shape[1]
            yield columns

    return several_tokens_a_step


def verify(decoder: Decoder, tokens: Tensor, cache: Cache, drafts: Drafts) -> Tensor:
    """One pass over the last `tokens` [batch] and the drafts; what all rows keep, [batch, 1 to drafts + 1]."""
    past = cache.length
    logits = decoder.step(torch.cat((tokens[:, None], drafts.tokens), 1), cache)  # [batch, drafts + 1, vocabulary]
    columns = _agreed(decoder, logits, drafts)
    cache.truncate(past + columns.shape[1])
    for place in range(columns.shape[1]):
        decoder.record_token(columns[:, place], logits[:, place : place + 1])
    return columns


def _agreed(decoder: Decoder, logits: Tensor, drafts: Drafts) -> Tensor:
    """The drafts that every row agrees with, and one token after them: [batch, n]."""
    batch, places, vocabulary = logits.shape
    if decoder.sampling is None:  # all places as rows of one batch, and one read back from the device
        flat = logits.reshape(batch * places, vocabulary)
        chosen = decoder.engine.choose(flat, decoder.sequence, None, None).view(batch, places)
        agreeing = (chosen[:, :-1] == drafts.tokens).all(0).cumprod(0).sum()
        return chosen[:, : int(agreeing) + 1]
    sequence, kept = decoder.sequence, []
    for place in range(places):
        here = logits[:, place]
        draft = drafts.tokens[:, place] if place + 1 < places else None
        if draft is None or drafts.odds is None:
            token = decoder.engine.choose(here, sequence, decoder.sampling, decoder.sampler)
        else:
            token = _redistributed(decoder, odds_of(decoder, here, sequence), drafts.odds[:, place], draft)
        kept.append(token)
        if draft is None or bool((token != draft).any()):
            break
        sequence = torch.cat((sequence, token[:, None]), 1)
    return torch.stack(kept, 1)


def _redistributed(decoder: Decoder, odds: Tensor, drafted: Tensor, draft: Tensor) -> Tensor:
    """`draft` [batch], drawn from `drafted` [batch, vocabulary], or another token: together distributed as `odds`."""
    assert decoder.sampler is not None
    chance = (odds.gather(1, draft[:, None]) / drafted.gather(1, draft[:, None])).clamp(max=1)  # [batch, 1]
    kept = decoder.sampler(torch.cat((1 - chance, chance), 1).log()) == 1
    rest = (odds - drafted).clamp(min=0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, odds)  # equal odds leave no rest, and nothing to refuse
    return torch.where(kept, draft, decoder.sampler(rest.log()))


def odds_of(decoder: Decoder, logits: Tensor, sequence: Tensor) -> Tensor:
    """The distribution that a row's next token is drawn from, after the request's settings: float32 [batch,
    vocabulary]."""
    return _choice_and_odds(decoder, logits, sequence, lambda warped: warped.argmax(-1))[1]


def _choice_and_odds(
    decoder: Decoder, logits: Tensor, sequence: Tensor, draw: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Tokens [batch] by `draw`, and what it drew from, as the processing seam hands it over."""
    seen: list[Tensor] = []

    def look(warped: Tensor) -> Tensor:
        seen.append(warped.float().softmax(-1))
        return draw(warped)

    return decoder.engine.choose(logits, sequence, decoder.sampling, look), seen[0]


def _draft_along(decoder: Decoder, step: Step, cache: Cache, count: int, draw: bool) -> Drafts:
    """`count` tokens by `step`, one after the other; `cache` holds a beginning of the sequence."""
    sequence, odds = decoder.sequence, []
    unread = sequence[:, cache.length :]
    for _ in range(count):
        logits = step(unread, cache)[:, -1]
        if decoder.sampling is None or decoder.sampler is None or not draw:
            token = decoder.engine.choose(logits, sequence, None, None)
        else:
            token, chances = _choice_and_odds(decoder, logits, sequence, decoder.sampler)
            odds.append(chances)
        unread = token[:, None]
        sequence = torch.cat((sequence, unread), 1)
    return Drafts(sequence[:, -count:], torch.stack(odds, 1) if odds else None)


def by_draft_model(draw: bool) -> Propose:
    """The cell's draft checkpoint proposes; it has a cache of its own, which forgets what was not kept."""

    def propose(decoder: Decoder, cache: Cache, count: int) -> Drafts:
        drafter = decoder.draft
        assert drafter is not None
        drafter.cache.truncate(min(drafter.cache.length, decoder.sequence.shape[1] - 1))
        return _draft_along(decoder, drafter.step, drafter.cache, count, draw)

    return propose


def by_first_layers(layers: int | None, draw: bool) -> Propose:
    """The first layers (half of them by default), the last norm and the head propose, and write to their own part of
    the model's cache.

    Nothing is handed over: the pass that verifies computes the first layers again, since it reads their weights only
    once for all drafts, and so stays a step like any other.
    """
    whole: PassSetup | None = None
    step: Step | None = None

    def propose(decoder: Decoder, cache: Cache, count: int) -> Drafts:
        nonlocal whole, step
        if step is None or whole is not decoder.setup:
            whole = decoder.setup
            model = first_layers(whole.model, layers or len(whole.model.layers) // 2)
            step = decoder.engine.step(replace(whole, model=model))
        past = cache.length
        drafts = _draft_along(decoder, step, cache, count, draw)
        cache.truncate(past)
        return drafts

    return propose


def first_layers(model: Transformer, layers: int) -> Transformer:
    """`model` with its first `layers` alone; every tensor is shared."""
    shallow = copy.copy(model)
    shallow._modules = dict(model._modules)
    shallow.layers = model.layers[:layers]
    return shallow


def by_lookup(ngram: int) -> Propose:
    """What followed the last time that the sequence's end stood in the sequence.

    The longest end of up to `ngram` tokens that occurred before counts, and the latest place. A sequence that runs into
    its own end goes round: "a b a" proposes "b a b a". Rows that repeat nothing propose their last token, so that
    every row has as many drafts.
    """

    def propose(decoder: Decoder, cache: Cache, count: int) -> Drafts | None:
        sequence = decoder.sequence  # [batch, length]
        start = latest_repeat(sequence, ngram)  # [batch]
        length = sequence.shape[1]
        if not bool((start < length).any()):
            return None
        start = start.clamp(max=length - 1)
        period = length - start
        ahead = torch.arange(count, device=sequence.device)
        return Drafts(sequence.gather(1, start[:, None] + ahead % period[:, None]))

    return propose


def latest_repeat(sequence: Tensor, ngram: int) -> Tensor:
    """Where in each row the tokens that followed its end before begin, [batch]; the row's length where nothing
    repeats."""
    length = sequence.shape[1]
    found = torch.full_like(sequence[:, 0], length)
    for size in range(1, min(ngram, length - 1) + 1):  # a longer one overrules
        windows = sequence[:, :-1].unfold(1, size, 1)  # [batch, places, size], without the end itself
        follows = torch.arange(size, length, device=sequence.device)
        same = (windows == sequence[:, None, length - size :]).all(-1)
        latest = torch.where(same, follows, -1).amax(-1)
        found = torch.where(latest >= 0, latest, found)
    return found
