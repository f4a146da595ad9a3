"""Physics: saves bytes, in decode steps as well as in prefill (see `prefill_flash`). A step's scores are one row per
head, batch x heads x length numbers, written and read a few times; a flash kernel keeps them on the chip, and does in
one launch what plain attention does in five or more. But there is one query only: a kernel whose parallelism is that of
its queries leaves most of a GPU idle unless it also splits the keys, so at long lengths it can be slower than a plain
product, and at short ones all that it saves is launches.

The kernel is PyTorch's own, forced. Queries that share a key-value head read it once: it is never repeated in memory.
On CUDA it takes no mask, so neither keys nor rows can be padded: with rows of several lengths use `prefill_flash` and
`packed_rows`. The CPU's takes masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.optimizations.engine import prefill_flash
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence
    from claimbench.engine.model.spec import Spec

SEAM = "flash"
EXACT = True
LIBRARIES: tuple[str, ...] = ()
CLASHES = frozenset({"fused_softmax"})  # there is no softmax left to fuse


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.device == "cuda" and cell.uses("key_padding"):
        return "FlashAttention takes no mask on CUDA, which padded keys need"
    if cell.device == "cuda" and cell.workload.shortest is not None:
        return "FlashAttention takes no mask on CUDA, which steps over rows of several lengths need: use prefill_flash"
    return prefill_flash.no_kernel(cell)


def lacks(spec: Spec, settings: Settings) -> str | None:
    return prefill_flash.lacks(spec, settings)


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.kernels import flash

    prefill_flash.apply(engine, prefill_flash.Settings())
    engine.parts.attend_step = flash.attention_on(engine.device)
    on_cuda = engine.device.type == "cuda"
    # the CPU's kernel would align the first of several new queries, not the last, with the first key
    engine.parts.causal = lambda past, new, keys: on_cuda or past == 0 or (new == 1 and keys == past + 1)


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    from claimbench.engine.kernels import flash

    kernels = [flash.kernels_in(each) for each in evidence.passes]
    expected = f"a flash kernel in each of {evidence.layers} layers of every pass"
    expect("flash_everywhere", min(kernels) >= evidence.layers, expected, kernels)
    return {"kernels_per_pass": kernels}
