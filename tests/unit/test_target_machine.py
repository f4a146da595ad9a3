"""A plan may be made for another machine than the one it is made on; measuring there under a wrong name is refused."""

from __future__ import annotations

import json

import pytest

from claimbench import __main__
from claimbench.errors import ConfigError
from claimbench.planning import target_machine
from claimbench.schema.json_file import digest
from claimbench.system import machine


@pytest.fixture
def described(tmp_path, monkeypatch):
    """A description of a node with more cores than any."""
    facts = {**machine.identify(), "memory_gb": 3}
    del facts["key"], facts["system"]
    facts["cpu"] = {**facts["cpu"], "cores": 4321}
    path = tmp_path / "node.json"
    path.write_text(json.dumps({**facts, "key": digest(facts), "system": "Linux"}), encoding="utf-8")
    monkeypatch.setenv(target_machine.VARIABLE, str(path))
    return path


def test_without_a_description_the_plan_is_for_this_machine(monkeypatch):
    monkeypatch.delenv(target_machine.VARIABLE, raising=False)
    assert target_machine.planned_for() == machine.identify()


def test_a_described_node_is_what_the_plan_is_for(described):
    assert target_machine.planned_for()["cpu"]["cores"] == 4321


def test_the_description_that_the_command_writes_is_of_this_machine(tmp_path, monkeypatch):
    assert __main__.main(["machine", "--output", str(tmp_path / "here.json")]) == 0
    monkeypatch.setenv(target_machine.VARIABLE, str(tmp_path / "here.json"))
    assert target_machine.planned_for() == machine.identify()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": "0"}'])
def test_what_is_no_description_is_refused_with_the_command_that_makes_one(described, text):
    described.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"node\.json.*python -m claimbench machine --output"):
        target_machine.planned_for()


def test_an_edited_description_is_refused(described):
    described.write_text(described.read_text(encoding="utf-8").replace("4321", "8"), encoding="utf-8")
    with pytest.raises(ConfigError, match="was edited"):
        target_machine.planned_for()


def test_measuring_under_the_name_of_another_machine_is_refused(described):
    key = target_machine.planned_for()["key"]
    with pytest.raises(ConfigError, match=f"the plan is for machine {key}, and this is {machine.identify()['key']}"):
        target_machine.expect_here(key)
    target_machine.expect_here(machine.identify()["key"])
