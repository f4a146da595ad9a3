"""Physics: saves all Python and all operators of a decode step: one native call a token, in which threads read the
weights front to back, each once, and keep activations in cache. What is left is the bytes over the bandwidth. A pass
over drafted tokens reads the weights once for all of them, and then operations begin to count.

The prompt goes through the modules, which multiply with the step's matrices: weights are held once, and codes
(`weight_int8`, `weight_int4`) are not widened first. In bfloat16 they keep their own, since PyTorch's product is the
faster one there for long prompts. It cannot help a GPU. Document B asks for it as "the cpu-intensive part (Block) in
cpp"; here it is the whole step, on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from claimbench.engine.native.instruction_sets import Instructions
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence
    from claimbench.engine.model.spec import Spec

SEAM = "step"
EXACT = True
LIBRARIES: tuple[str, ...] = ()
NEEDS = frozenset({"cache_static"})
CLASHES = frozenset({"flash_everywhere", "key_padding"})  # it attends by itself, to the keys that there are


class Settings(Frozen):
    """It takes the weights in the type or the codes that the cell asks for."""

    shared: bool | None = Field(
        default=None,
        description="the prompt's modules multiply with the step's matrices; absent: if they are codes or float32, and "
        "no other technique changes how modules multiply plain ones",
    )
    instructions: Instructions | None = Field(
        default=None, description="of x86-64, to multiply with; absent: the best that this CPU has"
    )


def unavailable(cell: Cell, settings: Settings) -> str | None:
    from claimbench.cost_model import cost
    from claimbench.engine.model.read_spec import read_spec
    from claimbench.engine.native import decoder, instruction_sets

    if cell.device != "cpu":
        return "the native step runs on a CPU"
    lacking = settings.instructions and instruction_sets.lacks(settings.instructions)
    if lacking:
        return lacking
    other = next((name for name in ("fast_linear", "reused_buffers") if cell.uses(name)), None)
    if settings.shared and other:
        return f"{other} needs matrices of the modules' own: leave out `shared`"
    if cell.dtype == "float16":
        return "the native step knows float32 and bfloat16, not float16"
    name = cell.checkpoint.architecture  # of another model it is known when it is loaded
    return decoder.unavailable(read_spec(cost.config(name)) if name else None)


def lacks(spec: Spec, settings: Settings) -> str | None:
    from claimbench.engine.native import decoder

    return decoder.unavailable(spec)


def apply(engine: Engine, settings: Settings) -> None:
    from functools import partial

    from claimbench.engine.native.engine_step import MatricesInC, StepInC

    engine.matrices, engine.step = (
        partial(MatricesInC, shared=settings.shared, instructions=settings.instructions),
        StepInC,
    )


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    """A native call a step, none of the modules that it stands for, and matrices of the kind that was asked for."""
    calls = evidence.calls("NativeDecoder.step")
    expect("cpp_block", calls >= len(evidence.steps) > 0, "a native call a step", calls)
    modules = evidence.calls("Layer.forward")
    expect("cpp_block", modules == 0, "no layer called as a module", modules)
    matrices, shared = evidence.spec.matrices, evidence.modules.get("NativeLinear", 0)
    formats = {"int8", "int4"} if evidence.coded else {str(evidence.cache_shape.dtype).removeprefix("torch.")}
    held = sum(evidence.matrices.values()) == matrices and set(evidence.matrices) <= formats
    expect("cpp_block", held, f"{matrices} matrices packed as {sorted(formats)}", evidence.matrices)
    served = evidence.prefill.called("NativeDecoder.multiply")
    whole = served >= evidence.spec.matrices_of_token or evidence.prefill.called("NativeDecoder.step") > 0
    held = (shared == matrices and whole) or (served == shared == 0 and not settings.shared)
    expect("cpp_block", held, f"all of {matrices} modules or none served by them", f"{shared} modules, {served} calls")
    asked, built = settings.instructions, evidence.instructions
    expect("cpp_block", asked in (None, built), f"products made of {asked}", built)
    return {
        "native_calls_per_step": calls / len(evidence.steps),
        "matrices": evidence.matrices,
        "shared": shared > 0,
        "instructions": built,
    }
