"""The whole rule on noise that was recorded: rounds of cells against themselves, on two shared cores, drawn again.

Each file is what `benchmarks/deciding.py noise` made of real runs: heavy tails, drift and all. The prior between rounds
was fitted to those of `noise.json`, and to none of `noise_later.json`: ten runs of another machine of the same name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.programs import program

from claimbench.analysis import paired
from claimbench.analysis.paired import STEADY, Prior

DATA = Path(__file__).parent / "data"
FITTED, LATER = (json.loads((DATA / name).read_text(encoding="utf-8")) for name in ("noise.json", "noise_later.json"))
drawn = program("benchmarks/recorded_noise.py")
POOLS = [(source, kind) for source in (FITTED, LATER) for kind in drawn.KINDS if source[kind]]
NAMES = [f"{'fitted' if source is FITTED else 'later'}-{kind}" for source, kind in POOLS]


def test_there_are_real_rounds_enough() -> None:
    assert len(FITTED["twins"]) >= 20
    assert len(FITTED["others"]) >= 40
    assert len(FITTED["restless"]) >= 8
    assert len(FITTED["restless_others"]) >= 100
    assert min(len(LATER[kind]) for kind in ("twins", "others", "restless_others")) >= 100


@pytest.mark.parametrize(("source", "kind"), POOLS, ids=NAMES)
def test_no_more_than_five_percent_of_verdicts_are_false(source: dict[str, Any], kind: str) -> None:
    assert drawn.false_share(source[kind], drawn.KINDS[kind]) <= 0.05


@pytest.mark.parametrize("rounds", [2, 3, 4])
@pytest.mark.parametrize(("source", "kind"), POOLS, ids=NAMES)
def test_intervals_hold_the_truth(source: dict[str, Any], kind: str, rounds: int) -> None:
    """As often as they say, and not much more often: what is too wide decides nothing."""
    prior = drawn.KINDS[kind]
    most = 0.985 if prior is STEADY else 0.995
    if rounds < prior.least:
        assert drawn.covered_share(source[kind], rounds, prior) == 1  # no interval yet
        return
    assert 0.93 <= drawn.covered_share(source[kind], rounds, prior) <= most


def test_a_broken_rule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a wrong line would do: looks that are not paid for, and a spread between rounds that is left out."""
    monkeypatch.setattr(paired, "spent_at", lambda _look, alpha=paired.ALPHA: alpha)
    unpaid = drawn.false_share(FITTED["twins"], Prior(inflation=1.0, floor=0.0, df=1000.0))
    assert unpaid > 0.05


def test_what_is_injected_is_found() -> None:
    """Power, on the same noise."""
    found = [drawn.found_share(FITTED["twins"], slowdown, rounds=6) for slowdown in drawn.SLOWDOWNS]
    two, five, ten, twenty = found
    assert two < five < ten <= twenty
    assert twenty > 0.75


def test_a_page_of_it_has_a_row_for_each_kind_and_each_number_of_rounds() -> None:
    lines = drawn.tables({kind: FITTED[kind][:20] if kind != "restless" else [] for kind in drawn.KINDS})
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:] == [
        "---",
        *(kind for kind in drawn.KINDS if kind != "restless"),
        "rounds",
        "---:",
        "2",
        "4",
        "8",
        "16",
    ]


def test_spread_that_passes_explain_leaves_nothing() -> None:
    """Passes as far apart as rounds: the variance of a round's mean of four is a quarter of that of a pass."""
    random = np.random.default_rng(0)
    alike = random.normal(0, 0.1, size=(4000, 4)).tolist()
    over, left = drawn.spread(alike)
    assert over == pytest.approx(1, abs=0.1)
    assert left == 0
    apart = [[log + place for log in one] for one, place in zip(alike, random.normal(0, 0.2, 4000), strict=True)]
    assert drawn.spread(apart)[1] == pytest.approx(0.2, rel=0.1)
