"""What this machine can tell apart, and in how many minutes: a cell against itself, and against itself slowed down.

The arms of each round are one cell twice (A/A: there is no difference to find) and the same cell with every step made
longer by a known share. Whoever doubts a verdict of a study can see here how often the same statistics are wrong on the
same machine, and which differences they find within the same minutes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from claimbench.analysis import paired, validity
from claimbench.analysis.paired import Contrast, PairedRound
from claimbench.checkpoints import shard
from claimbench.measuring.arm import ArmRequest
from claimbench.measuring.block_request import BlockRequest
from claimbench.measuring.round_process import RoundRequest
from claimbench.measuring.rounds import RoundServer
from claimbench.planning.result_key import key_of
from claimbench.schema.cell import Cell, Checkpoint, Device, Protocol, Workload
from claimbench.schema.outcome import Outcome
from claimbench.schema.result import Key
from claimbench.schema.round import TWIN, Round
from claimbench.system.cache import cache_folder

BASE = "base"
SLOWDOWNS = (0.02, 0.05, 0.1, 0.2)
PASSES = 8
CHECKPOINT = Checkpoint(name="selftest", source="random://smollm2-135m?seed=0", architecture="smollm2-135m")
MAX_SHARD_BYTES = 2_000_000_000


class Finding(NamedTuple):
    """What became of one arm's comparison with the base."""

    name: str
    truth: float
    """The ratio of its time to the base's, as it was made."""
    found: Contrast
    """At the last look, on the log scale."""
    minutes: float | None
    """Until the first look whose interval leaves 1 out; None: none did."""

    @property
    def covered(self) -> bool:
        low, high = self.found.ends
        return low <= math.log(self.truth) <= high

    @property
    def is_false(self) -> bool:
        """A difference was found where none is, or one of the wrong sign."""
        _, high = self.found.ends
        return (self.truth == 1 and self.minutes is not None) or (self.truth > 1 and high < 0)


def default_cell(device: Device) -> Cell:
    """Plain Transformers on random weights of a small model's shape: it takes no download and no account."""
    workload = Workload(prompt="The keeper of the lighthouse opened the map and", new_tokens=16)
    protocol = Protocol(samples=1, warmup_min=1, warmup_max=2, timeout_s=900)
    return Cell(checkpoint=CHECKPOINT, backend="transformers", workload=workload, device=device, protocol=protocol)


def prepare() -> Path:
    """The folder of the default cell's checkpoint, made once and kept in the cache."""
    folder = cache_folder("selftest")
    if not (folder / "checkpoint" / "manifest.json").exists():
        shard.shard(CHECKPOINT, folder / "fetched", folder / "checkpoint", MAX_SHARD_BYTES)
    return folder / "checkpoint"


def arms_of(cell: Cell, checkpoint: Path | None, key: Key) -> list[ArmRequest]:
    block = BlockRequest(cell=cell, checkpoint=checkpoint)
    made = {BASE: 0.0, TWIN: 0.0} | {f"slower by {share:.0%}": share for share in SLOWDOWNS}
    return [ArmRequest(name=name, block=block, key=key, slowdown=share, proves=False) for name, share in made.items()]


def run(
    cell: Cell, checkpoint: Path | None, machine_key: str, minutes: float, folder: Path, say: Callable[[str], None]
) -> list[Round]:
    """Measure rounds until another one would end after `minutes`, two at least; each is written to `folder`."""
    begun = time.monotonic()
    rounds: list[Round] = []
    arms = arms_of(cell, checkpoint, key_of(cell, machine_key))
    with RoundServer() as server:
        for seed in range(1_000_000):
            spent = time.monotonic() - begun
            if len(rounds) >= 2 and spent + spent / len(rounds) > minutes * 60:
                break
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            request = RoundRequest(arms=tuple(arms), passes=PASSES, seed=seed, number=seed, group="selftest")
            rounds.append(server.measure(request, folder / f"{stamp}.json"))
            share = rounds[-1].timed_s / rounds[-1].duration_s
            say(f"round {len(rounds)}: {rounds[-1].duration_s:.0f} s, {share:.0%} of it inside timed generations")
            for flag in validity.sentences(validity.of_round(rounds[-1])):
                say(f"    {flag}")
    return rounds


def findings(rounds: Sequence[Round]) -> list[Finding]:
    """The twin and every slowed arm against the base, by the wall time of a generation."""
    names = [arm.name for arm in rounds[0].arms if arm.name != BASE] if rounds else []
    return [found for name in names if (found := _finding(rounds, name))]


def _finding(rounds: Sequence[Round], name: str) -> Finding | None:
    both = list(paired_rounds(rounds, name, BASE))
    if not both:
        return None
    looks = paired.looks([paired_round for _, paired_round in both])
    seconds = [sum(record.duration_s for record, _ in both[: look.rounds]) for look in looks]
    settled = next((second for look, second in zip(looks, seconds, strict=True) if look.finds_a_difference), None)
    truth = 1 + next(arm.slowdown for arm in both[0][0].arms if arm.name == name)
    return Finding(name, truth, looks[-1], None if settled is None else settled / 60)


def paired_rounds(rounds: Sequence[Round], of: str, to: str) -> Iterator[tuple[Round, PairedRound]]:
    """Each round in which both arms ended well, with the logarithm of the ratio of their times at each common pass."""
    for record in rounds:
        times = [_wall_by_pass(record, name) for name in (of, to)]
        common = sorted(set(times[0]) & set(times[1]))
        if common:
            yield record, PairedRound(tuple(math.log(times[0][number] / times[1][number]) for number in common))


def _wall_by_pass(record: Round, name: str) -> dict[int, float]:
    """Mean nanoseconds of a generation at each pass; none where the arm did not end well."""
    arm = next((arm for arm in record.arms if arm.name == name), None)
    if arm is None or arm.result.outcome != Outcome.OK:
        return {}
    return {number: sum(one.wall_ns for one in made) / len(made) for number, made in arm.by_pass().items()}


def report(rounds: Sequence[Round]) -> list[str]:
    """The findings as lines for a person."""
    found = findings(rounds)
    if not found:
        reasons = sorted({arm.result.reason or "it gave no reason" for record in rounds for arm in record.arms})
        return [f"Nothing could be compared: {'; '.join(reasons)}"]
    lines = [f"{'arm':<16}{'made':>8}{'found [95 % over all looks]':>32}{'told apart after':>20}"]
    for one in found:
        low, high = (math.exp(end) for end in one.found.ends)
        shown = f"{math.exp(one.found.centre):.3f} [{low:.3f}, {high:.3f}]"
        when = "not" if one.minutes is None else f"{one.minutes:.1f} min"
        lines.append(f"{one.name:<16}{one.truth:>8.2f}{shown:>32}{when:>20}")
    minutes = sum(record.duration_s for record in rounds) / 60
    told = [one for one in found if one.truth > 1 and one.minutes is not None]
    smallest = min((one.truth - 1 for one in told), default=None)
    lines += [
        f"false verdicts: {sum(one.is_false for one in found)} of {len(found)}",
        f"intervals that hold the truth: {sum(one.covered for one in found)} of {len(found)}",
        f"the smallest difference told apart within {minutes:.0f} min: "
        + ("none of those that were made" if smallest is None else f"{smallest:.0%}"),
    ]
    return lines
