"""Run in the environment `deepspeed_injection`: its backend through a whole session, on a CPU.

DeepSpeed's kernels are CUDA's, but each of its operators has the same in PyTorch beside it, which it takes where a
kernel is missing. With none of them there, everything but the kernels is as on a GPU: Transformers' loading,
DeepSpeed's policy of the model, its layers, its workspace, and `generate` of that version.

    python injected_on_a_cpu.py CELL_AS_JSON FOLDER OUTPUT
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace


def main() -> None:
    from claimbench.backends import deepspeed_injection
    from claimbench.hf import deepspeed as runtime
    from claimbench.schema.cell import Cell
    from claimbench.system import launchers

    asked = Cell.model_validate_json(sys.argv[1])
    runtime.require = lambda *_, **__: None  # nothing is compiled here
    from deepspeed.ops.transformer.inference.op_binding.base import BaseOp
    from deepspeed.ops.transformer.inference.op_binding.softmax import SoftmaxOp

    BaseOp.inference_module = SimpleNamespace()
    softmax = SoftmaxOp.softmax_fallback
    # Where its kernel divides nothing, it divides a rank's heads by the number of ranks once more.
    SoftmaxOp.softmax_fallback = staticmethod(lambda *arguments: softmax(*arguments[:-1], 1))
    session = deepspeed_injection.load(asked, Path(sys.argv[2]), None)
    tokens = [step.tolist() for step in session.generate()]
    log_probs = session.log_probs([7, 70, 170, 270]).tolist()
    again = [step.tolist() for step in session.generate()]
    said = {
        "versions": {name: metadata.version(name) for name in ("deepspeed", "transformers", "torch")},
        "tokens": tokens,
        "again": again,
        "log_probs": log_probs,
        "proof": session.prove(),
        "memory": session.memory(),
    }
    session.close()
    if launchers.rank() == 0:
        Path(sys.argv[3]).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main()
