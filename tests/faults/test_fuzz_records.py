"""The results folder as a machine of states: whatever is done to it, nothing that was measured is deleted."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.faults.simulated import run as simulated
from tests.unit.conftest import measured

from claimbench.analysis import aggregate
from claimbench.analysis.paired import PairedRound, contrast, looks
from claimbench.errors import ConfigError, ResultError
from claimbench.planning.plan import make_plan
from claimbench.schema import durable, json_file, result
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.params import load_params
from claimbench.schema.result import TRIES
from claimbench.schema.set_aside import failures
from claimbench.schema.study import Study
from claimbench.schema.validation import parse_yaml, validate
from claimbench.workflow.another_try import make_way

PLAN = simulated.plan_of("blocks")
PLACES = [(planned, block) for planned in PLAN.cells.values() for block in range(planned.blocks)]
place = some.sampled_from(PLACES)


class ResultsFolder(RuleBasedStateMachine):
    """Blocks are measured, fail, are damaged and set aside; `written` is every content that a writer left."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.folder = Path.cwd(), Path(tempfile.mkdtemp())
        os.chdir(self.folder)
        self.written: Counter[bytes] = Counter()
        self.rotten = 0
        self.number = 0

    def teardown(self) -> None:
        os.chdir(self.before)
        shutil.rmtree(self.folder)

    def path(self, where: Any) -> Path:
        planned, block = where
        return Path(planned.paths()[block])

    def written_new(self, where: Any, **changed: Any) -> None:
        self.number += 1
        planned, block = where
        with contextlib.suppress(FileExistsError):
            result.write_new(self.path(where), measured(planned, block, started_at=str(self.number), **changed))
            self.written[self.path(where).read_bytes()] += 1

    @rule(where=place)
    def measure(self, where: Any) -> None:
        self.written_new(where)

    @rule(where=place)
    def fail_in_passing(self, where: Any) -> None:
        self.written_new(where, outcome="error", reason="killed", passing=True, samples=(), tokens=())

    @rule(where=place, at=some.floats(0, 0.999), bit=some.integers(0, 7))
    def damage(self, where: Any, at: float, bit: int) -> None:
        path = self.path(where)
        if path.exists():
            content = bytearray(path.read_bytes())
            self.written[bytes(content)] -= 1
            content[int(at * len(content))] ^= 1 << bit
            path.write_bytes(bytes(content))
            self.written[bytes(content)] += 1

    @rule(where=place, name=some.sampled_from(["failed.x", "failed.", "damaged", "failed.1.bak"]))
    def leave_something_beside(self, where: Any, name: str) -> None:
        durable.make_folder(self.path(where).parent)
        stray = self.path(where).with_name(f"{self.path(where).name}.{name}")
        if not stray.exists():
            stray.write_bytes(f"{where[1]} {name} {self.number}".encode())
            self.written[stray.read_bytes()] += 1

    @rule()
    def begin_a_run(self) -> None:
        make_way(PLAN, None, lambda _: None)
        for where in PLACES:
            path = self.path(where)
            if path.exists():
                found = result.read(path)
                assert (found.cell.id, found.block) == (where[0].cell.id, where[1])
                assert not found.passing or len(failures(path)) + 1 >= TRIES

    @rule()
    def aggregate(self) -> None:
        make_way(PLAN, None, lambda _: None)
        with contextlib.suppress(ResultError):
            table = aggregate.aggregate(PLAN, Ceilings())
            assert set(table["path"]) == {str(self.path(where)) for where in PLACES}

    @invariant()
    def nothing_is_deleted(self) -> None:
        there = Counter(path.read_bytes() for path in self.folder.rglob("*") if path.is_file())
        assert there == +self.written


ResultsFolder.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestResultsFolder = ResultsFolder.TestCase

scalars = some.none() | some.booleans() | some.integers() | some.floats() | some.text()
values = some.recursive(scalars, lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner), max_leaves=20)


@given(values)
@settings(deadline=None)
def test_what_is_parsed_can_be_written_and_is_the_same(value: Any) -> None:
    try:
        found = json_file.parse_json(json.dumps(value))
    except ValueError:
        return
    again = json_file.parse_json(json_file.json_bytes(found).decode())
    assert again == found


@given(some.text(max_size=300))
@settings(deadline=None)
def test_any_text_is_a_study_or_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match=r"\S"):
        validate(Study, parse_yaml(text, "study.yaml"), "study.yaml")


names = some.sampled_from(["plain", "half", "other"])
cells = some.dictionaries(
    names, some.fixed_dictionaries({"options": some.fixed_dictionaries({"step_ms": some.integers(-1, 40)})}), min_size=1
)
checks = some.fixed_dictionaries(
    {
        "kind": some.sampled_from(["ratio", "identity"]),
        "of": names.map("pace/{}".format),
        "to": names.map("pace/{}".format),
        "metric": some.sampled_from(["decode_tok_s", "step_ms", "load_s", "code_tok_s"]),
        "expect": some.sampled_from(["above", "below", "same"]),
    }
)


@given(cells, some.lists(checks, min_size=1, max_size=3), some.sampled_from([0, 5]))
@settings(deadline=None, max_examples=60)
def test_a_study_is_planned_or_refused_and_every_cell_is_measured_somewhere(
    cells: Any, checks: Any, minutes: float
) -> None:
    for check in checks:
        if check["kind"] == "identity":
            del check["metric"], check["expect"]
    value = {
        **parse_yaml(simulated.HEAD, "head"),
        "experiments": {"pace": {"question": "q", "cells": cells}},
        "claims": [{"id": "A", "kind": "mixed", "statement": "s", "checks": checks}],
    }
    params = {
        "studies": ["study"],
        "checkpoints": {"small": {"source": "random://smollm2-135m?seed=0", "architecture": "smollm2-135m"}},
        "measure": {"blocks": 2, **({"budget_minutes": minutes} if minutes else {})},
    }
    try:
        plan = make_plan(load_params(params), {"study": validate(Study, value, "study")}, simulated.MACHINE, "cpu")
    except ConfigError:
        return
    seated = {id for group in plan.groups for id in group.everyone}
    assert all(planned.blocks or id in seated for id, planned in plan.cells.items())
    assert all(row.cell in plan.cells for row in plan.studies["study"].rows["pace"].values() if row.cell)


logs = some.lists(some.floats(-3, 3), min_size=1, max_size=6).map(tuple)


@given(some.lists(some.builds(PairedRound, logs, some.sampled_from([0.5, 1.0])), min_size=1, max_size=10))
@settings(deadline=None)
def test_an_interval_holds_its_estimate_and_looks_end_with_all_rounds(rounds: list[PairedRound]) -> None:
    found = contrast(rounds)
    low, high = found.ends
    assert low <= found.centre <= high
    assert math.isfinite(found.centre)
    assert [look.rounds for look in looks(rounds)] == sorted({look.rounds for look in looks(rounds)})
    assert looks(rounds)[-1] == found
