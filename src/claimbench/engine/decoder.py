"""The decode loop as a few seams, each with a plain way that an optimization can replace.

A generation is: prefill the prompt, choose a token, then step and choose until every row has its length. `Engine` names
the seams and holds what is plugged into each; `compose` plugs in the techniques of a cell; `Decoder` binds them to a
model. The plain way of every seam is what document B calls `causal`: one request after the other, a cache that is
concatenated at every token, the head and log-probabilities at every position, a random generator per request.

The order of calls, by the names of the seams in `Engine`:

    once        matrices(spec, weights, storage), buffers(batch, model), step(setup) -> the step that is called below
    1. prefill  sampler(sampling, batch, device), buffers.begin(prompt), cache(cache_shape);
                prefill(setup, cache) -> hidden states, in which mask(batch, past, new, keys) is made;
                head(model, hidden) -> logits; a draft model does all of this just before
    2. sample   choose(logits, sequence, sampling, sampler) -> tokens; details(...); buffers.extend(sequence, tokens)
    3. decode   loop(decoder, tokens, cache, wanted), until every row has its length: between_steps(decoder, cache,
                tokens) -> cache; the step(tokens, cache) -> logits, in which mask is made again; sample as in 2
    4. verify   speculation's loop alone: instead of step and sample, one step over the last token and the drafts,
                choose at each place, cache.truncate to what is kept, details and buffers.extend for each kept token

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

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from claimbench.cost_model import cost
from claimbench.engine.batch import Batch, batch_of
from claimbench.engine.buffers import Buffers, Fresh
from claimbench.engine.kv_cache import Cache, CacheShape, ConcatenatedCache
from claimbench.engine.masks import Mask, mask_in_full
from claimbench.engine.model.feed_forward import Experts
from claimbench.engine.model.parts import Parts, PlainLinear
from claimbench.engine.model.positions import Rotary
from claimbench.engine.model.spec import Spec
from claimbench.engine.model.transformer import Transformer
from claimbench.engine.model.weights import Weights
from claimbench.engine.pass_setup import Matrices, MatrixStorage, PassSetup, Step
from claimbench.engine.sampling import choose_one_by_one, draw_seeded
from claimbench.errors import Unavailable
from claimbench.schema.cell import Sampling

Draw = Callable[[Tensor], Tensor]
"""Logits of every row [batch, vocabulary] -> tokens [batch]."""


BEYOND = 256
"""Positions behind the last token that tables reach to: drafts may be longer than what is kept of them."""


@dataclass
class Details:
    """Log-probabilities of the prompt and of the new tokens: for every request, or for none."""

    prompt: Tensor | None = None
    """Of each prompt token given those before it, float32 [batch, positions]; as many as the head was computed for."""
    tokens: list[Tensor] = field(default_factory=list)
    """Of each new token, float32 [batch]."""


def prefill_padded(setup: PassSetup, cache: Cache) -> Tensor:
    """Every row as long as the longest: the padding is computed as well. Hidden states [batch, longest, hidden]."""
    prompt = setup.batch.prompt
    context = setup.context(cache, prompt.shape[1])
    hidden: Tensor = setup.model(prompt, context, cache.slots)
    cache.length += context.new
    return hidden


def head_everywhere(model: Transformer, hidden: Tensor) -> Tensor:
    """Logits at every position, [batch, new, vocabulary]."""
    return model.head(hidden)


def head_at_last(model: Transformer, hidden: Tensor) -> Tensor:
    """Logits at the last position alone, [batch, 1, vocabulary]."""
    # rows that do not lie together would be multiplied one by one, each reading the whole head
    return model.head(hidden[:, -1:].contiguous())


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


def step_modules(setup: PassSetup) -> Step:
    model = setup.model

    def step(tokens: Tensor, cache: Cache) -> Tensor:
        context = setup.context(cache, tokens.shape[1])
        hidden = model(tokens, context, cache.slots)
        cache.length += context.new
        return model.head(hidden)

    return step


def modules_have_them(spec: Spec, weights: Weights, storage: MatrixStorage) -> Matrices | None:
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
    prefill: Callable[[PassSetup, Cache], Tensor] = prefill_padded
    cache: Callable[[CacheShape], Cache] = ConcatenatedCache
    key_multiple: int = 1
    mask: Mask = mask_in_full
    head: Callable[[Transformer, Tensor], Tensor] = head_everywhere
    details: Callable[[Details, Tensor | None, Tensor, Tensor], None] | None = details_always
    choose: Callable[[Tensor, Tensor, Sampling | None, Draw | None], Tensor] = choose_one_by_one
    sampler: Callable[[Sampling, int, torch.device], Draw] = draw_seeded
    between_steps: Callable[[Decoder, Cache, Tensor], Cache] = leave_batch
    buffers: Callable[[Batch, Transformer], Buffers] = Fresh
    step: Callable[[PassSetup], Step] = step_modules
    loop: Callable[[Decoder, Tensor, Cache, int], Iterator[Tensor]] = one_token_a_step
    matrices: Callable[[Spec, Weights, MatrixStorage], Matrices | None] = modules_have_them
    weight_bits: tuple[int, int] | None = None
    """Of the codes of the layers' matrices and of the head's, for a step that has matrices of its own."""

    @property
    def storage(self) -> MatrixStorage:
        plain_modules = self.parts.linear is PlainLinear and self.buffers is Fresh
        return MatrixStorage(self.dtype, self.weight_bits, plain_modules)


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
        length = max(map(len, rows)) + wanted - 1  # the last token is never read again
        spec = spec.served_at(max(map(len, rows)), length)
        self.engine, self.spec, self.draft = engine, spec, draft
        if draft is not None and draft.spec.arch.vocabulary != spec.arch.vocabulary:
            sizes = f"{draft.spec.arch.vocabulary} tokens and {spec.arch.vocabulary}"
            raise Unavailable(f"draft and model must share a vocabulary, and these have {sizes}")
        matrices = engine.matrices(spec, weights, engine.storage)
        parts = engine.parts if matrices is None else matrices.parts(engine.parts, weights)
        model = Transformer(spec, weights, parts, longest=length + BEYOND)
        cache_shape = CacheShape(
            arch=spec.arch,
            batch=len(rows),
            length=length,
            dtype=engine.dtype,
            device=engine.device,
            key_multiple=engine.key_multiple,
        )
        self.wanted = wanted
        self.batch = batch_of(rows, model.slopes, cache_shape)
        self.buffers = engine.buffers(self.batch, model)
        self.setup = PassSetup(model, self.batch, engine.mask, self.buffers, matrices)
        self.step = engine.step(self.setup)
        self.sequence = self.batch.prompt  # [batch, tokens so far]

    def generate(self, sampling: Sampling | None) -> Generator[Tensor, None, None]:
        """New columns [batch, n] as they appear, `wanted` tokens a row in all."""
        tokens = self.sample_next(self.prefill(sampling), self.batch.prompt)
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
        batch = self.batch
        self.sampler = self.engine.sampler(sampling, len(batch.prompt), batch.device) if sampling else None
        self.details = Details()
        self.sequence = self.buffers.begin(batch.prompt)
        self.cache = self.engine.cache(batch.cache_shape)
        if self.draft is not None:
            self.draft.prefill(sampling)
        logits = self.engine.head(self.setup.model, self.engine.prefill(self.setup, self.cache))
        self.prefill_positions = int(logits.shape[1])
        return logits

    def teacher_force(self, tokens: list[int]) -> Iterator[Tensor]:
        """Logits of row 0 before each of `tokens`, float32 [vocabulary], which every row is made to take."""
        logits = self.prefill(None)
        for token in tokens:
            yield logits[0, -1].float().clone()
            if self.cache.length < self.batch.cache_shape.length:
                prompt = self.batch.prompt
                logits = self.step(prompt.new_full((len(prompt), 1), token), self.cache)

    def memory(self) -> dict[str, int]:
        """Bytes: `weights` held, `step_weights` read by one decode step, `kv_cache` at full length."""
        model, shape = self.setup.model, self.batch.cache_shape
        parts = [model.layers, model.norm, model.head, model.embedding_norm]
        read = [part for part in parts if isinstance(part, nn.Module)]
        step = getattr(self.step, "weight_bytes", None)
        memory = {
            "weights": nbytes([*_tensors_of(model), *getattr(self.step, "tensors", list)()]),
            "step_weights": nbytes([tensor for part in read for tensor in _tensors_of(part)]) - _idle_bytes(model)
            if step is None
            else step(),
            "kv_cache": int(cost.kv_bytes(shape.arch, shape.batch, shape.length, shape.dtype.itemsize)),
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


def _idle_bytes(model: nn.Module) -> int:
    """Of experts that one token does not pass through."""
    mixtures = [part for part in model.modules() if isinstance(part, Experts)]
    held = ((one, nbytes([*_tensors_of(one.up), *_tensors_of(one.down)])) for one in mixtures)
    return int(sum(size * (1 - one.mixture.active / one.mixture.count) for one, size in held))


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind `tensors`, shared ones once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
