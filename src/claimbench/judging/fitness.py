"""Whether the cells of a claim are what its sentence is about: a CPU says nothing of a GPU's mechanism.

What a sentence needs stands in its study, `device` and `needs` of the claim; what a cell is stands in the plan.
"""

from __future__ import annotations

from collections.abc import Iterator

from claimbench.cost_model.cost import decoder_of
from claimbench.cost_model.weight_bytes import held_bytes
from claimbench.judging.evidence import Evidence, curve
from claimbench.schema.cell import DTYPE_BYTES, Cell, Checkpoint
from claimbench.schema.checks import SIDES, Check
from claimbench.schema.plan import Row
from claimbench.schema.study import Claim, Needs

ALWAYS_DECIDE = ("identity", "outcome", "computed")
"""Kinds of checks that any cell can decide, whatever the claim needs of its cells."""
DEVICES = {"cuda": "a GPU", "cpu": "a CPU"}


def unfit(claim: Claim, check: Check, study: str, evidence: Evidence) -> str | None:
    """Why `check` cannot be decided by the cells that stand in for the document's; None where it can."""
    here = evidence.plan.device
    if claim.device not in (None, here) and check.kind != "computed":
        return f"The sentence is about {DEVICES[str(claim.device)]}, and what was measured here is {DEVICES[here]}."
    if check.kind in ALWAYS_DECIDE:
        return None
    rows = [row for row in _rows(check, study, evidence) if row.cell]
    other = next((each.text for row in rows for each in row.deviations if each.of == "model"), None)
    if claim.needs.model and other:
        return f"The sentence is about one model: {other}."
    reasons = (_lacks(claim.needs, evidence.plan.cells[str(row.cell)].cell) for row in rows)
    return next((reason for reason in reasons if reason), None)


def _rows(check: Check, study: str, evidence: Evidence) -> Iterator[Row]:
    for side in SIDES:
        address = getattr(check, side, None)
        if address is None:
            continue
        if check.kind in ("shape", "frontier"):
            yield from (row for _, row in curve(study, address, check.over, evidence))
        else:
            yield evidence.plan.row(study, address)


def _lacks(needs: Needs, cell: Cell) -> str | None:
    if needs.trained and _is_random(cell.checkpoint):
        return f"What is said decides this speed, and {cell.checkpoint.name} says nothing: its weights are random."
    if needs.draft and cell.draft and _is_random(cell.draft):
        return f"The draft, {cell.draft.name}, shares nothing with its target: its weights are random."
    if needs.draft and cell.draft and cell.draft.keep_layers:
        return (
            f"The draft, {cell.draft.name}, is the first {cell.draft.keep_layers} layers of a model that was trained "
            "whole: its target accepts next to nothing of it. A draft that was trained as a model of its own decides."
        )
    return _too_small(needs.checkpoint_gb, cell)


def _is_random(checkpoint: Checkpoint) -> bool:
    return checkpoint.source.startswith("random://")


def _too_small(least_gb: float | None, cell: Cell) -> str | None:
    model = decoder_of(cell.checkpoint) if least_gb else None
    if model is None or least_gb is None:
        return None
    size_gb = held_bytes(model, DTYPE_BYTES[cell.dtype]) / 1e9
    if size_gb >= least_gb:
        return None
    return (
        f"{cell.checkpoint.name} has {size_gb:.2g} GB of weights. At least {least_gb:g} GB are needed: below, time and "
        "memory are mostly those of starting and of the libraries."
    )
