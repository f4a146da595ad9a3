"""What the statistics of verdicts make of noise that was recorded: false verdicts, intervals, and differences found.

    python benchmarks/recorded_noise.py FILE

FILE is what `benchmarks/deciding.py noise` made of runs. Its rounds are drawn again at random, as studies whose truth
is known: there is no difference, or one that was put in.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np

from claimbench.analysis import paired
from claimbench.analysis.paired import RESTLESS, STEADY, PairedRound, Prior

STUDIES = 2000
KINDS = {"twins": STEADY, "others": STEADY, "restless": RESTLESS, "restless_others": RESTLESS}
"""Of recorded rounds: a cell against itself and two cells, plain ones, and compiled or quantised ones."""
SLOWDOWNS = (0.02, 0.05, 0.1, 0.2)

Pool = list[list[float]]
"""Rounds: the logarithm of a ratio at each pass."""


def study(random: np.random.Generator, pool: Pool, rounds: int) -> list[PairedRound]:
    """Rounds drawn from `pool`. Which of two twins is the first is nobody's choice, so neither is the sign."""
    drawn = random.integers(len(pool), size=rounds)
    signs = random.choice([-1.0, 1.0], size=rounds)
    return [PairedRound(tuple(sign * log for log in pool[number])) for number, sign in zip(drawn, signs, strict=True)]


def false_share(pool: Pool, prior: Prior = STEADY, rounds: int = 8) -> float:
    """Studies that find a difference where there is none, at any look."""
    random = np.random.default_rng(0)
    made = (paired.looks(study(random, pool, rounds), prior) for _ in range(STUDIES))
    return float(np.mean([any(look.finds_a_difference for look in looks) for looks in made]))


def covered_share(pool: Pool, rounds: int, prior: Prior = STEADY) -> float:
    """Intervals of whoever looks once, after `rounds` rounds, that hold the truth."""
    random = np.random.default_rng(1)
    alpha = paired.ALPHA * 2 ** paired.look_number(rounds, prior.least)
    made = (paired.contrast(study(random, pool, rounds), prior, alpha) for _ in range(STUDIES))
    return float(np.mean([abs(found.centre) <= found.half_width for found in made]))


def found_share(pool: Pool, slowdown: float, rounds: int, prior: Prior = STEADY, studies: int = 300) -> float:
    """Studies that find a slowdown which was put into one side, at any look."""
    random = np.random.default_rng(2)
    made = [study(random, pool, rounds) for _ in range(studies)]
    slowed = [[PairedRound(tuple(log + math.log1p(slowdown) for log in one.logs)) for one in each] for each in made]
    return float(np.mean([any(look.ends[0] > 0 for look in paired.looks(each, prior)) for each in slowed]))


def spread(pool: Pool, prior: Prior = STEADY) -> tuple[float, float]:
    """Variance of the rounds' locations over what their passes explain, and the standard deviation that is left.

    Left is what exceeds the prior's inflation; its floor stands for that.
    """
    centres, explained = zip(*(paired.location(logs) for logs in pool), strict=True)
    between, within = float(np.mean(np.square(centres))), float(np.mean(explained))
    return between / within, math.sqrt(max(0.0, between - prior.inflation * within))


def tables(noise: dict[str, Pool]) -> list[str]:
    """Markdown: of each kind, then what is found of a slowdown of plain cells."""
    lines = [
        "| noise of | rounds | variance over what passes explain | left (floor) | false | held after 2, 3, 4 rounds |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for kind, prior in KINDS.items():
        if not noise[kind]:
            continue
        over, left = spread(noise[kind], prior)
        held = ", ".join(f"{covered_share(noise[kind], count, prior):.1%}" for count in range(prior.least, 5))
        false = false_share(noise[kind], prior)
        lines.append(
            f"| {kind} | {len(noise[kind])} | {over:.2f} | {left:.3f} ({prior.floor}) | {false:.1%} | {held} |"
        )
    lines += ["", f"| rounds | {' | '.join(f'{each:.0%}' for each in SLOWDOWNS)} |", "| ---: " * 5 + "|"]
    for rounds in (2, 4, 8, 16):
        found = " | ".join(f"{found_share(noise['twins'], each, rounds):.0%}" for each in SLOWDOWNS)
        lines.append(f"| {rounds} | {found} |")
    return lines


if __name__ == "__main__":
    print("\n".join(tables(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
