"""How well a study decides: minutes, undecided claims and A/A of several runs, and the noise of their rounds.

    python benchmarks/deciding.py table RUN [RUN ...]            a Markdown table, one row a run
    python benchmarks/deciding.py twins RUN MINUTES              rounds in which every cell of its plan sits twice
    python benchmarks/deciding.py noise RUN [RUN ...] > FILE     ratios of wall times by pass, for simulations
    python benchmarks/deciding.py widths BLOCKS RUN              intervals of a run without a budget beside one with it

RUN is a folder in which `snakemake --cores all` has run, or one that `claimbench keep` made; BLOCKS one in which it has
run with the study's `measure.budget_minutes` taken out, so that nothing was measured in rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from scipy.stats import binomtest

from claimbench.analysis import comparing, paired, validity
from claimbench.analysis.paired import PairedRound
from claimbench.deciding.decide import Decider
from claimbench.measuring.round_process import RoundRequest
from claimbench.measuring.rounds import RoundServer
from claimbench.schema import result
from claimbench.schema import round as round_file
from claimbench.schema import verdicts as verdicts_file
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import read as read_plan
from claimbench.schema.round import TWIN, Arm, Round
from claimbench.schema.verdicts import Verdict

AT_A_TIME = 5
"""Cells that sit twice in a round of twins."""
TWIN_PASSES = 3
OPEN = (Verdict.UNDECIDED, Verdict.BOUNDED)


class Pair(NamedTuple):
    """Two arms of one round."""

    group: str
    names: tuple[str, str]
    logs: tuple[float, ...]
    """Of the ratio of their wall times, by pass."""
    weight: float
    """Of the round, by the rules of validity."""

    @property
    def is_twin(self) -> bool:
        return TWIN in self.names


def results(run: Path) -> Path:
    return run / "results" if (run / "results").is_dir() else run


def rounds_of(run: Path) -> list[Round]:
    return [round_file.read(path) for path in sorted((results(run) / "rounds").glob("*.json"))]


def twins(run: Path, minutes: float) -> None:
    """Measure, in `run`, rounds in which cells sit twice and nothing else does: what processes of one cell differ by.

    They lie in its folder `twins`, which `noise` reads as it reads a run.
    """
    os.chdir(run)
    begun, folder = time.monotonic(), Path("twins/results/rounds")
    plan = read_plan(max((Path("results") / "plan").glob("*.json"), key=lambda path: path.stat().st_mtime))
    decider = Decider(plan, folder, print)
    cells = list(dict.fromkeys(id for group in plan.groups for id in group.cells))
    seats = [cells[first : first + AT_A_TIME] for first in range(0, len(cells), AT_A_TIME)]
    with RoundServer() as server:
        for number in itertools.count():
            if number >= len(seats) and time.monotonic() - begun > minutes * 60:
                break
            ids = seats[number % len(seats)]
            arms = [decider.request(id, f"{id}{twice}", proves=False) for id in ids for twice in ("", " again")]
            request = RoundRequest(arms=tuple(arms), passes=TWIN_PASSES, seed=number, number=number, group="twins")
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            record = server.measure(request, folder / f"{stamp}.json")
            print(f"{len(ids)} cells twice: {record.duration_s:.0f} s", *validity.sentences(validity.of_round(record)))


def walls(arm: Arm) -> dict[int, float]:
    return {number: mean(one.wall_ns for one in made) for number, made in arm.by_pass().items()}


def pairs(rounds: list[Round]) -> Iterator[Pair]:
    """Each arm of a round with its base, which is the first; void rounds are left out."""
    for record in rounds:
        if not (weight := validity.weight(validity.of_round(record))):
            continue
        base, *others = record.arms
        for arm in others:
            if Outcome.OK == base.result.outcome == arm.result.outcome:
                of, to = walls(arm), walls(base)
                logs = tuple(math.log(of[number] / to[number]) for number in sorted(of.keys() & to.keys()))
                if len(logs) > 1:
                    yield Pair(record.group, (arm.name, base.name), logs, weight)


def table(runs: list[Path]) -> list[str]:
    lines = [
        "| run | minutes in rounds | rounds | inside timed generations | decided | undecided | A/A of each group |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    self_compared = list[list[PairedRound]]()
    for number, run in enumerate(runs, start=1):
        rounds = rounds_of(run)
        judged = verdicts_file.read(results(run) / "verdicts.json").claims
        open_ones = [claim.id for claim in judged if claim.verdict in OPEN]
        seconds, timed_s = sum(one.duration_s for one in rounds), sum(one.timed_s for one in rounds)
        twin_rounds = twins_of(rounds)
        floors = ", ".join(_floor(group, twin_rounds[group]) for group in twin_rounds)
        self_compared += twin_rounds.values()
        lines.append(
            f"| {number} | {seconds / 60:.1f} | {len(rounds)} | {timed_s / seconds:.0%} |"
            f" {len(judged) - len(open_ones)} of {len(judged)} | {', '.join(open_ones) or 'none'} | {floors} |"
        )
    return [*lines, "", told_from_themselves(self_compared)]


def twins_of(rounds: list[Round]) -> dict[str, list[PairedRound]]:
    """Of each group that sat at least twice: its base against itself, by round."""
    found: dict[str, list[PairedRound]] = {}
    for pair in pairs(rounds):
        if pair.is_twin:
            found.setdefault(pair.group, []).append(PairedRound(pair.logs, pair.weight))
    return {group: logs for group, logs in found.items() if len(logs) > 1}


def _floor(group: str, logs: list[PairedRound]) -> str:
    low, high = (math.exp(end) for end in paired.contrast(logs).ends)
    return f"{re.sub('[^ (]+: ', '', group)} {low:.2f} to {high:.2f}"


def told_from_themselves(compared: list[list[PairedRound]]) -> str:
    """How many of these cells differ from themselves at any look, and the exact (Clopper-Pearson) interval of that."""
    if not compared:
        return "No cell sat beside itself in two rounds"
    false = sum(any(look.finds_a_difference for look in paired.looks(logs)) for logs in compared)
    low, high = binomtest(false, len(compared)).proportion_ci()
    shown = f"{false} of {len(compared)} ({low:.0%} to {high:.0%})"
    return f"Cells that were told from themselves at any look, where 5 % may be: {shown}"


def doubles(rounds: list[Round]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Each cell that sat twice in a round: `twins`, or `restless` where its processes differ more, and its ratios."""
    for record in rounds:
        if not validity.weight(validity.of_round(record)):
            continue
        by_cell: dict[str, list[Arm]] = {}
        for arm in record.arms:
            if arm.result.outcome == Outcome.OK:
                by_cell.setdefault(arm.result.cell.id, []).append(arm)
        for first, second in (arms for arms in by_cell.values() if len(arms) == 2):
            of, to = walls(second), walls(first)
            logs = tuple(math.log(of[number] / to[number]) for number in sorted(of.keys() & to.keys()))
            if len(logs) > 1:
                yield "restless" if comparing.is_restless(first.result.cell) else "twins", logs


def noise(runs: list[Path]) -> dict[str, list[list[float]]]:
    """`twins` and `restless`: of a cell against itself, as measured.

    `others` and `restless_others`: of two cells, less the mean over their rounds, and as much wider between rounds as
    that mean took of them.
    """
    found: dict[str, list[list[float]]] = {"twins": [], "restless": [], "others": [], "restless_others": []}
    for run in runs:
        for kind, of_cell in doubles(rounds_of(run)):
            found[kind].append([round(log, 4) for log in of_cell])
        restless = {
            arm.name for record in rounds_of(run) for arm in record.arms if comparing.is_restless(arm.result.cell)
        }
        by_names: dict[tuple[str, str], list[tuple[float, ...]]] = {}
        for pair in pairs(rounds_of(run)):
            if not pair.is_twin and pair.group != "twins":
                by_names.setdefault(pair.names, []).append(pair.logs)
        for names, several in by_names.items():
            if len(several) > 1:
                found["restless_others" if restless & {*names} else "others"] += _about_zero(several)
    return found


def _about_zero(rounds: list[tuple[float, ...]]) -> Iterator[list[float]]:
    means = [mean(logs) for logs in rounds]
    middle, wider = mean(means), math.sqrt(len(rounds) / (len(rounds) - 1))
    for own, logs in zip(means, rounds, strict=True):
        yield [round((own - middle) * wider + log - own, 4) for log in logs]


class Width(NamedTuple):
    """Of the interval of one ratio."""

    claim: str
    of: str
    log: float
    """On the log scale, from end to end."""
    shown: str


def widths_of(run: Path) -> dict[tuple[str, int], Width]:
    """By claim, and the number of the check in it; checks without an interval are left out."""
    found = {}
    for claim in verdicts_file.read(results(run) / "verdicts.json").claims:
        for number, check in enumerate(claim.checks):
            if check.low and check.high and check.low < check.high:
                shown = f"{check.estimate:.3g} ({check.low:.3g} to {check.high:.3g})"
                width = Width(claim.id, f"{check.of} / {check.to}", math.log(check.high / check.low), shown)
                found[claim.id, number] = width
    return found


def minutes_of(run: Path) -> float:
    """Of the machine, in blocks and rounds together."""
    blocks = [result.read(path).duration_s for path in results(run).glob("measure/*/*/*.json")]
    return (sum(blocks) + sum(one.duration_s for one in rounds_of(run))) / 60


def widths(blocks: Path, run: Path) -> list[str]:
    """Each ratio as both have it. An interval shrinks with the root of the time, so that is what a minute is worth."""
    before, after = widths_of(blocks), widths_of(run)
    minutes = [minutes_of(blocks), minutes_of(run)]
    lines = [
        f"| claim | ratio | {minutes[0]:.1f} min of blocks | {minutes[1]:.1f} min of rounds | width | per minute |",
        "| --- | --- | --- | --- | ---: | ---: |",
    ]
    narrower = []
    for key in sorted(before.keys() & after.keys()):
        old, new = before[key], after[key]
        shown = old.log / new.log
        narrower.append(shown * math.sqrt(minutes[0] / minutes[1]))
        lines.append(f"| {old.claim} | {old.of} | {old.shown} | {new.shown} | {shown:.1f}x | {narrower[-1]:.1f}x |")
    return [*lines, "", f"Narrower at the same minutes, median: {median(narrower):.1f} times"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("table", "noise"):
        commands.add_parser(name).add_argument("runs", nargs="+", type=Path)
    beside = commands.add_parser("widths")
    beside.add_argument("blocks", type=Path)
    beside.add_argument("run", type=Path)
    seating = commands.add_parser("twins")
    seating.add_argument("run", type=Path)
    seating.add_argument("minutes", type=float)
    arguments = parser.parse_args()
    if arguments.command == "table":
        print("\n".join(table(arguments.runs)))
    elif arguments.command == "twins":
        twins(arguments.run, arguments.minutes)
    elif arguments.command == "widths":
        print("\n".join(widths(arguments.blocks, arguments.run)))
    else:
        print(json.dumps(noise(arguments.runs)))


if __name__ == "__main__":
    main()
