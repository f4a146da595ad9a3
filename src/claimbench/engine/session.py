"""A loaded engine that generates a cell's workload, proves what ran, and says what it holds."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from claimbench import proof
from claimbench.checkpoints.prompt import prompt_ids
from claimbench.engine.model.read_spec import read_spec
from claimbench.engine.model.spec import Spec
from claimbench.errors import OutOfMemory, Unavailable
from claimbench.schema.cell import Cell, row_lengths
from claimbench.system.compilers import tune_alike
from claimbench.technique import Technique

if TYPE_CHECKING:
    from torch import Tensor

    from claimbench.engine.decoder import Engine
    from claimbench.engine.model.weights import Weights


def compose(engine: Engine, techniques: Iterable[Technique]) -> Engine:
    """`engine` with each technique put in at its seam."""
    for technique in techniques:
        technique.apply(engine)
    return engine


PROOF_STEPS = 4

Kind = TypeVar("Kind", bound="EngineSession")


def checked(
    kind: type[Kind], cell: Cell, checkpoint: Path, draft: Path | None, techniques: tuple[Technique, ...]
) -> Kind:
    """A session of `kind`, where nothing that it needs is lacking; raises as `load` does."""
    import torch

    if cell.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("torch sees no CUDA device")
    tune_alike(cell.device)
    for technique in techniques:
        reason = technique.unavailable(cell)
        if reason:
            raise Unavailable(reason)
    try:
        return kind(cell, checkpoint, draft, techniques)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error)) from error


class EngineSession:
    def __init__(self, cell: Cell, checkpoint: Path, draft: Path | None, techniques: tuple[Technique, ...]) -> None:
        import torch

        from claimbench.engine.decoder import Decoder

        self.cell, self.techniques = cell, techniques
        spec = spec_in(checkpoint)
        reason = next(filter(None, (technique.lacks(spec) for technique in techniques)), None)
        if reason:
            raise Unavailable(reason)
        longest = prompt_ids(cell, checkpoint, spec.arch.vocabulary)
        rows = [longest[len(longest) - length :] for length in row_lengths(cell.workload, len(longest))]

        def decoder(engine: Engine, folder: Path, drafter: Decoder | None = None) -> Decoder:
            own, weights = self.open(folder)
            return Decoder(engine, own, weights, rows, cell.workload.new_tokens, drafter)

        with torch.inference_mode():
            alone = [technique for technique in techniques if not technique.is_about_draft]
            drafter = decoder(self.composed(alone), draft) if draft else None
            self.decoder = decoder(self.composed(techniques), checkpoint, drafter)
        give_back_memory()
        # importing the compiler takes seconds: where no technique has, there is nothing to count
        self.compilations = proof.Compilations() if "torch._dynamo" in sys.modules else None

    def open(self, folder: Path) -> tuple[Spec, Weights]:
        """The decoder in `folder` and its weights, in the cell's type and on its device."""
        import torch

        from claimbench.engine.model.weights import read_weights

        spec = spec_in(folder)
        return spec, read_weights(folder, spec, getattr(torch, self.cell.dtype), self.cell.device)

    def composed(self, techniques: Iterable[Technique]) -> Engine:
        import torch

        from claimbench.engine.decoder import Engine

        return compose(Engine(getattr(torch, self.cell.dtype), torch.device(self.cell.device)), techniques)

    @property
    def prompt_tokens(self) -> int:
        return int(self.decoder.batch.prompt.shape[1])

    @property
    def prompt_ids(self) -> list[int]:
        ids: list[int] = self.decoder.batch.prompt[0].tolist()
        return ids

    def generate(self) -> Generator[Tensor, None, None]:
        import torch

        return torch.inference_mode()(self.decoder.generate)(self.cell.workload.sampling)

    def memory(self) -> dict[str, int]:
        return self.decoder.memory()

    def prove(self) -> proof.Findings:
        """What was seen to run in a few more steps.

        Raises:
            WrongOutput: a technique that was asked for did not run, or the logits are not finite.
        """
        from claimbench.engine.evidence import watch

        compiled = self.compilations.so_far() if self.compilations else proof.Compiled()
        seen = watch(self.decoder, self.generate, PROOF_STEPS, compiled)
        proof.expect_finite(*seen.logits)
        return {
            "graphs": seen.compiled.graphs,
            "recompiles": seen.compiled.recompiles,
            "graph_breaks": seen.compiled.graph_breaks,
            "cache": seen.cache,
            "cache_bytes": [step.cache_bytes for step in seen.steps],
            "python_calls_per_step": [sum(step.timed_calls.values()) for step in seen.steps],
            "operators_per_step": [sum(step.launched.values()) for step in seen.steps],
            "graph_launches": sum(step.graph_launches for step in seen.steps),
            "step_tokens": [seen.prefill.columns, *(step.columns for step in seen.steps)],
            "weights": seen.weights,
            "optimizations": {technique.name: technique.prove(seen) for technique in self.techniques},
        }

    def log_probs(self, tokens: list[int]) -> Tensor:
        """By the very steps that are timed, forced along `tokens`: what a technique rounds, this sees."""
        import torch

        with torch.inference_mode():
            return torch.stack([logits.log_softmax(-1) for logits in self.decoder.teacher_force(tokens)])

    def close(self) -> None:
        import torch

        del self.decoder
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def give_back_memory() -> None:
    """Return what loading freed to the system: weights that were joined, packed or rounded came in copies.

    glibc keeps gigabytes of them, which a process's resident memory would blame on the model.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def spec_in(folder: Path) -> Spec:
    return read_spec(json.loads((folder / "config.json").read_text(encoding="utf-8")))
