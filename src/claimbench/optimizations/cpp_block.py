"""Physics: saves all Python and all operators of a decode step: one native call a token, in which threads read the
weights front to back, each once, and keep activations in cache. What is left is the bytes over the bandwidth. A pass
over drafted tokens reads the weights once for all of them, and then operations begin to count.

It cannot help a GPU, nor the prompt, which goes through the modules with a copy of the weights of their own. Where
weights are codes (`weight_int8`, `weight_int4`) the modules multiply with the step's matrices instead: there is one
copy, and no prompt widens it. Document B asks for it as "the cpu-intensive part (Block) in cpp"; here it is the whole
step, on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from claimbench.cell import Cell, Frozen
from claimbench.proof import expect

if TYPE_CHECKING:
    from claimbench.engine import Engine
    from claimbench.witness import Seen

SEAM = "step"
EXACT = True
LIBRARIES: tuple[str, ...] = ()
NEEDS = frozenset({"cache_static"})
CLASHES = frozenset({"flash_everywhere", "key_padding"})  # it attends by itself, to the keys that there are


class Settings(Frozen):
    """None: it takes the weights in the type or the codes that the cell asks for."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    from claimbench.model import cost
    from claimbench.model.spec import read_spec
    from claimbench.native import decoder

    if cell.device != "cpu":
        return "the native step runs on a CPU"
    if cell.dtype == "float16":
        return "the native step knows float32 and bfloat16, not float16"
    return decoder.unavailable(read_spec(cost.config(cell.checkpoint.architecture)))


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.native.engine_step import MatricesInC, StepInC

    engine.matrices, engine.step = MatricesInC, StepInC


def prove(evidence: Seen, settings: Settings) -> dict[str, Any]:
    """A native call a step, none of the modules that it stands for, and matrices of the kind that the model has."""
    calls = evidence.calls("NativeDecoder.step")
    expect("cpp_block", calls >= len(evidence.steps) > 0, "a native call a step", calls)
    modules = evidence.calls("Layer.forward")
    expect("cpp_block", modules == 0, "no layer called as a module", modules)
    matrices, shared = 4 * evidence.layers + 1, evidence.modules.get("NativeLinear", 0)
    coded = sum(evidence.matrices.get(form, 0) for form in ("int8", "int4"))
    plain = evidence.matrices.get(str(evidence.room.dtype).removeprefix("torch."), 0)
    widened = evidence.modules.get("GroupLinear", 0)
    expect(
        "cpp_block",
        widened == 0 and (plain, coded, shared) in ((matrices, 0, 0), (0, matrices, matrices)),
        f"{matrices} matrices packed as the modules' are, or as codes that the modules multiply with as well",
        f"{evidence.matrices}, {shared} modules that share them and {widened} with codes of their own",
    )
    return {"native_calls_per_step": calls / len(evidence.steps), "matrices": evidence.matrices}
