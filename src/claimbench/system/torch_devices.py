"""Prints which GPUs torch can use here, or why none, as one line of JSON. In a process of its own: it opens them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

OTHERS: dict[str, Callable[[Any], bool]] = {
    "AMD's ROCm": lambda torch: bool(getattr(torch.version, "hip", None)),  # its devices call themselves cuda
    "Intel's GPUs": lambda torch: bool(getattr(torch.version, "xpu", None)),
    "Apple's GPUs": lambda torch: bool(torch.backends.mps.is_built()),
}
"""Builds of torch for GPUs of other makers, and how each is told."""


def listed() -> dict[str, Any]:
    import torch

    cuda: Any = torch.cuda
    if torch.version.cuda is None:
        other = next((maker for maker, built in OTHERS.items() if built(torch)), None)
        built_for = f"{other}, and only NVIDIA's GPUs are supported" if other else "the CPU alone"
        return {"devices": [], "why_none": f"torch {torch.__version__} is built for {built_for}"}
    try:
        cuda.init()
        found = [cuda.get_device_properties(index) for index in range(cuda.device_count())]
    except Exception as error:  # whatever the driver's answer becomes: it means that torch cannot use a GPU
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return {"devices": [], "why_none": f"torch cannot use one: {first}"}
    devices = [{"uuid": str(one.uuid), "name": str(one.name), "memory_bytes": int(one.total_memory)} for one in found]
    return {"devices": devices, "why_none": None if devices else "torch sees none"}


if __name__ == "__main__":
    print(json.dumps(listed()))
