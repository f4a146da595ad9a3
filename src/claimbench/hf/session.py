"""A loaded Transformers model that generates a cell's workload, proves what ran, and says what it holds."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from claimbench import proof
from claimbench.checkpoints.loaded_model import decoder_in
from claimbench.checkpoints.prompt import prompt_rows
from claimbench.cost_model import cost
from claimbench.errors import Unavailable
from claimbench.hf import evidence, weight_memory
from claimbench.hf.loading import refusals
from claimbench.hf.setup import Choose, Generation, GenerationSetup
from claimbench.hf.stepper import Emit, Stepper, StepTap
from claimbench.proof import Findings
from claimbench.schema.card import FLOAT_BYTES, Card
from claimbench.schema.cell import DTYPE_BYTES, Cell, Workload
from claimbench.technique import Technique

if TYPE_CHECKING:
    from torch import Size, Tensor
    from transformers import Cache, PreTrainedModel, StaticCache

PROOF_STEPS = 4


def make_setup(cell: Cell, techniques: tuple[Technique, ...]) -> GenerationSetup:
    """The plain setup, changed by each of the cell's techniques."""
    setup = GenerationSetup(dtype=cell.dtype, device=cell.device, techniques=techniques)
    for technique in techniques:
        reason = technique.unavailable(cell)
        if reason:
            raise Unavailable(reason)
        technique.apply(setup)
    several = cell.workload.shortest is not None or (bool(cell.workload.others) and cell.workload.batch > 1)
    if several and setup.loop is not None and cell.workload.pads != "right":
        raise Unavailable("the hand-written loop takes rows of one length, or such as are padded on the right")
    if setup.cache_length is not None and setup.loop is None:
        raise Unavailable(
            "`generate` allocates a static cache for the tokens that there are: use the hand-written loop"
        )
    if several and setup.drafts:
        raise Unavailable("drafts take rows of one length")
    return setup


class TransformersSession:
    def __init__(
        self,
        cell: Cell,
        setup: GenerationSetup,
        checkpoint: Path,
        model: PreTrainedModel,
        assistant: PreTrainedModel | None,
    ) -> None:
        import torch

        self.cell, self.setup, self.model, self.assistant = cell, setup, model, assistant
        self.decoder = decoder_in(checkpoint, cell.checkpoint)
        rows = prompt_rows(cell, checkpoint, model.config.get_text_config(decoder=True).vocab_size)
        self.row = max(rows[:1] if cell.workload.others else rows, key=len)
        """The first row's prompt, without padding."""
        longest = max(map(len, rows))
        on_right = cell.workload.pads == "right"
        self.prompt = torch.tensor([_padded(row, longest, on_right) for row in rows], device=setup.device)
        """Token ids, [batch, prompt tokens]."""
        lengths = self.prompt.new_tensor([len(row) for row in rows])[:, None]
        places = torch.arange(longest, device=setup.device)  # [prompt tokens]
        self.mask = (places < lengths if on_right else places >= longest - lengths).long()  # [batch, prompt tokens]
        self._forget_generation_defaults()
        self.compilations = proof.Compilations()
        self.driven = model
        for transform in setup.transforms:
            self.driven = transform(self.driven)
        self._choose = _chooser(cell)
        self._static_cache: StaticCache | None = None
        self._static_shape = (0, 0)
        self.earlier: list[tuple[int, int]] = []
        """Rows and new tokens that came out of each generation of another shape, before the first whole one."""

    def _forget_generation_defaults(self) -> None:
        """A checkpoint may ask for sampling, penalties or an end of sequence; here, the workload alone decides."""
        from transformers import GenerationConfig

        drafts = self.model if self.assistant is None else self.assistant
        for model in (self.model, drafts):
            model.generation_config = GenerationConfig()
        drafts.generation_config.update(**self.setup.drafting)

    @property
    def prompt_tokens(self) -> int:
        return int(self.prompt.shape[1])

    @property
    def prompt_ids(self) -> list[int]:
        return list(self.row)

    def generate(self) -> Generator[Tensor, None, None]:
        return self._run().steps()

    def _run(self) -> Stepper:
        return Stepper(self._generation, [partial(refusals, self.setup), *self.setup.around])

    def _generation(self, emit: Emit) -> None:
        if self.setup.earlier is not None and not self.earlier:
            self.earlier += [self._shape_of(workload) for workload in self.setup.earlier(self.cell.workload)]
        self._generate(self.cell.workload, emit)

    def _shape_of(self, workload: Workload) -> tuple[int, int]:
        """Generate `workload` to its end: rows and new tokens, counted as they come."""
        shapes: list[Size] = []
        self._generate(workload, lambda columns: shapes.append(columns.shape))
        return int(shapes[0][0]), sum(int(shape[1]) for shape in shapes)

    def _generate(self, workload: Workload, emit: Emit) -> None:
        """One generation of the cell's workload, or of a smaller one: fewer tokens, or its first rows alone."""
        import torch

        self.setup.phase.prefill = True
        if workload.sampling:
            torch.manual_seed(workload.sampling.seed)
        if self.setup.loop is None:
            self._call_generate(workload, emit)
        else:
            prompt, mask = self.prompt[: workload.batch], self.mask[: workload.batch]
            cache = self._empty_cache(workload)
            self.setup.loop(Generation(self.driven, prompt, mask, workload.new_tokens, cache, self._choose, emit))

    def _call_generate(self, workload: Workload, emit: Emit) -> None:
        from transformers import GenerationConfig, StoppingCriteriaList

        setup, prompt = self.setup, self.prompt[: workload.batch]
        settings: dict[str, object] = {
            "max_new_tokens": workload.new_tokens,
            "do_sample": workload.sampling is not None,
            "use_cache": setup.cache != "none",
            "cache_implementation": "static" if setup.cache == "static" else None,
            "disable_compile": True,  # a static cache is one technique, a compiled forward another
            **setup.generate,
        }
        if workload.sampling:
            settings |= workload.sampling.model_dump(exclude={"seed"})
        tap = StepTap(prompt, emit)
        with tap.beside_drafts(self.model) if setup.drafts else nullcontext():
            self.driven.generate(
                prompt,
                attention_mask=self.mask[: workload.batch],
                generation_config=GenerationConfig(**settings),
                stopping_criteria=StoppingCriteriaList([tap]),
                assistant_model=self.assistant,
            )

    def _empty_cache(self, workload: Workload) -> Cache | None:
        """For the hand-written loop. A static cache is allocated once a shape and then emptied, as its makers ask."""
        from transformers import DynamicCache, StaticCache

        config = self.model.config.get_text_config(decoder=True)
        if self.setup.cache == "dynamic":
            return DynamicCache(config=config)
        if self.setup.cache == "none":
            return None
        least = self.prompt_tokens + workload.new_tokens - 1  # the last token is never read again
        if self.setup.cache_length is not None and self.setup.cache_length < least:
            raise Unavailable(f"a static cache of {self.setup.cache_length} tokens is too short for {least}")
        shape = workload.batch, self.setup.cache_length or least
        if self._static_cache is None or self._static_shape != shape:
            self._static_cache, self._static_shape = StaticCache(config=config, max_cache_len=shape[1]), shape
        else:
            self._static_cache.reset()
        return self._static_cache

    def memory(self) -> dict[str, int]:
        weights, read = weight_memory.weight_bytes(self.model)
        length = self.prompt_tokens + self.cell.workload.new_tokens
        held = DTYPE_BYTES[self.cell.dtype] if self.setup.cache != "none" else 0
        memory = {"weights": weights, "step_weights": read}
        if not isinstance(self.decoder, Card) or self.decoder.kept is not None:
            memory["kv_cache"] = int(cost.kv_bytes(self.decoder, self.cell.workload.batch, length, held))
        if self.assistant is not None:
            memory["draft_weights"] = weight_memory.weight_bytes(self.assistant)[0]
            memory["weights"] += memory["draft_weights"]
        return memory

    def prove(self) -> Findings:
        """What was seen to run: compilations so far, then a few steps of one more generation, watched.

        Raises:
            WrongOutput: a technique that was asked for did not run, one that was not asked for did, or the logits are
                not finite.
        """
        seen = self.watch()
        proof.check_finite(self._logits(self.prompt[:1], last=1))
        self._check_narrow()
        found = evidence.check_plain(seen, self.setup)
        found["optimizations"] = {technique.name: technique.prove(seen) for technique in self.setup.techniques}
        return found

    def _check_narrow(self) -> None:
        """Raises Unavailable where the files hold narrow weights and the model no longer does: it was timed widened."""
        stored = self.decoder.stored_bytes if isinstance(self.decoder, Card) else None
        wanted = sum(size for dtype, size in stored.held.items() if dtype not in FLOAT_BYTES) if stored else 0
        if weight_memory.narrow_bytes(self.model) < wanted / self.cell.devices / 2:
            raise Unavailable(f"Transformers widened the weights to {self.cell.dtype}, instead of reading them narrow")

    def watch(self) -> evidence.TransformersEvidence:
        """Evidence from the first steps of one more generation; compilations are counted before it."""
        compiled = self.compilations.so_far()
        whole = self.cell.workload.batch, self.cell.workload.new_tokens
        device = self.setup.device
        return evidence.watch(self._run(), PROOF_STEPS, self.model, self.driven, device, compiled, whole, self.earlier)

    def log_probs(self, tokens: list[int]) -> Tensor:
        import torch

        row = self.prompt.new_tensor([*self.row, *tokens[:-1]])
        with torch.no_grad():
            return self._logits(row[None], last=len(tokens))[0].float().log_softmax(-1)

    def _logits(self, sequence: Tensor, last: int) -> Tensor:
        """Logits of the last positions, [batch, last, vocabulary], by the model itself and never by compiled code."""
        import torch

        self.setup.phase.prefill = True
        with torch.no_grad(), refusals(self.setup):
            logits: Tensor = self.model(input_ids=sequence, use_cache=False, logits_to_keep=last).logits
            return logits

    def close(self) -> None:
        import torch

        self.model = self.driven = self.assistant = self._static_cache = None
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _padded(row: list[int], length: int, on_right: bool) -> list[int]:
    """`row` filled up to `length` tokens.

    Padding is masked, but a repetition penalty may look at it: the row's own first token tells it nothing new.
    """
    padding = row[:1] * (length - len(row))
    return row + padding if on_right else padding + row


def _chooser(cell: Cell) -> Choose:
    """How a hand-written loop picks the next tokens: as `generate` does, in float32."""
    import torch
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    )

    sampling = cell.workload.sampling
    if sampling is None:
        return lambda _, logits: logits.float().argmax(-1)
    warpers = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        warpers.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature != 1:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.typical_p < 1:
        warpers.append(TypicalLogitsWarper(sampling.typical_p))

    def draw(sequence: Tensor, logits: Tensor) -> Tensor:
        return torch.multinomial(warpers(sequence, logits.float()).softmax(-1), 1)[:, 0]

    return draw
