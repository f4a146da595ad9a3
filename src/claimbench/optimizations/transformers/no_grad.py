"""Physics: saves memory, not time. Gradient tracking keeps every activation alive and builds one small graph node per
operator; `torch.no_grad` builds none. Weights and the key-value cache are read just the same, so where a step is
bound by memory bandwidth or by kernel launches there is nothing to gain. It cannot help under `generate`, which does
it itself.
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
SWITCH = "with torch.no_grad(): ..."


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    import torch

    setup.around.append(torch.no_grad)


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    seen: Findings = {"grad_around": evidence.grad_around, "inference_mode": evidence.inference_mode}
    held = not evidence.grad_around and not evidence.inference_mode
    expect("no_grad", held, "gradients off around the generation, and no inference mode", seen)
    return seen
