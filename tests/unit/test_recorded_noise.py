"""The whole rule on noise that was recorded: rounds of cells against themselves, on two shared cores, drawn again.

`data/noise.json` is what `benchmarks/deciding.py noise` made of real runs: heavy tails, drift and all.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from claimbench.analysis import paired
from claimbench.analysis.paired import RESTLESS, STEADY, PairedRound, Prior

NOISE = json.loads((Path(__file__).parent / "data" / "noise.json").read_text(encoding="utf-8"))
STUDIES = 2000
KINDS = [("twins", STEADY), ("restless", RESTLESS), ("others", STEADY), ("restless_others", RESTLESS)]


def study(random: np.random.Generator, pool: list[list[float]], rounds: int) -> list[PairedRound]:
    """Rounds drawn from `pool`. Which of two twins is the first is nobody's choice, so neither is the sign."""
    drawn = random.integers(len(pool), size=rounds)
    signs = random.choice([-1.0, 1.0], size=rounds)
    return [PairedRound(tuple(sign * log for log in pool[number])) for number, sign in zip(drawn, signs, strict=True)]


def false_share(pool: list[list[float]], prior: Prior = STEADY, rounds: int = 8) -> float:
    """Studies that find a difference where there is none, at any look."""
    random = np.random.default_rng(0)
    made = (paired.looks(study(random, pool, rounds), prior) for _ in range(STUDIES))
    return float(np.mean([any(abs(look.centre) > look.half_width for look in looks) for looks in made]))


def covered_share(pool: list[list[float]], rounds: int, prior: Prior = STEADY) -> float:
    """Intervals of whoever looks once, after `rounds` rounds, that hold the truth."""
    random = np.random.default_rng(1)
    alpha = paired.ALPHA * 2 ** paired.look_number(rounds, prior.least)
    made = (paired.contrast(study(random, pool, rounds), prior, alpha) for _ in range(STUDIES))
    return float(np.mean([abs(found.centre) <= found.half_width for found in made]))


def test_there_are_real_rounds_enough() -> None:
    assert len(NOISE["twins"]) >= 20
    assert len(NOISE["others"]) >= 40
    assert len(NOISE["restless"]) >= 8
    assert len(NOISE["restless_others"]) >= 100


@pytest.mark.parametrize(("kind", "prior"), KINDS)
def test_no_more_than_five_percent_of_verdicts_are_false(kind: str, prior: Prior) -> None:
    assert false_share(NOISE[kind], prior) <= 0.05


@pytest.mark.parametrize("rounds", [2, 3, 4])
@pytest.mark.parametrize("kind", ["twins", "others"])
def test_intervals_hold_the_truth(kind: str, rounds: int) -> None:
    """As often as they say, and not much more often: what is too wide decides nothing."""
    assert 0.93 <= covered_share(NOISE[kind], rounds) <= 0.985


@pytest.mark.parametrize("rounds", [3, 4])
@pytest.mark.parametrize("kind", ["restless", "restless_others"])
def test_intervals_of_compiled_and_quantised_cells_hold_the_truth(kind: str, rounds: int) -> None:
    assert 0.93 <= covered_share(NOISE[kind], rounds, RESTLESS) <= 0.995


def test_a_broken_rule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a wrong line would do: looks that are not paid for, and a spread between rounds that is left out."""
    monkeypatch.setattr(paired, "spent_at", lambda _look, alpha=paired.ALPHA: alpha)
    unpaid = false_share(NOISE["twins"], Prior(inflation=1.0, floor=0.0, df=1000.0))
    assert unpaid > 0.05


def test_what_is_injected_is_found() -> None:
    """Power, on the same noise."""
    random = np.random.default_rng(2)
    found = {}
    for effect in (0.02, 0.05, 0.1, 0.2):
        made = [study(random, NOISE["twins"], 6) for _ in range(300)]
        slowed = [[PairedRound(tuple(log + math.log1p(effect) for log in one.logs)) for one in each] for each in made]
        found[effect] = float(np.mean([any(look.ends[0] > 0 for look in paired.looks(each)) for each in slowed]))
    assert found[0.02] < found[0.05] < found[0.1] <= found[0.2]
    assert found[0.2] > 0.75
