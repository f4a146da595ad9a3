"""Every claim of every study can come out either way: a check that no measurement could refute is no check."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.test_studies import NAMES, raw_params, studies
from tests.unit.worlds import Impossible, imagined

from claimbench.planning.plan import make_plan
from claimbench.schema import params
from claimbench.schema.cell import Device
from claimbench.schema.plan import Plan
from claimbench.schema.study import Claim, Study
from claimbench.schema.validation import parse_yaml, validate
from claimbench.schema.verdicts import ON_PAPER

GPUS = ["NVIDIA A100-SXM4-80GB"] * 8 + ["NVIDIA A10G"] * 4
MACHINE: Any = {"key": "all", "cpu": {"model": "Example CPU"}, "gpus": [{"name": name} for name in GPUS]}
CLAIMS = [(name, claim.id) for name in NAMES for claim in studies(name)[name].claims]


def documented(study: dict[str, Study], device: Device) -> Plan:
    """What the document asks for, whole, where all of its checkpoints can be had as safetensors."""
    values = {**raw_params(), "swap": {}, "limits": {}}
    known = {name: {"source": one} if isinstance(one, str) else one for name, one in values["checkpoints"].items()}
    values["checkpoints"] = {name: {k: v for k, v in one.items() if k != "unavailable"} for name, one in known.items()}
    return make_plan(params.load_params(values), study, MACHINE, device)


def world_of(name: str, claim: Claim, refuted: int | None = None) -> Any:
    """On the device that the sentence is about; of any device, on one that all of its cells can be planned for."""
    failures = []
    for device in (claim.device,) if claim.device else ("cuda", "cpu"):
        try:
            return imagined(claim, name, documented(studies(name), device), refuted)
        except Impossible as reason:
            failures.append(f"{device}: {reason}")
    raise Impossible("; ".join(failures))


@pytest.mark.parametrize(("name", "id"), CLAIMS)
def test_some_measurements_support_it_and_for_each_check_some_refute_it(name: str, id: str) -> None:
    claim = next(claim for claim in studies(name)[name].claims if claim.id == id)
    if claim.kind == "computed":
        assert world_of(name, claim).verdict in ON_PAPER
        return
    assert world_of(name, claim).verdict == "supported"
    for number, _ in enumerate(claim.checks):
        found = world_of(name, claim, refuted=number)
        assert (found.verdict, found.checks[number].verdict) == ("refuted", "refuted"), found.checks[number].sentence


NOTHING = """
title: A study of nothing
document: {title: A document}
prompts: {story: Once upon a time}
defaults: {checkpoint: smollm2, prompt: story, new_tokens: 5}
experiments:
  speed:
    question: How fast?
    cells: {plain: {}, sdpa: {optimizations: [sdpa]}}
claims: [{id: X1, kind: any, statement: A sentence, checks: [%s]}]
"""
RATIO = "{kind: ratio, metric: step_ms, of: speed/sdpa, to: speed/plain, expect: %s}"


@pytest.mark.parametrize(
    "checks",
    [
        "{kind: value, metric: top1_agreement, of: speed/plain, expect: {at_most: 1}}",
        "{kind: value, metric: recompiles, of: speed/plain, expect: {at_least: 0}}",
        RATIO.replace("speed/plain", "speed/sdpa") % "above",
        f"{RATIO % 'above'}, {RATIO % 'below'}",
    ],
)
def test_a_check_that_cannot_fail_and_checks_that_cannot_hold_together_are_found(checks: str) -> None:
    study = validate(Study, parse_yaml(NOTHING % checks, "study"), "study")
    claim = study.claims[0]
    plan = documented({"study": study}, "cpu")

    def both_ways() -> None:
        assert imagined(claim, "study", plan).verdict == "supported"
        for number, _ in enumerate(claim.checks):
            assert imagined(claim, "study", plan, number).verdict == "refuted"

    with pytest.raises((Impossible, AssertionError)):
        both_ways()
