"""The decode loop as a few seams, each with a plain way that an optimization can replace.

A generation is: prefill the prompt, choose a token, then step and choose until every row has its length. `Engine` names
the seams and holds what is plugged into each; `compose` plugs in the techniques of a cell; `Decoder` binds them to a
model. The plain way of every seam is what document B calls `causal`: one request after the other, a cache that is
concatenated at every token, the head and log-probabilities at every position, a random generator per request.

    seam        part of Engine                    the plain way
    flash       parts.attend_prompt, attend_step  a matrix of scores, written to memory
    softmax     parts.softmax                     scale, mask, widen, softmax, narrow
    norm        parts.norm                        operation by operation
    gelu        parts.gelu                        operation by operation, after the matrix
    linear      parts.linear                      one weight of the cell's type
    rows        prefill                           short rows padded to the longest
    kv          cache                             concatenated at every token
    keys        key_multiple                      as many keys as there are
    mask        mask                              built in full for every pass
    head        head                              at every position of the prompt
    details     details                           always
    processing  choose                            a loop over requests
    draw        sampler                           a generator per request
    surgery     between_steps                     the batch stays as it is
    buffers     buffers, parts.add                new tensors at every pass
    step        step, matrices                    the modules, called
    speculation loop                              a token a step
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from claimbench.cost_model import cost
from claimbench.engine.buffers import Buffers, Fresh
from claimbench.engine.kv_cache import Cache, CacheShape, ConcatenatedCache
from claimbench.engine.masks import mask_in_full
from claimbench.engine.model.spec import Spec
from claimbench.engine.model.transformer import Parts, PassContext, Rotary, Transformer
from claimbench.engine.model.weights import Weights
from claimbench.engine.sampling import choose_one_by_one, draw_seeded
from claimbench.errors import Unavailable
from claimbench.schema.cell import Sampling

Step = Callable[[Tensor, Cache], Tensor]
"""(tokens [batch, new], cache) -> logits [batch, new, vocabulary]; the cache is `new` longer afterwards."""
Draw = Callable[[Tensor], Tensor]
"""Logits of every row [batch, vocabulary] -> tokens [batch]."""


@dataclass
class Details:
    """Log-probabilities of what was read and said: for every request, or for none."""

    prompt: Tensor | None = None
    """Of each prompt token given those before it, float32 [batch, positions]; as many as the head was computed for."""
    tokens: list[Tensor] = field(default_factory=list)
    """Of each new token, float32 [batch]."""


def prefill_padded(decoder: Decoder, cache: Cache) -> Tensor:
    """Every row as long as the longest: the padding is computed as well. Hidden states [batch, longest, hidden]."""
    context = decoder.context(cache, decoder.prompt.shape[1])
    hidden: Tensor = decoder.model(decoder.prompt, context, cache.slots)
    cache.length += context.new
    return hidden


def head_everywhere(decoder: Decoder, hidden: Tensor) -> Tensor:
    """Logits at every position, [batch, new, vocabulary]."""
    return decoder.model.head(hidden)


def head_at_last(decoder: Decoder, hidden: Tensor) -> Tensor:
    """Logits at the last position alone, [batch, 1, vocabulary]."""
    # rows that do not lie together would be multiplied one by one, each reading the whole head
    return decoder.model.head(hidden[:, -1:].contiguous())


def details_always(details: Details, prompt: Tensor | None, logits: Tensor, tokens: Tensor) -> None:
    """`prompt` [batch, positions] comes once, with the logits [batch, positions, vocabulary] of the prefill."""
    logs = logits.float().log_softmax(-1)
    if prompt is not None:
        kept = logs.shape[1] - 1
        details.prompt = logs[:, :-1].gather(-1, prompt[:, prompt.shape[1] - kept :, None])[..., 0]
    details.tokens.append(logs[:, -1].gather(-1, tokens[:, None])[:, 0])


def leave_batch(decoder: Decoder, cache: Cache, tokens: Tensor) -> Cache:
    """No request joins or leaves."""
    return cache


def step_modules(decoder: Decoder) -> Step:
    def step(tokens: Tensor, cache: Cache) -> Tensor:
        context = decoder.context(cache, tokens.shape[1])
        hidden = decoder.model(tokens, context, cache.slots)
        cache.length += context.new
        return decoder.model.head(hidden)

    return step


class Matrices(Protocol):
    """A model's matrices in an order of the step's own."""

    @property
    def held(self) -> dict[str, int]:
        """How many are stored in each format, as the code that multiplies with them reads it."""

    def parts(self, parts: Parts, weights: Weights) -> Parts:
        """`parts`, where need be with these matrices instead of others: none is held twice for nothing."""


def modules_have_them(decoder: Decoder, weights: Weights) -> Matrices | None:
    """The step reads the modules' matrices."""
    return None


def one_token_a_step(decoder: Decoder, tokens: Tensor, cache: Cache, wanted: int) -> Iterator[Tensor]:
    """New columns [batch, 1] after the first, which `tokens` [batch] is."""
    for _ in range(wanted - 1):
        cache = decoder.engine.between_steps(decoder, cache, tokens)
        logits = decoder.step(tokens[:, None], cache)
        tokens = decoder.sample_next(logits)
        yield tokens[:, None]


@dataclass
class Engine:
    """What is plugged into each seam."""

    dtype: torch.dtype
    device: torch.device
    parts: Parts = field(default_factory=Parts)
    prefill: Callable[[Decoder, Cache], Tensor] = prefill_padded
    cache: Callable[[CacheShape], Cache] = ConcatenatedCache
    key_multiple: int = 1
    mask: Callable[[Decoder, int, int, int], Tensor | None] = mask_in_full
    head: Callable[[Decoder, Tensor], Tensor] = head_everywhere
    details: Callable[[Details, Tensor | None, Tensor, Tensor], None] | None = details_always
    choose: Callable[[Tensor, Tensor, Sampling | None, Draw | None], Tensor] = choose_one_by_one
    sampler: Callable[[Sampling, int, torch.device], Draw] = draw_seeded
    between_steps: Callable[[Decoder, Cache, Tensor], Cache] = leave_batch
    buffers: Callable[[Decoder], Buffers] = Fresh
    step: Callable[[Decoder], Step] = step_modules
    loop: Callable[[Decoder, Tensor, Cache, int], Iterator[Tensor]] = one_token_a_step
    matrices: Callable[[Decoder, Weights], Matrices | None] = modules_have_them
    weight_bits: tuple[int, int] | None = None
    """Of the codes of the layers' matrices and of the head's, for a step that has matrices of its own."""


class Decoder:
    """An engine over one model and one batch of prompts, and over its draft model, where there is one."""

    def __init__(
        self,
        engine: Engine,
        spec: Spec,
        weights: Weights,
        rows: list[list[int]],
        wanted: int,
        draft: Decoder | None = None,
    ) -> None:
        self.engine, self.spec, self.draft = engine, spec, draft
        self.dtype, self.device = engine.dtype, engine.device
        if draft is not None and draft.spec.arch.vocabulary != spec.arch.vocabulary:
            sizes = f"{draft.spec.arch.vocabulary} tokens and {spec.arch.vocabulary}"
            raise Unavailable(f"draft and model must share a vocabulary, and these have {sizes}")
        self.matrices = engine.matrices(self, weights)
        parts = engine.parts if self.matrices is None else self.matrices.parts(engine.parts, weights)
        self.model = Transformer(spec, weights, parts)
        self.wanted = wanted
        self.lengths = [len(row) for row in rows]
        longest = max(self.lengths)
        padded = [row[:1] * (longest - len(row)) + row for row in rows]
        self.prompt = torch.tensor(padded, device=engine.device)  # [batch, longest]
        self.padding = torch.tensor([longest - len(row) for row in rows], device=engine.device)  # [batch]
        self.ragged = min(self.lengths) < longest
        self.cache_shape = CacheShape(
            arch=spec.arch,
            batch=len(rows),
            length=longest + wanted - 1,  # the last token is never read again
            dtype=engine.dtype,
            device=engine.device,
            key_multiple=engine.key_multiple,
        )
        self.sequence = self.prompt  # [batch, tokens so far]
        self.buffers = engine.buffers(self)
        self.step = engine.step(self)

    def context(self, cache: Cache, new: int) -> PassContext:
        """The pass that adds `new` tokens to `cache`."""
        past, keys = cache.length, cache.keys_after(new)
        only_causal = not self.ragged and self.model.slopes is None and self.engine.parts.causal(past, new, keys)
        bias = None if only_causal else self.engine.mask(self, past, new, keys)
        return PassContext(past, self.buffers.positions(past, new), bias)

    def generate(self, sampling: Sampling | None) -> Iterator[Tensor]:
        """New columns [batch, n] as they appear, `wanted` tokens a row in all."""
        tokens = self.sample_next(self.prefill(sampling), self.prompt)
        yield tokens[:, None]
        yield from self.engine.loop(self, tokens, self.cache, self.wanted)

    def sample_next(self, logits: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Choose every row's next token by the last of `logits` [batch, positions, vocabulary], and note it."""
        tokens = self.engine.choose(logits[:, -1], self.sequence, self.sampling, self.sampler)  # [batch]
        self.record_token(tokens, logits, prompt)
        return tokens

    def record_token(self, tokens: Tensor, logits: Tensor, prompt: Tensor | None = None) -> None:
        """Note every row's next token, [batch], which the last of `logits` [batch, positions, vocabulary] gave."""
        if self.engine.details is not None:
            self.engine.details(self.details, prompt, logits, tokens)
        self.sequence = self.buffers.extend(self.sequence, tokens)

    def prefill(self, sampling: Sampling | None) -> Tensor:
        """Prefill with an empty cache; logits [batch, positions, vocabulary]."""
        self.sampling = sampling
        self.sampler = self.engine.sampler(sampling, len(self.prompt), self.device) if sampling else None
        self.details = Details()
        self.sequence = self.buffers.begin(self.prompt)
        self.cache = self.engine.cache(self.cache_shape)
        if self.draft is not None:
            self.draft.prefill(sampling)
        logits = self.engine.head(self, self.engine.prefill(self, self.cache))
        self.prefill_positions = int(logits.shape[1])
        return logits

    def teacher_force(self, tokens: list[int]) -> Iterator[Tensor]:
        """Logits of row 0 before each of `tokens`, float32 [vocabulary], when every row is made to say them."""
        logits = self.prefill(None)
        for token in tokens:
            yield logits[0, -1].float().clone()
            if self.cache.length < self.cache_shape.length:
                logits = self.step(self.prompt.new_full((len(self.prompt), 1), token), self.cache)

    def memory(self) -> dict[str, int]:
        """Bytes: `weights` held, `step_weights` read by one decode step, `kv_cache` at full length."""
        parts = [self.model.layers, self.model.norm, self.model.head, self.model.embedding_norm]
        read = [part for part in parts if isinstance(part, nn.Module)]
        step = getattr(self.step, "weight_bytes", None)
        memory = {
            "weights": nbytes([*_tensors_of(self.model), *getattr(self.step, "tensors", list)()]),
            "step_weights": nbytes([tensor for part in read for tensor in _tensors_of(part)])
            if step is None
            else step(),
            "kv_cache": int(
                cost.kv_bytes(self.spec.arch, len(self.prompt), self.cache_shape.length, self.dtype.itemsize)
            ),
        }
        if self.draft is not None:
            memory["draft_weights"] = self.draft.memory()["weights"]
            memory["weights"] += memory["draft_weights"]
        return memory


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """What it holds for a step to read: all but the tables of rotary positions, which are looked up by row."""
    for part in module.modules():
        if not isinstance(part, Rotary):
            yield from part.parameters(recurse=False)
            yield from part.buffers(recurse=False)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind `tensors`, shared ones once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
