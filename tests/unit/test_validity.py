"""Rules of validity: what makes a round doubtful, and what follows, is one table."""

from __future__ import annotations

from typing import Literal

import pytest

from claimbench.analysis import validity
from claimbench.analysis.validity import RULES, Effect, Rule
from claimbench.schema.result import Result, Sample


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.condition} {rule.effect}")
def test_each_rule_speaks_above_its_threshold_and_not_at_it(rule: Rule) -> None:
    """The gravest rule about a condition is the one that is said."""
    above = rule.above + max(1e-3, 1e-3 * rule.above)
    (found,) = validity.doubts({rule.condition: above})
    assert found == (rule.effect, rule.sentence.format(above))
    assert all(doubt.effect != rule.effect for doubt in validity.doubts({rule.condition: rule.above}))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.condition} {rule.effect}")
def test_what_a_rule_does_to_a_round(rule: Rule) -> None:
    weights = {Effect.VOID: 0.0, Effect.WEIGH: 0.5, Effect.NOTE: 1.0}
    assert validity.weight({rule.condition: rule.above + 1e-3}) == weights[rule.effect]


def test_a_graver_rule_has_a_higher_threshold() -> None:
    order = [Effect.NOTE, Effect.WEIGH, Effect.VOID]
    for condition in {rule.condition for rule in RULES}:
        of_it = sorted((rule for rule in RULES if rule.condition == condition), key=lambda rule: rule.above)
        assert [rule.effect for rule in of_it] == sorted({rule.effect for rule in of_it}, key=order.index)


def test_the_gravest_of_several_conditions_decides() -> None:
    assert validity.weight({"steal": 0.03, "foreign_cpu": 0.2}) == 0.5
    assert validity.weight({"steal": 0.03, "foreign_cpu": 0.2, "slept_s": 30.0}) == 0.0
    assert validity.weight({}) == validity.weight({"nothing known": 9.0}) == 1.0
    said = validity.sentences({"steal": 0.03, "slept_s": 30.0})
    assert said == ["the machine slept for 30 s", "the hypervisor took 3% of the cores"]


def test_what_waits_cost_a_generation_is_known_where_enough_steps_did_not_wait() -> None:
    def sample(step_ns: tuple[int, ...], resumed: tuple[int, ...], tokens: int = 1) -> Sample:
        step_tokens = (1, *[1] * (len(step_ns) - 2), tokens)
        return Sample(
            wall_ns=sum(step_ns), step_ns=step_ns, step_tokens=step_tokens, tokens_sha256="0", resumed=resumed
        )

    def of(*samples: Sample) -> dict[str, float]:
        return validity.of_arm(Result.model_construct(samples=samples))

    slowed = sample((30, 10, 14, 10, 14, 10, 12), (2, 4))
    assert of(slowed) == {"resumed": pytest.approx(2 * (14 - 10) / 100)}
    assert validity.sentences(of(slowed)) == ["the first steps after a wait made its generations 8% longer"]
    assert of(sample((30, 10, 10, 10), (2,))) == {"resumed": 0.0}
    assert of(sample((30, 10, 14, 14), (2, 3))) == {}
    assert of(sample((30, 10, 14, 10), (2,), tokens=3)) == {}
    assert of(sample((30, 10, 14, 10), ())) == {}


@pytest.mark.parametrize(("walls", "faster"), [((300, 200, 100), 0.5), ((100, 98), 0.02), ((100, 110), -0.1)])
def test_the_last_two_warm_ups_tell_whether_a_block_was_steady(walls: tuple[int, ...], faster: float) -> None:
    def sample(wall_ns: int) -> Sample:
        return Sample(wall_ns=wall_ns, step_ns=(wall_ns,), step_tokens=(1,), tokens_sha256="0")

    def of(*samples: Sample) -> dict[str, float]:
        return validity.of_block(Result.model_construct(samples=(), warmup=samples, conditions={"steal": 0.1}))

    assert of(*map(sample, walls)) == {"steal": 0.1, "unsteady_warmup": pytest.approx(faster)}
    assert of(sample(300)) == of() == {"steal": 0.1}


def test_the_clocks_of_host_and_device_may_differ_and_the_worst_generation_is_said() -> None:
    def sample(wall_ns: int, clock: Literal["host", "device"]) -> Sample:
        return Sample(wall_ns=wall_ns, step_ns=(80,), step_tokens=(1,), tokens_sha256="0", clock=clock)

    found = validity.of_arm(Result.model_construct(samples=(sample(100, "device"), sample(160, "device"))))
    assert found == {"clock_gap": pytest.approx(0.5)}
    assert validity.of_arm(Result.model_construct(samples=(sample(80, "device"),))) == {"clock_gap": 0.0}
    assert validity.of_arm(Result.model_construct(samples=(sample(160, "host"),))) == {}
