"""Ceilings: what a cell cannot beat, counted by hand, and never more than it really has to do."""

from __future__ import annotations

from typing import Any

import pytest

from claimbench.analysis import roofline
from claimbench.cost_model import cost
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.cell import Cell

PROMPT, NEW = 100, 20
READ = {"step_weights": 1000, "kv_cache": 0}
BYTES_BOUND = Ceilings(read_bytes_per_s=1e10, matmul_flops_per_s={"float32": 1e30})
OPERATIONS_BOUND = Ceilings(read_bytes_per_s=1e30, matmul_flops_per_s={"float32": 1e11})
SMALL, LARGE = cost.architecture("smollm2-135m"), cost.architecture("mistral-7b")


def cell(lab: Any, *uses: str, **workload: Any) -> Cell:
    hold = {"backend": "transformers", "prompt_tokens": PROMPT, "new_tokens": NEW, **workload}
    held = ", ".join(f"{key}: {value}" for key, value in hold.items())
    plan = lab.plan(f"""
experiments:
  limits:
    question: What is the limit?
    hold: {{{held}}}
    cells: {{this: {{optimizations: [{", ".join(uses)}]}}}}
""")
    id = plan.row("study", "limits/this").cell
    found: Cell = plan.cells[id].cell
    return found


def prefill(cell: Cell, ceilings: Ceilings) -> float:
    limit = roofline.prefill_ms(cell, ceilings, PROMPT, READ)
    assert limit is not None
    return limit


def step(cell: Cell, ceilings: Ceilings, memory: dict[str, int] = READ) -> float:
    limit = roofline.step_ms(cell, ceilings, PROMPT, memory)
    assert limit is not None
    return limit


def test_prefill_is_limited_by_its_operations_or_its_bytes(lab: Any) -> None:
    plain = cell(lab, batch=3)
    assert prefill(plain, BYTES_BOUND) == pytest.approx(1000 / 1e10 * 1e3)
    flops = cost.pass_flops(SMALL, 3, new=PROMPT, past=0, heads_at=1)
    assert prefill(plain, OPERATIONS_BOUND) == pytest.approx(flops / 1e11 * 1e3)


def test_a_technique_that_multiplies_in_another_type_is_held_to_the_faster_rate(lab: Any) -> None:
    plain, int4 = cell(lab), cell(lab, "bitsandbytes_4bit")
    rates = ({"float32": 1e11, "bfloat16": rate} for rate in (4e11, 1e9))
    fast, slow = (Ceilings(read_bytes_per_s=1e30, matmul_flops_per_s=each) for each in rates)
    assert prefill(int4, fast) == pytest.approx(prefill(plain, fast) / 4)
    assert prefill(int4, slow) == prefill(plain, OPERATIONS_BOUND)


def test_a_technique_whose_rate_was_not_measured_is_held_to_its_bytes_alone(lab: Any) -> None:
    int8 = cell(lab, "bitsandbytes_int8")
    ceilings = OPERATIONS_BOUND.model_copy(update={"read_bytes_per_s": 1e10})
    assert prefill(int8, ceilings) == pytest.approx(1000 / 1e10 * 1e3)


def test_a_draft_model_counts_in_prefill_and_not_in_decode_steps(lab: Any) -> None:
    plain, assisted = cell(lab), cell(lab, "{assisted: {draft: large}}")
    more = prefill(assisted, BYTES_BOUND) - prefill(plain, BYTES_BOUND)
    assert more == pytest.approx(LARGE.step_weights * 4 / 1e10 * 1e3)
    more = prefill(assisted, OPERATIONS_BOUND) - prefill(plain, OPERATIONS_BOUND)
    assert more == pytest.approx(cost.pass_flops(LARGE, 1, new=PROMPT, past=0, heads_at=1) / 1e11 * 1e3)
    for ceilings in (BYTES_BOUND, OPERATIONS_BOUND):
        assert step(assisted, ceilings) == step(plain, ceilings)


def test_a_draft_model_that_has_nothing_to_draft_does_not_count(lab: Any) -> None:
    plain, assisted = (cell(lab, *uses, new_tokens=1) for uses in ((), ("{assisted: {draft: large}}",)))
    assert prefill(assisted, BYTES_BOUND) == prefill(plain, BYTES_BOUND)


def test_padding_is_no_work_that_has_to_be_done(lab: Any) -> None:
    ragged = cell(lab, batch=3, shortest=20)  # rows of 100, 60 and 20 prompt tokens
    flops = sum(cost.pass_flops(SMALL, 1, new=row, past=0, heads_at=1) for row in (100, 60, 20))
    assert prefill(ragged, OPERATIONS_BOUND) == pytest.approx(flops / 1e11 * 1e3)
    held = {"step_weights": 1000, "kv_cache": int(cost.kv_bytes(SMALL, 3, PROMPT + NEW, 4))}
    read = 1000 + sum(cost.kv_bytes(SMALL, 1, length, 4) for length in (109, 69, 29))
    assert step(ragged, BYTES_BOUND, held) == pytest.approx(read / 1e10 * 1e3)
    flops = sum(cost.pass_flops(SMALL, 1, new=1, past=length) for length in (109, 69, 29))
    assert step(ragged, OPERATIONS_BOUND, held) == pytest.approx(flops / 1e11 * 1e3)


@pytest.mark.parametrize(("backend", "at_once"), [("accelerate", 1), ("null_model", 4)])
def test_devices_share_a_step_s_bytes_where_their_layout_lets_them(lab: Any, backend: str, at_once: int) -> None:
    """A pipeline's layers wait for each other; a layout that is not known may share everything. A CPU is one memory."""
    on_cpu = cell(lab, backend=backend, options="{devices: 4}")
    on_gpus = on_cpu.model_copy(update={"device": "cuda"})
    assert step(on_gpus, BYTES_BOUND) == pytest.approx(1000 / 1e10 * 1e3 / at_once)
    assert step(on_cpu, BYTES_BOUND) == pytest.approx(1000 / 1e10 * 1e3)
    assert step(on_gpus, OPERATIONS_BOUND) == pytest.approx(step(on_cpu, OPERATIONS_BOUND) / at_once)
