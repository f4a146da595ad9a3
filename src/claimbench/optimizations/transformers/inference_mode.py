"""Physics: saves a little host time per operator. Beyond `no_grad`, tensors made under `torch.inference_mode` have no
version counter and skip view tracking, some hundred nanoseconds an operator. That shows only where the host is the
bottleneck; it cannot help a busy device, since bytes moved and kernels launched are the same.
"""

from __future__ import annotations

from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "grad"
EXACT = True
LIBRARIES: tuple[str, ...] = ()
SWITCH = "with torch.inference_mode(): ..."


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    import torch

    setup.around.append(torch.inference_mode)


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    expect("inference_mode", evidence.inference_mode, "inference mode inside the generation", evidence.inference_mode)
    return {"inference_mode": evidence.inference_mode}
