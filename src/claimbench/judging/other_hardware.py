"""Claims that belong to another machine: whether this is it, and what the physics says about both."""

from __future__ import annotations

import re

import pandas as pd

from claimbench.cost_model import cost, parallelism
from claimbench.cost_model.cost import decoder_of
from claimbench.cost_model.hardware import HARDWARE
from claimbench.formatting import quantity
from claimbench.schema.cell import DTYPE_BYTES
from claimbench.schema.checks import AbsoluteCheck, FrontierCheck
from claimbench.schema.machine import device_names, readable
from claimbench.schema.plan import Plan


def not_here(check: AbsoluteCheck | FrontierCheck, study: str, address: str, plan: Plan) -> str | None:
    """Why a figure of the document's own hardware cannot be judged on this machine, or None where it can."""
    names = device_names(plan.machine, plan.device)
    fitting = sum(bool(re.search(check.hardware, name)) for name in names)
    if fitting < check.devices:
        needed = f"{check.devices} x {readable(check.hardware)}"
        return f"It needs {needed}; this machine has {', '.join(names) or 'no such device'}."
    row = plan.row(study, address)
    other_work = [deviation.text for deviation in row.deviations if deviation.is_other_work]
    if other_work:
        return f"What ran here is not what the document measured: {'; '.join(other_work)}."
    if row.cell is None:
        return f"{address} cannot be run: {row.unavailable}."
    return None


def roofline(check: AbsoluteCheck, study: str, plan: Plan, frames: dict[str, pd.DataFrame]) -> str:
    """What the physics says of a published figure; empty where the cost model does not know the system.

    Where the study names the document's hardware, it is the floor of what the document ran. Otherwise it is the limit
    of one decode step of this row's cell there and here. Lossy cells are left out: what their weights weigh is known
    only after they were loaded.
    """
    row, hardware = plan.row(study, check.of), plan.studies[study].study.document.hardware
    if hardware and (row.asked is None or check.metric != "ms_per_token"):
        return ""
    if row.asked and hardware:
        floor = parallelism.ms_per_token(row.asked, HARDWARE[hardware])
        where = f"On {row.asked.devices} x {hardware} it cannot take less than {quantity(floor, 'ms')} per token"
        return f"{where}: the published figure is at {floor / check.published:.0%} of that limit."
    if row.cell is None or not plan.cells[row.cell].exact:
        return ""
    cell = plan.cells[row.cell].cell
    there = next((known.read_bytes_per_s for name, known in HARDWARE.items() if re.search(check.hardware, name)), None)
    limits = frames[row.cell]["ceiling_ms"].dropna()
    if there is None:
        return ""
    model = decoder_of(cell.checkpoint)
    if model is None:
        return ""
    step_bytes = cost.step_bytes(
        model,
        cell.workload.batch,
        (cell.workload.prompt_tokens or 1) + cell.workload.new_tokens // 2,
        DTYPE_BYTES[cell.dtype],
    )
    note = f"A decode step of {cell.checkpoint.name} in {cell.dtype} moves {step_bytes / 1e9:.3g} GB: at least "
    note += f"{step_bytes / there / check.devices * 1e3:.3g} ms there ({there * check.devices / 1e9:,.0f} GB/s)"
    return note + (f", {float(limits.median()):.3g} ms here." if len(limits) else ".")


def bound(check: FrontierCheck, study: str, plan: Plan) -> str:
    """How many rows of the document's own workload could fit on its hardware at most; empty where it is not known."""
    planned, (experiment, _, label) = plan.studies[study], check.of.partition("/")
    asked = next((row.asked for row in planned.rows[experiment].values() if row.label == label), None)
    hardware = planned.study.document.hardware
    if asked is None or hardware is None:
        return ""
    most = parallelism.largest_batch(asked, HARDWARE[hardware].memory_bytes)
    where = f"By weights and cache alone, {most} rows at most could fit on {asked.devices} x {hardware}"
    return f"{where}, so {check.published} {'could' if check.published <= most else 'could not'}."
