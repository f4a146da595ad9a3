"""Physics: saves all Python and all operators of the prompt as `cpp_block` does of a step. Norms, rotations, attention
and activations are done beside the products, on lines that are in cache. Operations bound a prompt, not bytes, so the
gain is what the modules spend between products: about a third of a short prompt's time, little of a long one's.

In bfloat16 PyTorch's products are faster than the native ones where the CPU multiplies bfloat16 (AVX512-BF16, AMX), and
a long prompt may lose there. Attention of a prompt is a pass over the cache for every token: beyond a few thousand
tokens a fused kernel over tiles of queries reads keys and values less often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "rows"
EXACT = True
LIBRARIES: tuple[str, ...] = ()
NEEDS = frozenset({"cache_static", "cpp_block"})
CLASHES = frozenset(  # they change modules that the prompt does not go through
    {
        "fast_linear",
        "flash_everywhere",
        "fused_gelu",
        "fused_layer_norm",
        "fused_softmax",
        "key_padding",
        "prefill_flash",
        "reused_buffers",
        "simple_mask",
    }
)


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None if cell.device == "cpu" else "the native step runs on a CPU"


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.native.engine_step import prefill_in_c

    engine.prefill = prefill_in_c


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    """Native calls over the prompt, and none of the modules that they stand for."""
    calls = evidence.prefill.called("NativeDecoder.step")
    expect("cpp_prompt", calls > 0, "the prompt in native calls", calls)
    modules = evidence.prefill.called("Layer.forward")
    expect("cpp_prompt", modules == 0, "no layer called as a module over the prompt", modules)
    return {"native_calls": calls}
