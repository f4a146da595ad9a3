"""DeepSpeed-Inference with kernels of its own in the place of a model's layers: document C's system.

Physics: at batch 1 a layer's dozens of small operations cost a launch each, and each reads and writes activations
through memory. DeepSpeed's fused kernels do a layer in a few launches, and keep keys and values in a workspace that is
allocated once. Cut over n devices, a step also reads 1/n of the weights on each, for two all-reduces a layer.

DeepSpeed 0.19.8 injects into BLOOM with Transformers 4.43.4 at most, so this backend has an environment of its own with
that version, for Python 3.11 and 3.12. Its kernels are CUDA's, and compiled when the environment is built.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from claimbench import optimizations, proof
from claimbench.backends import transformers
from claimbench.checkpoints.prompt import prompt_rows
from claimbench.cost_model import cost
from claimbench.errors import WrongOutput
from claimbench.hf import deepspeed as runtime
from claimbench.hf import older
from claimbench.hf.loading import refusals
from claimbench.hf.session import TransformersSession, make_setup
from claimbench.hf.setup import GenerationSetup
from claimbench.hf.stepper import Emit
from claimbench.proof import Findings
from claimbench.schema.cell import Cell, Workload
from claimbench.schema.frozen import Frozen
from claimbench.schema.load import Layout
from claimbench.system import launchers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

REFERENCE = "transformers"
ENVIRONMENT = "deepspeed_injection"
LIBRARIES = runtime.LIBRARIES
SWITCH = "deepspeed.init_inference(model, replace_with_kernel_inject=True, ...)"
IMPORTS = transformers.IMPORTS
import_model = transformers.import_model
SEAMS = frozenset({"injected"})

INJECTED = {"bloom"}
"""Families that were tried. DeepSpeed has policies for more, each written for the Transformers of its day."""
PART = "transformer_inference"
LAYERS = "DeepSpeed"
"""What the classes of layers with DeepSpeed's own kernels begin with."""
WORKSPACE_TOKENS = 1024
"""DeepSpeed's own default, of prompt and answer together; longer workloads get more."""
REFUSED = {
    "had not been implemented on CPU": "use a GPU",
    "is not supported by cpu accelerator": "use a GPU",
}


class Options(Frozen):
    devices: int = Field(default=1, ge=1, description="ranks, each with a GPU of its own")
    checkpoint: Literal["unsharded", "pre-sharded"] = Field(
        default="unsharded", description="every rank reads all weights and keeps its own, or reads only its own"
    )


def unavailable(cell: Cell) -> str | None:
    options = Options.model_validate(cell.options)
    architecture = cost.architecture_of(cell.checkpoint)
    family = architecture.family if architecture else "this architecture"
    if cell.device == "cpu":
        return (
            "DeepSpeed's kernels run on GPUs alone: on a CPU it says 'This op had not been implemented on CPU backend'"
        )
    if sys.version_info >= (3, 13):
        return "its environment has Transformers 4.43.4, which needs Python 3.11 or 3.12"
    if family not in INJECTED:
        return f"no kernels to inject into {family} here: use deepspeed_inference, which cuts the model"
    if options.checkpoint == "pre-sharded":
        return (
            "DeepSpeed reads pre-sharded weights for its kernels from pickles alone, which may run code: not read here"
        )
    return runtime.too_many(cell, oversubscribe=False)


def spread(options: Options) -> tuple[Layout, int] | None:
    return "tensor_parallel", options.devices


def launch(cell: Cell) -> list[str] | None:
    return launchers.torchrun(cell.devices)


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> InjectedSession:
    """This rank's part of the model, with DeepSpeed's layers.

    Raises:
        Unavailable: DeepSpeed or its kernels are not there, or do not support what was asked for.
        OutOfMemory: the weights do not fit.
    """
    options = Options.model_validate(cell.options)
    runtime.require(PART, environment=ENVIRONMENT)
    runtime.join(cell)
    older.speak_as_today()
    setup = make_setup(cell, optimizations.used_by(cell))
    with refusals(setup), runtime.refusing(REFUSED):
        model = _whole_model(setup, checkpoint)
        rows = prompt_rows(cell, checkpoint, int(model.config.vocab_size))
        tokens = max(map(len, rows)) + cell.workload.new_tokens
        return InjectedSession(cell, setup, checkpoint, _injected(setup, options.devices, model, tokens), None)


def _whole_model(setup: GenerationSetup, folder: Path) -> PreTrainedModel:
    """All weights, in this rank's host memory, as the document's script of the unsharded checkpoint reads them.

    Raises:
        WrongOutput: the folder lacks weights that the model has.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        torch_dtype=getattr(torch, setup.dtype),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **setup.load,
    )
    if info["missing_keys"]:
        raise WrongOutput(f"{folder} lacks {sorted(info['missing_keys'])[0]}: it would be drawn at random")
    return model


def _injected(setup: GenerationSetup, devices: int, model: PreTrainedModel, tokens: int) -> PreTrainedModel:
    import deepspeed
    import torch

    settings: dict[str, object] = {
        "dtype": getattr(torch, setup.dtype),
        "replace_with_kernel_inject": True,
        "tensor_parallel": {"tp_size": devices},
        "max_out_tokens": max(tokens, WORKSPACE_TOKENS),
        **setup.inference,
    }
    engine = deepspeed.init_inference(model, **settings)
    return runtime.quiet(engine.module)


class InjectedSession(TransformersSession):
    """A model of Transformers that `generate` drives, in every rank, through DeepSpeed's layers.

    They keep the keys and values of the pass before, which are forgotten before another one.
    """

    def prove(self) -> Findings:
        """Kernels keep their own cache and attention, so nothing but their layers can be seen from outside.

        Raises:
            WrongOutput: a layer is still Transformers' own, or a technique that was asked for did not run.
        """
        seen = self.watch()
        proof.check_finite(self._logits(self.prompt[:1], last=1))
        layers = {name: times for name, times in seen.modules.items() if name.startswith(LAYERS)}
        proof.expect(
            "kernel injection", sum(layers.values()) >= seen.layers, f"{LAYERS}* in {seen.layers} layers", seen.modules
        )
        return {
            "modules": layers,
            "weights": seen.weights,
            "step_tokens": seen.step_tokens,
            "optimizations": {technique.name: technique.prove(seen) for technique in self.setup.techniques},
        }

    def _logits(self, sequence: Tensor, last: int) -> Tensor:
        import torch

        self._forget()
        with torch.no_grad(), refusals(self.setup):
            logits: Tensor = self.model(input_ids=sequence, use_cache=False).logits  # [batch, length, vocabulary]
        return logits[:, -last:]

    def _generate(self, workload: Workload, emit: Emit) -> None:
        self._forget()
        super()._generate(workload, emit)

    def _forget(self) -> None:
        self.model.reset_cache()
        for module in self.model.modules():
            if hasattr(module, "layer_past"):  # read by a prompt of one token, which looks like a step
                module.layer_past = None

    def close(self) -> None:
        super().close()
        runtime.leave()
