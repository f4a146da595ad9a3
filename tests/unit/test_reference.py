"""What a cell's tokens and speed are compared with: the plain run, in the type that its experiment usually takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from claimbench.schema.plan import Plan

TWO = """
experiments:
  narrow:
    question: q
    hold: {dtype: bfloat16}
    cells: {plain: {}, half: {dtype: float16}, wide: {dtype: float32}}
  types:
    question: q
    cells: {plain: {}, rounded: {dtype: bfloat16}, slow: {dtype: bfloat16, options: {step_ms: 20}}}
"""


def found(plan: Plan, address: str) -> str:
    """The type of the cell's reference."""
    planned = plan.cells[str(plan.row("study", address).cell)]
    return plan.cells[str(planned.reference)].cell.dtype


@pytest.mark.parametrize("turned", [False, True])
def test_a_narrower_type_is_compared_with_the_usual_one(lab: Any, turned: bool) -> None:
    """In whatever order two experiments that share a cell ask for it."""
    head, narrow, types = TWO.partition("  narrow:")[0], *TWO.partition("experiments:\n")[2].split("  types:")
    experiments = [narrow, f"  types:{types}"]
    plan = lab.plan(head + "".join(reversed(experiments) if turned else experiments))
    assert found(plan, "types/plain") == "float32"
    assert found(plan, "types/slow") == "float32"
    assert found(plan, "types/rounded") == "float32"
    assert found(plan, "narrow/half") == "float16", "no narrower than bfloat16"
    assert found(plan, "narrow/wide") == "float32"
    assert plan.row("study", "narrow/plain").cell == plan.row("study", "types/rounded").cell


WHERE_BUILT = """
experiments:
  systems:
    question: q
    cells:
      plain: {}
      other: {backend: vllm_offline, where_built: true}
      always: {backend: vllm_offline, dtype: bfloat16}
"""


def test_a_row_that_asks_for_an_environment_only_if_it_is_there_does_not_have_it_built(lab: Any) -> None:
    stamp = Path("resources/environments/vllm/stamp.json")
    plan = lab.plan(WHERE_BUILT)
    row = plan.row("study", "systems/other")
    assert (row.cell, row.unavailable) == (
        None,
        f"its environment is not there, and is not built for this row: make {stamp}",
    )
    assert plan.row("study", "systems/always").cell
    stamp.parent.mkdir(parents=True)
    stamp.write_text("{}")
    assert lab.plan(WHERE_BUILT).row("study", "systems/other").cell
