"""Physics: costs, saves nothing, cannot help. With gradients on, every operator adds a node to a graph that nobody
will walk, and the graph keeps all activations alive: memory grows with each token, and the host does more per
operator. It is here as the other side of `no_grad`. `generate` switches gradients off by itself, so only a
hand-written loop can show it.
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
SWITCH = "with torch.enable_grad(): ..."
NEEDS = frozenset({"forward_loop"})


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    import torch

    setup.around.append(torch.enable_grad)


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    expect("grad_enabled", evidence.grad_enabled, "gradients on inside the generation", evidence.grad_enabled)
    return {"grad_enabled": evidence.grad_enabled}
