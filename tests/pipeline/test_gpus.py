"""Whole runs on a node with several GPUs that is not there: its driver and torch are stubs, all else is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from claimbench.schema import result
from claimbench.system import turns

pytestmark = pytest.mark.pipeline

DRIVER = """
class NVMLError(Exception):
    pass

NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
KNOWN = {"GPU-aaaa-1111": 80 << 30, "GPU-bbbb-2222": 15 << 30, "GPU-aaaa-3333": 80 << 30}

def nvmlInit():
    pass

def nvmlShutdown():
    pass

def nvmlDeviceGetHandleByUUID(uuid):
    if uuid not in KNOWN:
        raise NVMLError(uuid)
    return uuid

class Memory:
    def __init__(self, total):
        self.total = total

def nvmlDeviceGetMemoryInfo(handle):
    return Memory(KNOWN[handle])

def nvmlDeviceGetClockInfo(handle, which):
    return 1410
"""
TORCH = """
import os, sys, types
if "claimbench.system.torch_devices" in sys.orig_argv:
    kinds = {"aaaa": "NVIDIA A100-SXM4-80GB", "bbbb": "Tesla T4"}
    listed = ["aaaa-1111", "bbbb-2222", "aaaa-3333"]
    asked = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2").split(",")
    seen = [listed[int(one)] if one.isdigit() else one.removeprefix("GPU-") for one in asked if one]
    found = [types.SimpleNamespace(uuid=one, name=kinds[one[:4]], total_memory=80 << 30) for one in seen]
    torch = types.ModuleType("torch")
    torch.version = types.SimpleNamespace(cuda="13.0")
    torch.cuda = types.SimpleNamespace(
        init=lambda: None, device_count=lambda: len(found), get_device_properties=found.__getitem__
    )
    sys.modules["torch"] = torch
"""


@pytest.fixture
def node(project: Any) -> Any:
    libraries = project.folder / "libraries"
    libraries.mkdir(exist_ok=True)
    (libraries / "pynvml.py").write_text(DRIVER, encoding="utf-8")
    (libraries / "sitecustomize.py").write_text(TORCH, encoding="utf-8")
    project.params |= {"device": "cuda"}
    project.params["measure"] |= {"blocks": 2}
    project.study["defaults"] |= {"new_tokens": 16}
    for cell in project.study["experiments"]["pace"]["cells"].values():
        cell["options"] |= {"step_ms": 40}
    project.study["experiments"]["pace"]["cells"]["slow"]["options"]["step_ms"] = 60
    project.write()
    return project


def blocks(project: Any) -> list[result.Result]:
    found = [result.read(path) for path in sorted(project.folder.glob("results/measure/*/*/*.json"))]
    assert [one.reason for one in found if one.outcome != "ok"] == []
    return found


def cards(found: list[result.Result]) -> set[str]:
    return {one.telemetry["before"]["gpu"]["uuid"] for one in found}


def test_by_default_one_job_at_a_time_has_the_node_and_uses_its_first_gpu(node: Any) -> None:
    node.snakemake()
    found = blocks(node)
    assert len(found) == 1 + 2 * 2, "two cells, and the pace of nothing once"
    assert cards(found) == {"aaaa-1111"}
    assert all("beside" not in one.conditions for one in found)


def test_side_by_side_the_blocks_are_on_like_gpus_and_know_who_measures_on_the_other(
    node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While this test holds one of the two, as another job would, everything is measured on the other."""
    node.params["measure"] |= {"side_by_side": True}
    node.write()
    monkeypatch.setenv(turns.VARIABLE, node.environment()[turns.VARIABLE])
    with turns.alone(turns.of_machine("gpu-aaaa-1111"), "this test"):
        node.snakemake()
    found = blocks(node)
    assert len(found) == 1 + 2 * 2
    assert cards(found) == {"aaaa-3333"}
    assert {one.conditions["beside"] for one in found} == {1}
    assert len({one.key.machine for one in found}) == 1


def test_side_by_side_no_block_is_on_the_card_of_another_kind(node: Any) -> None:
    node.params["measure"] |= {"side_by_side": True}
    node.write()
    node.snakemake()
    assert cards(blocks(node)) <= {"aaaa-1111", "aaaa-3333"}


@pytest.mark.slow
def test_results_of_another_kind_of_gpu_are_measured_and_not_taken_over(
    node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    for handed_out, card in (("1", "bbbb-2222"), ("2", "aaaa-3333"), ("GPU-aaaa-1111", None)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", handed_out)
        before = set(node.folder.glob("results/measure/*/*/*.json"))
        node.write()
        node.snakemake()
        new: set[Path] = set(node.folder.glob("results/measure/*/*/*.json")) - before
        assert bool(new) == (card is not None), "another card of the same kind has these results already"
        if card:
            assert cards([result.read(path) for path in new]) == {card}
        keys.append(len(new))
    assert keys == [5, 5, 0]
