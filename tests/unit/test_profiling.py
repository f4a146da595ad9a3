"""The record of operators, and what taking it must not cost."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import torch
from claimbench.proof import recorded
with recorded("cpu", shapes=True) as profiler:
    torch.ones(2, 3) @ torch.ones(3, 4)
shapes = [event.input_shapes for event in profiler.function_events if event.name == "aten::mm"]
assert shapes == [[[2, 3], [3, 4]]], shapes
assert "aten::mm" in [event.name() for event in profiler.kineto_results.events()]
print(sorted(name for name in ("torch._inductor", "torch._dynamo") if name in sys.modules))
"""


@pytest.mark.model
def test_operators_are_recorded_without_importing_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
