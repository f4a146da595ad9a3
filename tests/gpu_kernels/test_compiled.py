"""The same kernels as machine code for GPUs that are not here, sm_80 and sm_90."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.model

FORMS = ("plain", "int8", "int4", "fp8")


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """In a process of its own: one that interprets does not compile."""
    program = Path(__file__).with_name("compile_kernels.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_kernel_compiles_for_each_gpu(compiled: dict[str, Any]) -> None:
    assert len(compiled) >= 60
    assert {name: row["error"] for name, row in compiled.items() if "error" in row} == {}
    assert all(row["cubin"] > 1000 for row in compiled.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", ["add", "gate", "heads"])
@pytest.mark.parametrize("gpu", ["sm_80", "sm_90"])
def test_weights_are_loaded_16_bytes_at_a_time(compiled: dict[str, Any], form: str, end: str, gpu: str) -> None:
    """A tile of 2 KiB a row is four such loads of each of 128 threads, two from each half where there are two."""
    loads = compiled[f"gemv {form} {end} {gpu}"]["loads"]
    assert loads.get("16", 0) >= 4


def test_nothing_spills(compiled: dict[str, Any]) -> None:
    assert {name: row["stack"] for name, row in compiled.items() if row["stack"]} == {}


def test_only_where_a_gpu_has_it_does_a_kernel_wait_for_the_one_before(compiled: dict[str, Any]) -> None:
    waits = {name: row["waits"] for name, row in compiled.items()}
    assert {count for name, count in waits.items() if name.endswith("sm_90")} == {1}
    assert {count for name, count in waits.items() if name.endswith("sm_80")} == {0}
