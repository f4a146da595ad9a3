"""Claimbench's own engine: the reference transformer behind a decode loop in which every part can be exchanged.

Its plain run is document B's `causal`. It reads the safetensors shards directly, and its tokens are compared with
Transformers' own.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from claimbench import optimizations
from claimbench.cell import Cell, Frozen, OptimizationUse
from claimbench.errors import OutOfMemory, Unavailable
from claimbench.model.spec import Spec, read_spec
from claimbench.prompt import prompt_ids, row_lengths

if TYPE_CHECKING:
    from claimbench.engine import Engine
    from claimbench.model.weights import Weights

REFERENCE = "transformers"
ENVIRONMENT = "core"
LIBRARIES = ("safetensors", "tokenizers", "torch", "transformers")
IMPORTS = ("torch",)
SEAMS = frozenset(
    {
        "flash", "softmax", "norm", "gelu", "linear", "rows", "kv", "keys", "mask", "head", "details", "processing",
        "draw", "surgery", "buffers", "step", "speculation",
    }
)  # fmt: skip

PROOF_STEPS = 4
Kind = TypeVar("Kind", bound="EngineSession")


class Options(Frozen):
    """None: everything that can be changed is an optimization."""


def unavailable(cell: Cell) -> str | None:
    absent = [name for name in ("torch", "transformers", "safetensors") if find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> EngineSession:
    """The cell's model, ready to generate.

    Raises:
        Unavailable: this machine or installation lacks what a technique needs.
        OutOfMemory: the weights do not fit.
    """
    return checked(EngineSession, cell, checkpoint, draft)


def checked(kind: type[Kind], cell: Cell, checkpoint: Path, draft: Path | None) -> Kind:
    """A session of `kind`, where nothing that it needs is lacking; raises as `load` does."""
    import torch

    if cell.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("torch sees no CUDA device")
    for use in cell.optimizations:
        reason = optimizations.find(use.name).unavailable(cell, optimizations.settings_of(use.name, use.settings))
        if reason:
            raise Unavailable(f"{use.name}: {reason}")
    try:
        return kind(cell, checkpoint, draft)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error)) from error


class EngineSession:
    def __init__(self, cell: Cell, checkpoint: Path, draft: Path | None) -> None:
        import torch

        from claimbench.engine import Decoder
        from claimbench.proof import Compilations

        self.cell = cell
        spec = spec_in(checkpoint)
        longest = prompt_ids(cell, checkpoint, spec.arch.vocabulary)
        rows = [longest[len(longest) - length :] for length in row_lengths(cell.workload, len(longest))]
        if spec.window and len(longest) + cell.workload.new_tokens > spec.window:
            raise Unavailable(f"a sequence over the sliding window of {spec.window} tokens: the engine has no window")

        def decoder(engine: Engine, folder: Path, drafter: Decoder | None = None) -> Decoder:
            own, weights = self.open(folder)
            return Decoder(engine, own, weights, rows, cell.workload.new_tokens, drafter)

        with torch.inference_mode():
            alone = [use for use in cell.optimizations if not drafts(use)]
            drafter = decoder(self.composed(alone), draft) if draft else None
            self.decoder = decoder(self.composed(cell.optimizations), checkpoint, drafter)
        give_back_memory()
        # importing the compiler takes seconds: where no technique has, there is nothing to count
        self.compilations = Compilations() if "torch._dynamo" in sys.modules else None

    def open(self, folder: Path) -> tuple[Spec, Weights]:
        """The decoder in `folder` and its weights, in the cell's type and on its device."""
        import torch

        from claimbench.model.weights import read_weights

        spec = spec_in(folder)
        return spec, read_weights(folder, spec, getattr(torch, self.cell.dtype), self.cell.device)

    def composed(self, uses: Iterable[OptimizationUse]) -> Engine:
        import torch

        from claimbench.engine import Engine, compose

        return compose(Engine(getattr(torch, self.cell.dtype), torch.device(self.cell.device)), uses)

    @property
    def prompt_tokens(self) -> int:
        return int(self.decoder.prompt.shape[1])

    def generate(self) -> Iterator[Any]:
        import torch

        run: Iterator[Any] = torch.inference_mode()(self.decoder.generate)(self.cell.workload.sampling)
        return run

    def memory(self) -> dict[str, int]:
        return self.decoder.memory()

    def prove(self) -> dict[str, Any]:
        """What was seen to run in a few more steps.

        Raises:
            WrongOutput: a technique that was asked for did not run, or the logits are not finite.
        """
        from claimbench import proof
        from claimbench.witness import watch

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
            "optimizations": {
                use.name: optimizations.find(use.name).prove(seen, optimizations.settings_of(use.name, use.settings))
                for use in self.cell.optimizations
            },
        }

    def log_probs(self, tokens: list[int]) -> Any:
        """By the very steps that are timed, forced along `tokens`: what a technique rounds, this sees."""
        import torch

        with torch.inference_mode():
            return torch.stack([logits.log_softmax(-1) for logits in self.decoder.force(tokens)])

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


def drafts(use: OptimizationUse) -> bool:
    """Whether the technique is about a draft checkpoint, which is then served by all the other ones too."""
    return hasattr(optimizations.find(use.name), "CHECKPOINT_SETTING")


def spec_in(folder: Path) -> Spec:
    return read_spec(json.loads((folder / "config.json").read_text(encoding="utf-8")))
