"""Physics: saves bytes and launches. The plain way scales the scores, adds the mask, widens them to float32, takes the
softmax and narrows them: each is a launch that reads and writes batch x heads x new x keys numbers. Fused, they are
read once and written once. Where a softmax is fused already (PyTorch's own is, but for scale, mask and types) only the
rest is left to save; in a decode step the scores are one row per head, so at short lengths only launches are saved, and
the guards of torch.compile cost more than they are worth.

    jit       TorchScript: fuses on CUDA, after its first calls; on a CPU it has no fuser, and gains nothing
    compile   torch.compile: one graph for prompts and one for steps, of any length
    triton    a kernel of our own; CUDA only
    megatron  Megatron's kernel, from apex; CUDA and 16 bits only. It masks by booleans: no ALiBi

`wide: false` stays in the scores' own type until the softmax, which widens inside of its kernel.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from claimbench.cost_model import cost
from claimbench.proof import COMPILED_REGION, Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen
from claimbench.system.compilers import no_compiler

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence, Pass
    from claimbench.engine.model.spec import Spec

SEAM = "softmax"
EXACT = True
LIBRARIES: tuple[str, ...] = ("triton",)

COMPILING = ("compiled_block", "compiled_step")


class Settings(Frozen):
    how: Literal["jit", "compile", "triton", "megatron"] = "jit"
    wide: bool = Field(default=True, description="the softmax's result in float32, then narrowed; else in one type")

    @model_validator(mode="after")
    def _kernels_are_wide(self) -> Settings:
        if not self.wide and self.how in ("triton", "megatron"):
            raise ValueError(f"wide: the {self.how} kernel computes in float32 on the chip, whatever the scores' type")
        return self


def compiles(settings: Settings) -> bool:
    return settings.how == "compile"


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.uses("prefill_flash") and cell.workload.new_tokens < 2:
        return "the prompt goes through FlashAttention, and a workload of one new token has no other softmax"
    if settings.how in ("triton", "megatron") and cell.device != "cuda":
        return f"the {settings.how} kernel needs a CUDA device"
    if settings.how == "compile":
        return no_compiler(cell.device)
    if settings.how == "triton" and find_spec("triton") is None:
        return "the triton package is not installed"
    return _no_megatron(cell) if settings.how == "megatron" else None


def lacks(spec: Spec, settings: Settings) -> str | None:
    if settings.how == "megatron" and spec.positions == "alibi":
        return "Megatron's kernel masks by booleans, and ALiBi adds numbers"
    return None


def _no_megatron(cell: Cell) -> str | None:
    if find_spec("apex") is None and find_spec("generic_scaled_masked_softmax_cuda") is None:
        return "apex is not installed: build github.com/NVIDIA/apex with its CUDA extensions"
    if cell.dtype == "float32":
        return "Megatron's kernel computes in 16 bits, and the cell is in float32"
    architecture = cost.architecture_of(cell.checkpoint)
    if architecture is not None and architecture.family == "bloom":
        return "Megatron's kernel masks by booleans, and ALiBi adds numbers"
    compiling = [name for name in COMPILING if cell.uses(name)]
    return f"Megatron's kernel is opaque to torch.compile: leave out {compiling[0]}" if compiling else None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.kernels import fused, softmax

    if settings.how == "triton":
        engine.parts.softmax = softmax.triton_softmax()
    elif settings.how == "megatron":
        engine.parts.softmax = softmax.megatron_softmax()
    else:
        engine.parts.softmax = fused.fused_softmax(settings.how, settings.wide)


MARKS = {"jit": "_softmax", "compile": COMPILED_REGION, "triton": "softmax_of_row", "megatron": "scaled_masked_softmax"}
"""How the profiler's names for what is fused begin, end, or go on."""


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    passes = evidence.passes
    plain = [each.called("plain_softmax") for each in passes]
    expect("fused_softmax", not any(plain), "no softmax operation by operation", plain)
    fused = [_fused(each, settings.how) for each in passes]
    expected = f"softmax fused by {settings.how} in each of {evidence.layers} layers of a pass"
    expect("fused_softmax", max(fused) >= evidence.layers or _swallowed(evidence), expected, fused)
    fusions = sum(fused) if settings.how != "jit" or _has_fuser(evidence.device) else 0
    return {"fused_per_pass": fused, "fusions": fusions, "recompiles": evidence.compiled.recompiles}


def _has_fuser(device: str) -> bool:
    """Whether TorchScript fuses there: elsewhere it runs the same operations one by one."""
    import torch

    return device != "cpu" or bool(torch._C._jit_can_fuse_on_cpu())


def _fused(seen: Pass, how: str) -> int:
    known = seen.launched if how == "compile" else seen.operators
    return sum(count for name, count in known.items() if MARKS[how] in name and not name.startswith("aten::"))


def _swallowed(evidence: EngineEvidence) -> bool:
    """Every step is one compiled region or one graph that holds the softmax, and the prompt needs none."""
    return bool(evidence.steps) and all(step.compiled_regions or step.graph_launches for step in evidence.steps)
