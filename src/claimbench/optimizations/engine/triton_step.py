"""Physics: saves launches and bytes. A decode step at batch 1 is a product of each matrix with one row: the least that
it can take is the bytes of the weights over the bandwidth. Here a layer is five to eight kernels of our own. Each reads
its matrix once, 16 bytes a thread, and widens it in registers, whether it is in 16 bits or, with `weight_int8`,
`weight_int4` or `weight_fp8`, in codes; the norm before it and the activation, the gate, the residual stream or the
turn behind it are done in the same kernel, so that activations cross memory once. Attention reads the slots of the
cache that are filled and no mask: how many there are is read on the device, and one graph serves every length. The
keys of a head are split among programs (Flash-Decoding), so that one sequence keeps the whole GPU busy.

It cannot read less than the weights, and gains nothing at larger batches, which are bound by arithmetic that it leaves
to no tensor core: it takes up to four rows. `dependent_launch` lets each kernel begin before the one ahead of it has
ended, on GPUs of compute capability 9.0 or more: what is saved is the time between kernels.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pydantic import Field

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence
    from claimbench.engine.model.spec import Spec
    from claimbench.engine.pass_setup import PassSetup
    from claimbench.engine.steps.cuda_graphs import GraphedStep

SEAM = "step"
EXACT = True
LIBRARIES: tuple[str, ...] = ("triton",)
NEEDS = frozenset({"cache_static"})
CLASHES = frozenset(
    {
        # it attends by itself, to the keys that there are
        "flash_everywhere", "key_padding",
        # it reads matrices row by row, and writes into tensors of its own
        "fast_linear", "reused_buffers",
        # it takes one token of a sequence at a time
        "draft_decoding", "lookup_decoding", "self_speculation",
    }
)  # fmt: skip
MOST_ROWS = 4
WIDEST_HEAD = 256
KERNELS = ("decode_gemv", "decode_attention")
"""Names by which the device's record knows them."""


class Settings(Frozen):
    dependent_launch: bool = Field(
        default=False, description="programmatic dependent launches, where the GPU has them; else it is unavailable"
    )


def unavailable(cell: Cell, settings: Settings) -> str | None:
    if cell.device != "cuda":
        return "the kernels are Triton's for a GPU, and there is none"
    if find_spec("triton") is None:
        return "the triton package is not installed"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set: kernels would be interpreted on the CPU, which is for tests"
    if cell.workload.new_tokens < 2:
        return "replaces decode steps, and a workload of one new token has none"
    if cell.workload.batch > MOST_ROWS:
        return f"the kernels take up to {MOST_ROWS} rows, and the batch has {cell.workload.batch}"
    return None


def lacks(spec: Spec, settings: Settings) -> str | None:
    arch = spec.arch
    if spec.unlike_a_graph:
        return spec.unlike_a_graph
    if spec.sinks:
        return "the attention kernel has no sinks"
    if spec.ranks > 1:
        return "the kernels hold a whole model, and this is a rank's share"
    if arch.head_dim > WIDEST_HEAD or arch.head_dim % 2:
        return f"the attention kernel takes heads of an even width up to {WIDEST_HEAD}, and these have {arch.head_dim}"
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from dataclasses import replace

    from claimbench.engine.masks import mask_in_full
    from claimbench.engine.steps import cuda_graphs as steps

    home = steps.Home()

    def step_in_triton(setup: PassSetup) -> GraphedStep:
        from claimbench.engine.kernels.decode_kernels import on_device
        from claimbench.engine.kernels.decode_step import StepBody

        body = StepBody(on_device(engine.device, settings.dependent_launch))
        unmasked = replace(setup, mask=mask_in_full)  # which slots count is worked out in the kernel
        capture = steps.capture_on_gpu(engine.device)
        return steps.GraphedStep(unmasked, home, steps.ALL_SLOTS, capture, body)

    engine.step = step_in_triton


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    """In the open every launch is a call; on a GPU the device's own record has the kernels, which a graph launched."""
    layers, steps = evidence.layers, evidence.steps
    wanted = {"Gemv._launch": 4 * layers + 1, "Attention.__call__": layers, "Layer.forward": 0}
    for step in steps:
        seen = {name: step.called(name) for name in wanted}
        expect("triton_step", seen == wanted, f"calls of {wanted} in a step", seen)
    expect("triton_step", bool(steps), "decode steps", "none")
    launches = [step.called("launch") for step in steps]
    if evidence.device == "cuda":
        on_device = [sum(step.operators.get(name, 0) for name in KERNELS) for step in steps]
        expect("triton_step", set(on_device) == {5 * layers + 1}, f"{5 * layers + 1} kernels a step", on_device)
        graphs = [step.graph_launches for step in steps]
        expect("triton_step", set(graphs) == {1}, "one CUDA graph launched in each step", graphs)
    return {"kernels_per_step": launches, "matrices_per_step": 4 * layers + 1}
