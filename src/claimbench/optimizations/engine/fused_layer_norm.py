"""Physics: saves launches and bytes. Written out, a norm widens the hidden states, squares, averages, adds, takes a
root, multiplies, narrows, multiplies by its weights and adds its bias: about ten launches, each of which reads and
writes batch x new x hidden numbers. One kernel reads them once and writes them once. In a decode step at batch 1 these
numbers are few and the launches are what is saved; in prefill it is traffic. A norm is a small part of a layer either
way: where matrices fill the time it gains nothing, and a kernel that suits the shape badly can be slower.

    native   PyTorch's own layer_norm and rms_norm; on a CPU its rms_norm is a dozen operators behind one call
    compile  torch.compile of the plain operations, whose guards cost microseconds at every call
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen
from claimbench.system.compilers import no_compiler

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "norm"
EXACT = True
LIBRARIES: tuple[str, ...] = ("triton",)


class Settings(Frozen):
    how: Literal["native", "compile"] = "native"


def compiles(settings: Settings) -> bool:
    return settings.how == "compile"


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return no_compiler(cell.device) if settings.how == "compile" else None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.kernels.fused import NORMS

    engine.parts.norm = NORMS[settings.how]


KERNELS = ("aten::native_layer_norm", "aten::rms_norm")


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    norms = evidence.spec.norms
    plain = [each.called("PlainNorm.forward") for each in evidence.passes]
    expect("fused_layer_norm", not any(plain), "no norm operation by operation", plain)
    prefill = evidence.prefill
    if settings.how == "compile":
        fused = prefill.compiled_regions
    else:
        fused = max(prefill.operators.get(name, 0) for name in KERNELS)
    expect("fused_layer_norm", fused >= norms, f"{norms} norms in one operation each, by {settings.how}", fused)
    return {"fused_norms": fused, "recompiles": evidence.compiled.recompiles}
