"""Physics: saves bytes in prefill. Eager attention writes the score matrix, batch x heads x length x length, to
memory and reads it back for the softmax. A fused kernel keeps it on the chip, in tiles: memory grows linearly with
length instead of quadratically, and prefill is faster as length grows. A decode step's scores are one row: there,
only launches are saved, and at short lengths it cannot help. `math` is the unfused kernel behind the same call.

`kernel: any` leaves the choice to PyTorch. A named kernel is the only one allowed: where it cannot run, PyTorch says
so, and so does the outcome.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

from claimbench.hf.evidence import SDPA, TransformersEvidence
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "attention"
EXACT = True
LIBRARIES: tuple[str, ...] = ()
SWITCH = 'from_pretrained(..., attn_implementation="sdpa")'

Kernel = Literal["any", "math", "flash", "efficient", "cudnn"]


class Settings(Frozen):
    kernel: Kernel = "any"


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.device == "cpu" and settings.kernel in ("efficient", "cudnn"):
        return f"PyTorch has no {settings.kernel} attention kernel for the CPU"
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    setup.load["attn_implementation"] = "sdpa"
    setup.unsupported.append("does not support an attention implementation")
    if settings.kernel != "any":
        setup.around.append(lambda: only(settings.kernel))
        setup.unsupported += ["No available kernel", "No viable backend"]


def only(kernel: Kernel) -> AbstractContextManager[None]:
    """A context in which scaled dot product attention may use `kernel` alone."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "math": SDPBackend.MATH,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
    }
    context: AbstractContextManager[None] = sdpa_kernel(backends[kernel])
    return context


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    expect("sdpa", SDPA in evidence.operators or bool(evidence.kernels), SDPA, sorted(evidence.operators))
    if settings.kernel != "any":
        held = evidence.kernels == [settings.kernel]
        expect(f"sdpa's {settings.kernel} kernel", held, "that kernel alone", evidence.kernels)
    return {"kernels": evidence.kernels}
