"""Claims that belong to another machine: whether this is it, and what the physics says about both."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from claimbench.cell import DTYPE_BYTES
from claimbench.model import cost
from claimbench.model.roofline import architecture_of
from claimbench.plan import Plan
from claimbench.study import AbsoluteCheck, FrontierCheck

BANDWIDTHS: dict[str, float] = {
    "NVIDIA A10G": 600e9,
    "NVIDIA L4": 300e9,
    "NVIDIA A100-SXM4-40GB": 1555e9,
    "NVIDIA A100-SXM4-80GB": 2039e9,
    "NVIDIA H100 80GB HBM3": 3350e9,
    "NVIDIA H200": 4800e9,
}
"""Bytes per second of device memory by their makers' data sheets; for notes about machines that are not here."""


def device_names(machine: dict[str, Any], device: str) -> list[str]:
    if device == "cuda":
        return [str(gpu["name"]) for gpu in machine.get("gpus", [])]
    return [str(machine.get("cpu", {}).get("model", "unknown CPU"))]


def not_here(check: AbsoluteCheck | FrontierCheck, study: str, address: str, plan: Plan) -> str | None:
    """Why a figure of the document's own hardware cannot be judged on this machine, or None where it can."""
    names = device_names(plan.machine, plan.device)
    fitting = sum(bool(re.search(check.hardware, name)) for name in names)
    if fitting < check.devices:
        needed = f"{check.devices} x {readable(check.hardware)}"
        return f"It needs {needed}; this machine has {', '.join(names) or 'no such device'}."
    row = plan.row(study, address)
    if row.deviations:
        return f"What ran here is not what the document measured: {'; '.join(row.deviations)}."
    if row.cell is None:
        return f"{address} cannot be run: {row.unavailable}."
    return None


def readable(pattern: str) -> str:
    """A regular expression as a person would write the name: `A100.*80GB` is A100 80GB."""
    return " ".join(re.sub(r"[.*+?^$\\()\[\]{}]+", " ", pattern).replace("|", " or ").split())


def roofline(check: AbsoluteCheck, study: str, plan: Plan, frames: dict[str, pd.DataFrame]) -> str:
    """The limit of one decode step of this row's cell there and here, where both are known; empty otherwise.

    Lossy cells are left out: what their weights weigh is known only after they were loaded.
    """
    row = plan.row(study, check.of)
    if row.cell is None or not plan.cells[row.cell].exact:
        return ""
    cell = plan.cells[row.cell].cell
    there = next((rate for name, rate in BANDWIDTHS.items() if re.search(check.hardware, name)), None)
    limits = frames[row.cell]["ceiling_ms"].dropna()
    if there is None:
        return ""
    step_bytes = cost.step_bytes(
        architecture_of(cell),
        cell.workload.batch,
        (cell.workload.prompt_tokens or 1) + cell.workload.new_tokens // 2,
        DTYPE_BYTES[cell.dtype],
    )
    note = f"A decode step of {cell.checkpoint.name} in {cell.dtype} moves {step_bytes / 1e9:.3g} GB: at least "
    note += f"{step_bytes / there / check.devices * 1e3:.3g} ms there ({there * check.devices / 1e9:,.0f} GB/s)"
    return note + (f", {float(limits.median()):.3g} ms here." if len(limits) else ".")
