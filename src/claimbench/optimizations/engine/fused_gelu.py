"""Physics: saves launches and bytes between the two matrices of a feed-forward. Written out, the tanh form of GELU is
eight operators, each of which reads and writes batch x new x intermediate numbers, four times a hidden state. One
kernel reads them once and writes them once; `epilogue` does not even read them, since the product applies the
activation before it writes. In a decode step at batch 1 the numbers are few, and launches are what is saved. Where the
matrices fill the time it gains nothing, and a model that gates with SiLU has no GELU.

    native    PyTorch's own gelu, after the matrix
    jit       TorchScript of the plain operations: fuses on CUDA, after its first calls; a CPU runs them one by one
    compile   torch.compile of the plain operations, whose guards cost microseconds at every call
    epilogue  matrix, bias and GELU as one product of cuBLASLt; CUDA only, tanh form only
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from claimbench.cost_model import cost
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen
from claimbench.system.compilers import no_compiler

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence
    from claimbench.engine.model.spec import Spec

SEAM = "gelu"
EXACT = True
LIBRARIES: tuple[str, ...] = ("triton",)


class Settings(Frozen):
    how: Literal["native", "jit", "compile", "epilogue"] = "native"


def compiles(settings: Settings) -> bool:
    return settings.how == "compile"


def unavailable(cell: Cell, settings: Settings) -> str | None:
    architecture = cost.architecture_of(cell.checkpoint)
    if architecture is not None and architecture.family == "llama":
        return "a model of the Llama family gates with SiLU: it has no GELU"
    if settings.how == "epilogue" and cell.device != "cuda":
        return "only cuBLASLt ends a product with the tanh form of GELU: needs a CUDA device"
    return no_compiler(cell.device) if settings.how == "compile" else None


def lacks(spec: Spec, settings: Settings) -> str | None:
    if spec.gated or not spec.activation.endswith("gelu"):
        return f"the model's feed-forward has no GELU of its own, but {spec.activation}"
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from functools import partial

    from claimbench.engine.kernels.fused import DenseGelu, FusedGelu

    engine.parts.gelu = DenseGelu if settings.how == "epilogue" else partial(FusedGelu, how=settings.how)


KERNELS = {"native": "aten::gelu", "epilogue": "aten::_addmm_activation"}


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    plain = [each.called("PlainGelu.forward") for each in evidence.passes]
    expect("fused_gelu", not any(plain), "no GELU operation by operation", plain)
    prefill = evidence.prefill
    if settings.how == "compile":
        fused = prefill.compiled_regions
    elif settings.how == "jit":
        fused = sum(prefill.operators.get(name, 0) for name in ("tanh_gelu", "erf_gelu"))
    else:
        fused = prefill.operators.get(KERNELS[settings.how], 0)
    expected = f"GELU in one operation in each of {evidence.layers} layers, by {settings.how}"
    expect("fused_gelu", fused >= evidence.layers, expected, fused)
    return {"fused_gelus": fused, "recompiles": evidence.compiled.recompiles}
